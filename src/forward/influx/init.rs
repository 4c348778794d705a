//! `metricstream influx init`: what the appliance needs in an InfluxDB, made once, and left alone when it is there.
//!
//! A ladder of resolutions: raw (7 days) -> 1 min (30 days) -> 5 min (90 days) -> 1 h (a year) -> 1 d (for ever). Each step
//! carries sum, count, min and max, from which every mean can be had exactly; never a mean of means. Percentiles
//! cannot be had from these: they come with the appliance's own windows, in `server_metrics_windows`.
//!
//! Asking first makes a second run change nothing. What is there and differs is named, not altered: it may be meant.

use serde_json::{Value, json};

use super::Credentials;
use super::answer::Heard;
use super::client::{Client, encoded};
use super::tls::TlsFiles;
use crate::args::{Exit, InfluxInitArgs};
use crate::forward::line::MEASUREMENT;
use std::time::Duration;

/// One resolution.
struct Step {
    /// Retention policy of version 1
    policy: &'static str,
    /// What the bucket's name ends in, version 2
    suffix: &'static str,
    /// Window; `None`: points as they come
    every: Option<&'static str>,
    /// How often it is filled, and how far back again: late points
    resample: (&'static str, &'static str),
    keep: &'static str,
    /// 0: for ever
    keep_s: u64,
}

const DAY_S: u64 = 86_400;
const LADDER: [Step; 5] = [
    Step { policy: "raw", suffix: "raw", every: None, resample: ("", ""), keep: "7d", keep_s: 7 * DAY_S },
    Step {
        policy: "agg_1m",
        suffix: "1m",
        every: Some("1m"),
        resample: ("1m", "10m"),
        keep: "30d",
        keep_s: 30 * DAY_S,
    },
    Step {
        policy: "agg_5m",
        suffix: "5m",
        every: Some("5m"),
        resample: ("5m", "30m"),
        keep: "90d",
        keep_s: 90 * DAY_S,
    },
    Step {
        policy: "agg_1h",
        suffix: "1h",
        every: Some("1h"),
        resample: ("1h", "3h"),
        keep: "365d",
        keep_s: 365 * DAY_S,
    },
    Step { policy: "agg_1d", suffix: "1d", every: Some("1d"), resample: ("1h", "2d"), keep: "INF", keep_s: 0 },
];

const REQUEST_WITHIN: Duration = Duration::from_secs(20);

pub fn run(args: &InfluxInitArgs) -> Exit {
    match init(args) {
        Ok(()) => Exit::Ok,
        Err(message) => {
            eprintln!("{message}");
            Exit::Failure
        }
    }
}

fn init(args: &InfluxInitArgs) -> Result<(), String> {
    let credentials = Credentials {
        username: args.username.clone(),
        password_file: args.password_file.clone(),
        token_file: args.token_file.clone(),
    };
    let tls =
        TlsFiles { ca: args.tls_ca.clone(), certificate: args.tls_certificate.clone(), key: args.tls_key.clone() };
    let client = Client::new(1, REQUEST_WITHIN, credentials.header()?, &tls)?;
    let server = Server { client, url: args.url.trim_end_matches('/').to_owned() };
    let mut report = Report { dry_run: args.dry_run, made: 0, there: 0, differing: 0 };
    if args.api == "v1" {
        v1(&server, &args.database, args.schema == "natural", &mut report)?;
    } else {
        if args.org.is_empty() {
            return Err("--org is needed with --api v2".to_owned());
        }
        v2(&server, args, &mut report)?;
    }
    let verb = if args.dry_run { "would be made" } else { "made" };
    let differing = match report.differing {
        0 => String::new(),
        n => format!(", {n} differ and stay as they are"),
    };
    println!("{} {verb}, {} there already{differing}", report.made, report.there);
    Ok(())
}

struct Report {
    dry_run: bool,
    made: u32,
    there: u32,
    differing: u32,
}

impl Report {
    fn there(&mut self, what: &str) {
        self.there += 1;
        println!("is there:  {what}");
    }
    fn differs(&mut self, what: &str, found: &str, meant: &str) {
        self.there += 1;
        self.differing += 1;
        println!("differs:   {what}: it is\n             {found}\n           and this would be\n             {meant}");
    }
    /// `how`: the statement or request, for the dry run.
    fn make(&mut self, what: &str, how: &str, make: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
        if self.dry_run {
            println!("would make: {what}\n             {how}");
        } else {
            make().map_err(|error| format!("{what} cannot be made: {error}"))?;
            println!("made:      {what}");
        }
        self.made += 1;
        Ok(())
    }
}

struct Server {
    client: Client,
    url: String,
}

impl Server {
    fn json(&self, heard: Heard) -> Result<Value, String> {
        match heard {
            Heard::Nothing { why, .. } => Err(format!("{} does not answer: {why}", self.url)),
            Heard::NoTls { why } => Err(format!("{}: {why}", self.url)),
            Heard::Answer { status, text, .. } => {
                let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
                let error = value.get("error").or_else(|| value.get("message")).and_then(Value::as_str);
                match (status, error) {
                    (200..=299, None) => Ok(value),
                    (_, Some(error)) => Err(format!("{} answers {status}: {error}", self.url)),
                    (_, None) => Err(format!("{} answers {status}: {}", self.url, text.trim())),
                }
            }
        }
    }

    /// Rows of the series that a statement gives: (name of the series, columns, values).
    fn query(&self, statement: &str) -> Result<Vec<Value>, String> {
        let answer = self.json(self.client.post_form(&format!("{}/query", self.url), &[("q", statement)]))?;
        let result = answer.pointer("/results/0").cloned().unwrap_or(Value::Null);
        if let Some(error) = result.get("error").and_then(Value::as_str) {
            return Err(format!("{} refuses {statement}: {error}", self.url));
        }
        Ok(result.get("series").and_then(Value::as_array).cloned().unwrap_or_default())
    }
}

/// The text at column `n` of each row.
fn rows(series: &Value) -> impl Iterator<Item = &Vec<Value>> {
    series.get("values").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_array)
}
fn text(row: &[Value], n: usize) -> &str {
    row.get(n).and_then(Value::as_str).unwrap_or("")
}

// Version 1

/// An InfluxQL identifier.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
}

fn v1(server: &Server, database: &str, natural: bool, report: &mut Report) -> Result<(), String> {
    let on = quoted(database);
    let databases = server.query("SHOW DATABASES")?;
    let exists = databases.iter().flat_map(rows).any(|row| text(row, 0) == database);
    let (what, first) = (format!("database {database}"), &LADDER[0]);
    if exists {
        report.there(&what);
    } else {
        let statement =
            format!("CREATE DATABASE {on} WITH DURATION {} REPLICATION 1 NAME {}", first.keep, quoted(first.policy));
        report.make(&what, &statement, || server.query(&statement).map(drop))?;
    }
    // What the statement above has made, or would.
    let policies =
        if exists || !report.dry_run { server.query(&format!("SHOW RETENTION POLICIES ON {on}"))? } else { Vec::new() };
    for step in &LADDER {
        if !exists && step.policy == first.policy {
            continue; // it came with the database
        }
        let what = format!("retention policy {} ({})", step.policy, step.keep);
        let statement =
            format!("CREATE RETENTION POLICY {} ON {on} DURATION {} REPLICATION 1", quoted(step.policy), step.keep);
        match policies.iter().flat_map(rows).find(|row| text(row, 0) == step.policy) {
            None => report.make(&what, &statement, || server.query(&statement).map(drop))?,
            Some(row) if duration_s(text(row, 1)) == Some(step.keep_s) => report.there(&what),
            Some(row) => report.differs(&what, &format!("DURATION {}", text(row, 1)), &statement),
        }
    }
    let queries = if exists { server.query("SHOW CONTINUOUS QUERIES")? } else { Vec::new() };
    let ours = queries.iter().find(|series| series.get("name").and_then(Value::as_str) == Some(database));
    for (source, step) in LADDER.iter().zip(&LADDER[1..]) {
        let name = format!("metricstream_{}", step.suffix);
        let what = format!("continuous query {name}");
        let statement = continuous_query(&name, database, source, step, natural);
        match ours.into_iter().flat_map(rows).find(|row| text(row, 0) == name) {
            None => report.make(&what, &statement, || server.query(&statement).map(drop))?,
            Some(row) if canonical(text(row, 1)) == canonical(&statement) => report.there(&what),
            Some(row) => report.differs(&what, text(row, 1), &statement),
        }
    }
    Ok(())
}

fn continuous_query(name: &str, database: &str, source: &Step, step: &Step, natural: bool) -> String {
    let fields = if source.every.is_none() {
        "sum(\"value\") AS \"sum\", count(\"value\") AS \"count\", min(\"value\") AS \"min\", max(\"value\") AS \"max\""
    } else {
        "sum(\"sum\") AS \"sum\", sum(\"count\") AS \"count\", min(\"min\") AS \"min\", max(\"max\") AS \"max\""
    };
    let on = quoted(database);
    // The appliance's own windows stand beside, with a tag that tells them: they are not to be summed again.
    let (into, from, filter) = if natural {
        (":MEASUREMENT".to_owned(), "/.*/".to_owned(), " WHERE \"window\" = ''")
    } else {
        (quoted(MEASUREMENT), quoted(MEASUREMENT), "")
    };
    let (every, back) = step.resample;
    format!(
        "CREATE CONTINUOUS QUERY {} ON {on} RESAMPLE EVERY {every} FOR {back} BEGIN SELECT {fields} INTO {on}.{}.{into} \
         FROM {on}.{}.{from}{filter} GROUP BY time({}), * END",
        quoted(name),
        quoted(step.policy),
        quoted(source.policy),
        step.every.expect("all but the first have one"),
    )
}

/// InfluxDB stores queries in its own words: without quotes where none are needed, other spaces.
fn canonical(query: &str) -> String {
    query.chars().filter(|c| !c.is_whitespace() && *c != '"').collect::<String>().to_lowercase()
}

/// Seconds of `168h0m0s`.
fn duration_s(text: &str) -> Option<u64> {
    let (mut total, mut number) = (0, String::new());
    for c in text.chars() {
        match c {
            '0'..='9' => number.push(c),
            _ => {
                let unit = match c {
                    'h' => 3600,
                    'm' => 60,
                    's' => 1,
                    _ => return None,
                };
                total += number.parse::<u64>().ok()? * unit;
                number.clear();
            }
        }
    }
    number.is_empty().then_some(total)
}

// Version 2, by its API: /api/v2/orgs, /buckets, /tasks

fn v2(server: &Server, args: &InfluxInitArgs, report: &mut Report) -> Result<(), String> {
    let url = &server.url;
    let org = encoded(&args.org);
    let found = server.json(server.client.get(&format!("{url}/api/v2/orgs?org={org}")))?;
    let id = found.pointer("/orgs/0/id").and_then(Value::as_str);
    let Some(org_id) = id else { return Err(format!("{url} has no organisation {}", args.org)) };
    let bucket = |step: &Step| format!("{}_{}", args.database, step.suffix);
    for step in &LADDER {
        let name = bucket(step);
        let what = format!("bucket {name} ({})", step.keep);
        let found = server.json(server.client.get(&format!("{url}/api/v2/buckets?org={org}&name={}", encoded(&name))));
        // Some versions answer 404 to a name that is not there.
        let found = match found {
            Err(error) if error.contains("answers 404") => Value::Null,
            other => other?,
        };
        let rules = match step.keep_s {
            0 => json!([]),
            seconds => json!([{"type": "expire", "everySeconds": seconds}]),
        };
        let body = json!({"orgID": org_id, "name": name, "retentionRules": rules});
        match found.pointer("/buckets/0") {
            None => report.make(&what, &format!("POST /api/v2/buckets {body}"), || {
                server.json(server.client.post_json(&format!("{url}/api/v2/buckets"), &body)).map(drop)
            })?,
            Some(bucket) => {
                let rule = bucket.pointer("/retentionRules/0/everySeconds").and_then(Value::as_u64).unwrap_or(0);
                if rule == step.keep_s {
                    report.there(&what);
                } else {
                    report.differs(&what, &format!("everySeconds {rule}"), &body.to_string());
                }
            }
        }
    }
    for (source, step) in LADDER.iter().zip(&LADDER[1..]) {
        let name = format!("metricstream_{}", step.suffix);
        let what = format!("task {name}");
        let flux = task(&name, &bucket(source), &bucket(step), args, source, step);
        let body = json!({"orgID": org_id, "flux": flux, "status": "active"});
        let found = server.json(server.client.get(&format!("{url}/api/v2/tasks?org={org}&name={name}")))?;
        match found.pointer("/tasks/0") {
            None => report.make(&what, &format!("POST /api/v2/tasks\n{flux}"), || {
                server.json(server.client.post_json(&format!("{url}/api/v2/tasks"), &body)).map(drop)
            })?,
            Some(task) => {
                let there = task.get("flux").and_then(Value::as_str).unwrap_or("");
                if canonical(there) == canonical(&flux) {
                    report.there(&what);
                } else {
                    report.differs(&what, there, &flux);
                }
            }
        }
    }
    Ok(())
}

/// One stream a field, each window stamped with its start, as the windows of version 1 are.
fn task(name: &str, from: &str, to: &str, args: &InfluxInitArgs, source: &Step, step: &Step) -> String {
    let every = step.every.expect("all but the first have one");
    let (run_every, back) = step.resample;
    let string = |text: &str| json!(text).to_string();
    let measurement = match args.schema.as_str() {
        "natural" => "not exists r.window".to_owned(),
        _ => format!("r._measurement == {}", string(MEASUREMENT)),
    };
    let mut flux = format!(
        "import \"date\"\n\noption task = {{name: {}, every: {run_every}, offset: 20s}}\n\n\
         data = from(bucket: {})\n  |> range(start: date.truncate(t: date.sub(d: {back}, from: now()), unit: {every}), stop: \
         date.truncate(t: now(), unit: {every}))\n  |> filter(fn: (r) => {measurement})\n",
        string(name),
        string(from),
    );
    for (field, fold) in [
        ("sum", "sum"),
        ("count", if source.every.is_none() { "count" } else { "sum" }),
        ("min", "min"),
        ("max", "max"),
    ] {
        let read = if source.every.is_none() { "value" } else { field };
        flux.push_str(&format!(
            "\ndata\n  |> filter(fn: (r) => r._field == {})\n  |> aggregateWindow(every: {every}, fn: {fold}, createEmpty: false, \
             timeSrc: \"_start\")\n  |> set(key: \"_field\", value: {})\n  |> to(bucket: {}, org: {})\n",
            string(read),
            string(field),
            string(to),
            string(&args.org),
        ));
    }
    flux
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_sums_what_the_one_before_has_and_none_averages() {
        let queries: Vec<String> = LADDER
            .iter()
            .zip(&LADDER[1..])
            .map(|(source, step)| continuous_query("q", "metrics", source, step, false))
            .collect();
        assert_eq!(
            queries[0],
            "CREATE CONTINUOUS QUERY \"q\" ON \"metrics\" RESAMPLE EVERY 1m FOR 10m BEGIN SELECT sum(\"value\") AS \"sum\", \
             count(\"value\") AS \"count\", min(\"value\") AS \"min\", max(\"value\") AS \"max\" INTO \
             \"metrics\".\"agg_1m\".\"server_metrics\" FROM \"metrics\".\"raw\".\"server_metrics\" GROUP BY time(1m), * END"
        );
        for (query, (from, to)) in
            queries[1..].iter().zip([("agg_1m", "agg_5m"), ("agg_5m", "agg_1h"), ("agg_1h", "agg_1d")])
        {
            assert!(query.contains("sum(\"count\") AS \"count\""), "{query}");
            assert!(query.contains(&format!("INTO \"metrics\".\"{to}\"")), "{query}");
            assert!(query.contains(&format!("FROM \"metrics\".\"{from}\"")), "{query}");
        }
        assert!(!queries.concat().to_lowercase().contains("mean"));
    }

    #[test]
    fn the_servers_own_words_are_recognised() {
        assert_eq!(duration_s("168h0m0s"), Some(7 * DAY_S));
        assert_eq!(duration_s("0s"), Some(0));
        assert_eq!((duration_s("7d"), duration_s("5")), (None, None));
        let ours = continuous_query("q", "metrics", &LADDER[0], &LADDER[1], false);
        let theirs = "CREATE CONTINUOUS QUERY q ON metrics RESAMPLE EVERY 1m FOR 10m BEGIN SELECT sum(value) AS sum, \
                      count(value) AS count, min(value) AS min, max(value) AS max INTO metrics.agg_1m.server_metrics FROM \
                      metrics.raw.server_metrics GROUP BY time(1m), * END";
        assert_eq!(canonical(&ours), canonical(theirs));
        assert_ne!(canonical(&ours), canonical(&theirs.replace("10m", "5m")));
    }
}
