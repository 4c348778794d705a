//! Source of points and windows: InfluxDB, by the query API of version 1.
//!
//! The rows of one measurement come series by series in chunks, and are compared as they come: nothing of them is kept.
//! Both schemas are read: *platform* (measurement `server_metrics`, tags `metric_name`, `client_id` and the point's own;
//! field `value`) and *natural* (measurement = name). Windows are in `server_metrics_windows` or beside the points, with the
//! tags `window` and `rule`.
//!
//! InfluxDB keeps one row of a series and time: a repeat leaves no second one, so there is exactly one row a point,
//! however often a client sent it; a window's row is its latest revision. Rows have no order of arrival, and windows no
//! marks of what was unchecked: where repeats may have been counted, compare windows in Kafka or by the listener.

use std::io::BufReader;
use std::path::Path;

use base64::Engine;
use serde::Deserialize;
use serde_json::value::RawValue;
use ureq::tls::{PemItem, RootCerts, TlsConfig};

use super::Options;
use super::expected::Expected;
use super::lines::for_each_line;
use super::points::{self, Identity, Points};
use super::progress::Progress;
use super::series_hash::{self, Pairs, Text};
use super::verdict::Verdict;
use super::windows::{self, Of, Windows};
use crate::commands::Failure;

/// Rows of a chunk
const CHUNK_ROWS: &str = "10000";

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Schema {
    /// One measurement, the name in a tag
    Platform,
    /// Measurement = name
    Natural,
}

/// Where the rows are.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// The server's base
    pub url: &'a str,
    pub database: &'a str,
    pub retention_policy: &'a str,
    pub schema: Schema,
    /// Name and password
    pub credentials: Option<(String, String)>,
    /// A PEM file: certificates to trust instead of Mozilla's list
    pub tls_ca: Option<&'a Path>,
}

/// What each line of a chunked answer is.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    results: Vec<Statement<'a>>,
    #[serde(default)]
    error: Option<String>,
}

#[derive(Deserialize)]
struct Statement<'a> {
    #[serde(borrow, default)]
    series: Vec<Series<'a>>,
    #[serde(default)]
    error: Option<String>,
    /// More chunks follow.
    #[serde(default)]
    partial: bool,
}

#[derive(Deserialize)]
struct Series<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow, default)]
    tags: Pairs<'a>,
    #[serde(borrow)]
    columns: Vec<Text<'a>>,
    #[serde(borrow, default)]
    values: Vec<Vec<&'a RawValue>>,
}

impl Series<'_> {
    /// A tag of the schema's own; empty when the series is without.
    fn tag(&self, key: &str) -> &str {
        self.tags.0.iter().find(|(known, _)| known.0 == key).map_or("", |(_, value)| &value.0)
    }

    fn metric_name(&self, schema: Schema) -> &str {
        match schema {
            Schema::Platform => self.tag("metric_name"),
            Schema::Natural => &self.name.0,
        }
    }

    /// The hash of name and tags; `own` are the schema's, and no part of it. A tag without a value is no tag.
    fn hash(&self, schema: Schema, own: &[&str]) -> u64 {
        let tags = self.tags.0.iter().filter(|(key, value)| !value.0.is_empty() && !own.contains(&&*key.0));
        tags.fold(series_hash::of_name(self.metric_name(schema)), |sum, (key, value)| {
            sum.wrapping_add(series_hash::of_tag(&key.0, &value.0))
        })
    }

    fn describe(&self, schema: Schema, own: &[&str]) -> String {
        let tags = self.tags.0.iter().filter(|(key, value)| !value.0.is_empty() && !own.contains(&&*key.0));
        let tags: Vec<String> = tags.map(|(key, value)| format!("{}={:?}", key.0, value.0)).collect();
        format!("{}{{{}}}", self.metric_name(schema), tags.join(","))
    }

    /// Where the columns stand in a row.
    fn places<const N: usize>(&self, columns: [&str; N]) -> Result<[usize; N], String> {
        let mut places = [0; N];
        for (place, name) in places.iter_mut().zip(columns) {
            let at = self.columns.iter().position(|column| column.0 == name);
            *place = at.ok_or_else(|| format!("a series of {} without the column {name}", self.name.0))?;
        }
        Ok(places)
    }
}

const OF_POINTS: [&str; 2] = ["metric_name", "client_id"];
const OF_WINDOWS: [&str; 4] = ["metric_name", "client_id", "window", "rule"];

/// The rows of raw points.
pub fn compare_points(expected: &Expected, options: &Options, target: &Target<'_>) -> Result<Verdict, Failure> {
    let mut points = Points::new(expected, options, "points in InfluxDB")?;
    let mut progress = Progress::new("rows read", options.progress);
    let schema = target.schema;
    let own = &OF_POINTS[usize::from(schema == Schema::Natural)..];
    target.for_each_series("\"value\"", "server_metrics", |series| {
        let [time, value] = series.places(["time", "value"])?;
        let (hash, client) = (series.hash(schema, own), series.tag("client_id"));
        progress.add(series.values.len() as u64);
        for row in &series.values {
            let found = points::Found {
                series: hash,
                timestamp_ns: integer(cell(row, time)?)?,
                value: cell(row, value)?,
                client,
                log: None,
                id: None,
                identity: Identity::OneRow,
            };
            points.take(&found, || series.describe(schema, own));
        }
        Ok(())
    })?;
    Ok(points.finish())
}

/// The rows of windows.
pub fn compare_windows(expected: &Expected, options: &Options, target: &Target<'_>) -> Result<Verdict, Failure> {
    let mut windows = Windows::new(expected, options, "windows in InfluxDB");
    let mut progress = Progress::new("rows read", options.progress);
    let schema = target.schema;
    let own = &OF_WINDOWS[usize::from(schema == Schema::Natural)..];
    let fields = ["time", "count", "sum", "min", "max", "series"];
    let select = fields[1..].iter().map(|field| format!("\"{field}\"")).collect::<Vec<String>>().join(",");
    target.for_each_series(&select, "server_metrics_windows", |series| {
        // What continuous queries make is no window of the appliance's: it has no such tag.
        let Some(window) = Some(series.tag("window")).filter(|window| !window.is_empty()) else { return Ok(()) };
        let window_s = window.strip_suffix('s').and_then(|digits| digits.parse().ok());
        let window_s = window_s.ok_or_else(|| format!("a window of {window:?}, which is no length in seconds"))?;
        let hash = series.hash(schema, own);
        let [time, count, sum, min, max, members] = series.places(fields)?;
        progress.add(series.values.len() as u64);
        for row in &series.values {
            let number = |at: usize| row.get(at).and_then(|raw| raw.get().parse().ok()).unwrap_or(f64::NAN);
            let of = Of {
                series: hash,
                client: series.tag("client_id"),
                window_s,
                start_ms: integer(cell(row, time)?)?.div_euclid(1_000_000),
                is_rule: !series.tag("rule").is_empty() || integer(cell(row, members)?)? != 1,
            };
            let found = windows::Found {
                count: integer(cell(row, count)?)?.max(0) as u64,
                sum: number(sum),
                min: number(min),
                max: number(max),
                incomplete: false,
                unchecked: false,
            };
            windows.take(&of, &found, || series.describe(schema, own));
        }
        Ok(())
    })?;
    Ok(windows.finish())
}

fn cell<'r>(row: &[&'r RawValue], at: usize) -> Result<&'r str, String> {
    row.get(at).map(|raw| raw.get()).ok_or_else(|| "a row that is shorter than its columns".to_string())
}

fn integer(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| format!("{text} where a whole number belongs"))
}

impl Target<'_> {
    fn agent(&self) -> Result<ureq::Agent, String> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = self.tls_ca {
            let pem = std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
            let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            if certificates.is_empty() {
                return Err(format!("{} holds no PEM certificate", path.display()));
            }
            tls = tls.root_certs(RootCerts::new_with_certs(&certificates));
        }
        Ok(ureq::Agent::config_builder().tls_config(tls.build()).build().into())
    }

    /// Asks for `fields` of the measurement that the platform's schema has, or of all; gives each series as often as it has
    /// chunks.
    fn for_each_series(
        &self,
        fields: &str,
        measurement: &str,
        mut each: impl FnMut(&Series<'_>) -> Result<(), String>,
    ) -> Result<(), Failure> {
        let measurement = match self.schema {
            Schema::Platform => quoted(measurement),
            Schema::Natural => "/.*/".to_string(),
        };
        let (database, policy) = (quoted(self.database), quoted(self.retention_policy));
        let statement = format!("SELECT {fields} FROM {database}.{policy}.{measurement} GROUP BY *");
        let url = format!("{}/query", self.url.trim_end_matches('/'));
        let failed = |what: String| Failure(format!("InfluxDB at {url} cannot be read by `{statement}`: {what}"));
        let mut request = self
            .agent()
            .map_err(failed)?
            .get(&url)
            .config()
            .http_status_as_error(false)
            .build()
            .query("q", &statement)
            .query("epoch", "ns")
            .query("chunked", "true")
            .query("chunk_size", CHUNK_ROWS);
        if let Some((name, password)) = &self.credentials {
            let text = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
            request = request.header("Authorization", format!("Basic {text}"));
        }
        let mut answer = request.call().map_err(|error| failed(error.to_string()))?;
        let status = answer.status();
        if status != 200 {
            let body = answer.body_mut().with_config().limit(1 << 16).read_to_string().unwrap_or_default();
            return Err(failed(format!("{status} {}", body.trim())));
        }
        let input = BufReader::with_capacity(1 << 20, answer.body_mut().as_reader());
        let mut more = true;
        for_each_line(input, |_, text| {
            let chunk: Chunk<'_> =
                serde_json::from_slice(text).map_err(|error| failed(format!("it answers no result: {error}")))?;
            let told = chunk.error.as_ref().or_else(|| chunk.results.iter().find_map(|part| part.error.as_ref()));
            if let Some(error) = told {
                return Err(failed(error.clone()));
            }
            more = chunk.results.iter().any(|part| part.partial);
            let mut series = chunk.results.iter().flat_map(|part| &part.series);
            series.try_for_each(&mut each).map_err(|what| failed(format!("it answers {what}")))
        })?;
        if more {
            return Err(failed("the answer ends before its last chunk".to_string()));
        }
        Ok(())
    }
}

/// As an identifier of InfluxQL.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
}
