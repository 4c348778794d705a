//! A small server that lies about one point in a million, and shows what it has in several forms.
//!
//! It takes line protocol and JSON with parsers of its own, keeps the points, and drops, doubles, reorders or alters one
//! of them. In windows a lie about order is one that reaches them: the point is counted in the window after its own.
//! (Order within a window leaves no trace in it.)

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::{BufReader, Read, Write as _};
use std::path::Path;

use metricstream_loadgen::ledger::Writer;
use metricstream_loadgen::plan::{self, Plan, Protocol};
use metricstream_loadgen::verify::Options;
use metricstream_loadgen::verify::verdict::{FaultKind, Verdict};
use metricstream_loadgen::workload::{Batch, Workload};
use serde::Deserialize;
use serde_json::value::RawValue;

pub const POINTS: u32 = 1_000_000;
pub const BATCH_POINTS: u32 = 1_000;
pub const CLIENTS: u32 = 4;
/// Which of the points it lies about.
pub const VICTIM: usize = 617_283;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lie {
    None,
    Drop,
    Double,
    Reorder,
    Alter,
}

#[derive(Clone, Copy)]
pub struct Point {
    pub series: u32,
    pub timestamp_ns: i64,
    pub value: f64,
    /// Counted in the window after its own
    moved: bool,
}

pub struct Liar {
    lie: Lie,
    /// (client, name, tags) by the text it came in
    ids: HashMap<String, u32>,
    pub series: Vec<(String, String, BTreeMap<String, String>)>,
    pub points: Vec<Point>,
    pub came: usize,
    /// What goes after the next point of its series
    held: Option<Point>,
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    metrics: Vec<Element<'a>>,
}

#[derive(Deserialize)]
struct Element<'a> {
    name: String,
    #[serde(borrow)]
    value: &'a RawValue,
    timestamp: i64,
    #[serde(borrow)]
    tags: &'a RawValue,
}

impl Liar {
    pub fn new(lie: Lie) -> Liar {
        Liar { lie, ids: HashMap::new(), series: Vec::new(), points: Vec::new(), came: 0, held: None }
    }

    pub fn take(&mut self, client: &str, body: &[u8]) {
        if body.starts_with(b"{") {
            let document: Document<'_> = serde_json::from_slice(body).expect("JSON");
            for element in document.metrics {
                let key = format!("{client} {} {}", element.name, element.tags.get());
                let series = self.series(key, || {
                    let tags = serde_json::from_str(element.tags.get()).expect("tags");
                    (client.to_string(), element.name.clone(), tags)
                });
                self.point(series, element.value.get().parse().expect("a number"), element.timestamp);
            }
            return;
        }
        for line in std::str::from_utf8(body).expect("text").lines() {
            let (key, rest) = line.split_once(' ').expect("a field");
            let (field, timestamp) = rest.split_once(' ').expect("a timestamp");
            let series = self.series(format!("{client} {key}"), || {
                let mut parts = key.split(',');
                let name = parts.next().expect("a name").to_string();
                let tags = parts.map(|tag| tag.split_once('=').expect("a tag")).map(|(k, v)| (k.into(), v.into()));
                (client.to_string(), name, tags.collect())
            });
            let value = field.strip_prefix("value=").expect("the field").parse().expect("a number");
            self.point(series, value, timestamp.parse().expect("a time"));
        }
    }

    fn series(&mut self, key: String, parts: impl FnOnce() -> (String, String, BTreeMap<String, String>)) -> u32 {
        let next = self.series.len() as u32;
        let id = *self.ids.entry(key).or_insert(next);
        if id == next {
            self.series.push(parts());
        }
        id
    }

    fn point(&mut self, series: u32, value: f64, timestamp_ns: i64) {
        let mut point = Point { series, timestamp_ns, value, moved: false };
        if self.came == VICTIM {
            match self.lie {
                Lie::None | Lie::Drop => {}
                Lie::Double => self.points.push(point),
                // More than what vanishes when a window's sum is rounded.
                Lie::Alter => point.value += 1e-6,
                Lie::Reorder => {
                    point.moved = true;
                    self.held = Some(point);
                }
            }
        }
        if self.came != VICTIM || !matches!(self.lie, Lie::Drop | Lie::Reorder) {
            self.points.push(point);
            if self.held.is_some_and(|held| held.series == series) {
                self.points.extend(self.held.take());
            }
        }
        self.came += 1;
    }

    pub fn line(&self, n: usize, kind: Kind, out: &mut Vec<u8>) {
        let point = self.points[n];
        let (client, name, tags) = &self.series[point.series as usize];
        let (time, value) = (point.timestamp_ns, point.value);
        let mut line = String::new();
        match kind {
            Kind::Ndjson => write!(line, "{{\"id\":\"0-0-1-{n}\",\"client_id\":\"{client}\""),
            Kind::Kafka => write!(line, "{{\"client_id\":\"{client}\""),
            Kind::LogDump => write!(
                line,
                "{{\"client_id\":\"{client}\",\"explicit_timestamp\":true,\"kind\":\"float\",\"log\":\"0\",\"offset\":4096,\
                 \"protocol\":\"influx\",\"request_id\":\"\",\"segment\":1,\"seq\":{n},\"timestamp_ns\":{time},\
                 \"traceparent\":\"\""
            ),
        }
        .expect("memory");
        write!(line, ",\"name\":\"{name}\",\"tags\":{{").expect("memory");
        for (n, (key, value)) in tags.iter().enumerate() {
            write!(line, "{}\"{key}\":\"{value}\"", if n > 0 { "," } else { "" }).expect("memory");
        }
        write!(line, "}},\"value\":{value}").expect("memory");
        if !matches!(kind, Kind::LogDump) {
            write!(line, ",\"timestamp\":{}", time.div_euclid(1_000_000)).expect("memory");
            if time % 1_000_000 != 0 {
                write!(line, ",\"timestamp_ns\":{time}").expect("memory");
            }
        }
        line.push('}');
        if matches!(kind, Kind::Kafka) {
            let headers = [("id", format!("0-0-1-{n}")), ("point", format!("{:x}-{time}", point.series))];
            line = kcat("metrics-raw", client, n, &headers, &line);
        }
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }

    pub fn closed_windows(&self) -> Vec<Window<'_>> {
        let mut windows = Vec::new();
        for length_s in [10, 60] {
            let length_ns = length_s * 1_000_000_000;
            let mut all: BTreeMap<(u32, i64), Vec<f64>> = BTreeMap::new();
            for point in &self.points {
                let start = point.timestamp_ns.div_euclid(length_ns) + i64::from(point.moved);
                all.entry((point.series, start)).or_default().push(point.value);
            }
            for ((series, start), values) in all {
                let (client, name, tags) = &self.series[series as usize];
                windows.push(Window {
                    client,
                    name,
                    tags,
                    length_s,
                    start_ms: start * length_s * 1_000,
                    count: values.len(),
                    sum: exact_sum(&values),
                    min: values.iter().copied().fold(f64::INFINITY, f64::min),
                    max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                });
            }
        }
        windows
    }

    /// As `log dump --shard aggregate` prints them.
    pub fn windows(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for window in self.closed_windows() {
            let Window { client, name, tags, length_s, start_ms, count, sum, min, max } = window;
            let line = serde_json::json!({
                "name": name, "tags": tags, "window_s": length_s, "start_ms": start_ms, "count": count, "sum": sum,
                "min": min, "max": max, "series": 1, "client": client, "revision": 0, "incomplete": false,
                "unchecked": false,
            });
            writeln!(out, "{line}").expect("memory");
        }
        // All windows have closed.
        let last_ns = self.points.iter().map(|point| point.timestamp_ns).max().expect("points");
        let mark_ms = last_ns / 1_000_000 + 180_000;
        writeln!(out, "{{\"era\":0,\"floor_ms\":0,\"mark_ms\":{mark_ms}}}").expect("memory");
        out
    }
}

pub struct Window<'a> {
    pub client: &'a str,
    pub name: &'a str,
    pub tags: &'a BTreeMap<String, String>,
    pub length_s: i64,
    pub start_ms: i64,
    pub count: usize,
    pub sum: f64,
    pub min: f64,
    pub max: f64,
}

/// A record as kcat prints it. A client has a partition of its own.
pub fn kcat(topic: &str, client: &str, offset: usize, headers: &[(&str, String)], payload: &str) -> String {
    let partition: u32 = client.trim_start_matches("client-").parse().expect("a client's number");
    let headers: Vec<&str> = headers.iter().flat_map(|(key, value)| [*key, value]).collect();
    let headers = serde_json::to_string(&headers).expect("texts");
    let payload = serde_json::to_string(payload).expect("a text");
    format!(
        "{{\"topic\":\"{topic}\",\"partition\":{partition},\"offset\":{offset},\"tstype\":\"create\",\"ts\":1767225600000,\
         \"broker\":1,\"headers\":{headers},\"key\":\"{client}\",\"payload\":{payload}}}"
    )
}

/// Shewchuk's sum without error, rounded once as CPython's `math.fsum` does.
pub fn exact_sum(values: &[f64]) -> f64 {
    let mut partials: Vec<f64> = Vec::new();
    for &value in values {
        let mut x = value;
        let mut kept = 0;
        for n in 0..partials.len() {
            let mut y = partials[n];
            if x.abs() < y.abs() {
                std::mem::swap(&mut x, &mut y);
            }
            let high = x + y;
            let low = y - (high - x);
            if low != 0.0 {
                partials[kept] = low;
                kept += 1;
            }
            x = high;
        }
        partials.truncate(kept);
        partials.push(x);
    }
    let Some(mut high) = partials.pop() else { return 0.0 };
    let mut low = 0.0;
    while let Some(y) = partials.pop() {
        let x = high;
        high = x + y;
        low = y - (high - x);
        if low != 0.0 {
            break;
        }
    }
    // Half way between two: the rest decides.
    if partials.last().is_some_and(|rest| (low < 0.0 && *rest < 0.0) || (low > 0.0 && *rest > 0.0)) {
        let twice = low * 2.0;
        if twice == (high + twice) - high {
            high += twice;
        }
    }
    high
}

#[derive(Clone, Copy)]
pub enum Kind {
    LogDump,
    Ndjson,
    Kafka,
}

/// Lines of points, made while they are read.
pub struct Lines<'a> {
    liar: &'a Liar,
    kind: Kind,
    next: usize,
    text: Vec<u8>,
    at: usize,
}

impl<'a> Lines<'a> {
    pub fn new(liar: &'a Liar, kind: Kind) -> BufReader<Lines<'a>> {
        BufReader::with_capacity(1 << 18, Lines { liar, kind, next: 0, text: Vec::new(), at: 0 })
    }
}

impl Read for Lines<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.text.len() {
            self.text.clear();
            self.at = 0;
            while self.text.len() < 1 << 17 && self.next < self.liar.points.len() {
                self.liar.line(self.next, self.kind, &mut self.text);
                self.next += 1;
            }
        }
        let got = (&self.text[self.at..]).read(into)?;
        self.at += got;
        Ok(got)
    }
}

pub fn plan(protocol: Protocol) -> Plan {
    Plan {
        seed: 9,
        epoch_ns: 1_767_225_600_000_000_000,
        workload: plan::Workload {
            protocol,
            clients: CLIENTS,
            series: 2_000,
            tags: 2,
            batch_points: BATCH_POINTS,
            churn_per_minute: 0.0,
            values: plan::Values::Gauge,
            timestamps: plan::Timestamps::Late { share: 0.1, by_ms: 15_000 },
            bad_share: 0.0,
        },
        shape: plan::Shape::Constant { rate: 20.0, duration_ms: 50_000 },
        transport: plan::Transport {
            path: "/write".to_string(),
            connections: CLIENTS,
            connection: plan::Connection::KeepAlive,
            compression: plan::Compression::None,
            identity: plan::Identity::Header,
            token: None,
            retry: plan::Retry::Never,
            timeout_ms: 5_000,
        },
    }
}

/// All that is sent; the ledger is written on the way.
pub fn send(plan: &Plan, ledger: &Path, mut send: impl FnMut(u32, &[u8])) {
    let workload = Workload::new(plan);
    let mut writer = Writer::create(ledger, plan).expect("a ledger");
    let mut body = Vec::new();
    for n in 0..u64::from(POINTS / BATCH_POINTS) {
        let (client, number) = ((n % u64::from(CLIENTS)) as u32, n / u64::from(CLIENTS));
        let batch = Batch { client, number, stamp_ns: plan.epoch_ns + n as i64 * 50_000_000 };
        writer.batch(batch);
        writer.sent(n, client, number, 1);
        writer.flush().expect("written");
        body.clear();
        workload.body(&mut body, &[batch]);
        send(client, &body);
        writer.acknowledged(n, 204);
    }
    writer.flush().expect("written");
}

/// The plan's time is not the ledger's: no point is ever too late here.
pub fn options() -> Options {
    Options { horizon_ms: u64::MAX / 4_000_000, ..Options::default() }
}

/// What must be said of a lie: the fault, and what stands in its sentence.
pub fn judge(verdict: &Verdict, lie: Lie) {
    let windows = verdict.comparison.starts_with("windows");
    // Each with how often: the point is in one window of each length.
    let faults: &[(FaultKind, u64)] = match (lie, windows) {
        (Lie::None, _) => &[],
        (Lie::Drop, false) => &[(FaultKind::Missing, 1)],
        (Lie::Drop, true) => &[(FaultKind::Missing, 2)],
        (Lie::Double, false) => &[(FaultKind::Doubled, 1)],
        (Lie::Double, true) => &[(FaultKind::Doubled, 2)],
        (Lie::Alter, false) => &[(FaultKind::Altered, 1)],
        (Lie::Alter, true) => &[(FaultKind::Altered, 2)],
        (Lie::Reorder, false) => &[(FaultKind::OutOfOrder, 1)],
        // One window has a point too few, the next one too many; nothing was sent in the next minute.
        (Lie::Reorder, true) => &[(FaultKind::Missing, 2), (FaultKind::Doubled, 1), (FaultKind::Foreign, 1)],
    };
    let text = verdict.to_text();
    assert_eq!(verdict.ok, lie == Lie::None, "{lie:?}: {text}");
    assert_eq!(verdict.first.len(), faults.len(), "{lie:?}: {text}");
    assert!(faults.iter().all(|(kind, count)| verdict.count_of(*kind) == *count), "{lie:?}: {text}");
    assert_eq!(verdict.total_of("points acknowledged"), u64::from(POINTS));
    for fault in &verdict.first {
        let host = format!("host=\"s9-host-00000{}\"", VICTIM / BATCH_POINTS as usize % CLIENTS as usize);
        assert!(fault.series.contains(&host), "{lie:?}: {text}");
        assert!(fault.client.starts_with("client-00000"), "{lie:?}: {text}");
    }
}
