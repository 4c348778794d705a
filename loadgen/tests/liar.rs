//! `verify` against a small server that lies about one point in a million.
//!
//! The liar takes line protocol and JSON with parsers of its own, keeps the points, and drops, doubles, reorders or
//! alters one of them. Then it shows what it has as a log dump, as windows and as newline JSON. Each lie must be caught
//! in each of the three, and an honest server found honest. In windows a lie about order is one that reaches them: the
//! point is counted in the window after its own. (Order within a window leaves no trace in it.)

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use metricstream_loadgen::ledger::Writer;
use metricstream_loadgen::plan::{self, Plan, Protocol};
use metricstream_loadgen::verify::expected::Expected;
use metricstream_loadgen::verify::verdict::{FaultKind, Verdict};
use metricstream_loadgen::verify::{Options, points, windows};
use metricstream_loadgen::workload::{Batch, Workload, client};
use serde::Deserialize;
use serde_json::value::RawValue;

const POINTS: u32 = 1_000_000;
const BATCH_POINTS: u32 = 1_000;
const CLIENTS: u32 = 4;
/// Which of the points it lies about.
const VICTIM: usize = 617_283;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    None,
    Drop,
    Double,
    Reorder,
    Alter,
}

#[derive(Clone, Copy)]
struct Point {
    series: u32,
    timestamp_ns: i64,
    value: f64,
    /// Counted in the window after its own
    moved: bool,
}

struct Liar {
    lie: Lie,
    /// (client, name, tags) by the text it came in
    ids: HashMap<String, u32>,
    series: Vec<(String, String, BTreeMap<String, String>)>,
    points: Vec<Point>,
    came: usize,
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
    fn new(lie: Lie) -> Liar {
        Liar { lie, ids: HashMap::new(), series: Vec::new(), points: Vec::new(), came: 0, held: None }
    }

    fn take(&mut self, client: &str, body: &[u8]) {
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

    fn line(&self, n: usize, kind: Kind, out: &mut Vec<u8>) {
        let point = self.points[n];
        let (client, name, tags) = &self.series[point.series as usize];
        let (time, value) = (point.timestamp_ns, point.value);
        let mut put = |parts: &[&str]| parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
        match kind {
            Kind::Ndjson => put(&["{\"id\":\"0-0-1-", &n.to_string(), "\",\"client_id\":\"", client]),
            _ => put(&[
                "{\"client_id\":\"",
                client,
                "\",\"explicit_timestamp\":true,\"kind\":\"float\",\"log\":\"0\",\"offset\":4096,\"protocol\":\"influx\",\
                 \"request_id\":\"\",\"segment\":1,\"seq\":",
                &n.to_string(),
                ",\"traceparent\":\"",
            ]),
        }
        put(&["\",\"name\":\"", name, "\",\"tags\":{"]);
        for (n, (key, value)) in tags.iter().enumerate() {
            put(&[if n > 0 { ",\"" } else { "\"" }, key, "\":\"", value, "\""]);
        }
        let time_key = if matches!(kind, Kind::Ndjson) { "timestamp" } else { "timestamp_ns" };
        put(&["},\"", time_key, "\":", &time.to_string(), ",\"value\":", &value.to_string(), "}\n"]);
    }

    /// As `log dump --shard aggregate` prints them.
    fn windows(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut last_ns = i64::MIN;
        for length_s in [10, 60] {
            let length_ns = length_s * 1_000_000_000;
            let mut all: HashMap<(u32, i64), Vec<f64>> = HashMap::new();
            for point in &self.points {
                let start = point.timestamp_ns.div_euclid(length_ns) + i64::from(point.moved);
                all.entry((point.series, start)).or_default().push(point.value);
                last_ns = last_ns.max(point.timestamp_ns);
            }
            for ((series, start), values) in all {
                let (client, name, tags) = &self.series[series as usize];
                let window = serde_json::json!({
                    "name": name, "tags": tags, "window_s": length_s, "start_ms": start * length_s * 1_000,
                    "count": values.len(), "sum": exact_sum(&values),
                    "min": values.iter().copied().fold(f64::INFINITY, f64::min),
                    "max": values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                    "series": 1, "client": client, "revision": 0, "incomplete": false, "unchecked": false,
                });
                writeln!(out, "{window}").expect("memory");
            }
        }
        // All windows have closed.
        let mark_ms = last_ns / 1_000_000 + 180_000;
        writeln!(out, "{{\"era\":0,\"floor_ms\":0,\"mark_ms\":{mark_ms}}}").expect("memory");
        out
    }
}

/// Shewchuk's sum without error, rounded once as CPython's `math.fsum` does.
fn exact_sum(values: &[f64]) -> f64 {
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
enum Kind {
    LogDump,
    Windows,
    Ndjson,
}

/// Lines of points, made while they are read.
struct Lines<'a> {
    liar: &'a Liar,
    kind: Kind,
    next: usize,
    text: Vec<u8>,
    at: usize,
}

impl<'a> Lines<'a> {
    fn new(liar: &'a Liar, kind: Kind) -> BufReader<Lines<'a>> {
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

fn plan(protocol: Protocol) -> Plan {
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
fn send(plan: &Plan, ledger: &Path, mut send: impl FnMut(u32, &[u8])) {
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
fn options() -> Options {
    Options { horizon_ms: u64::MAX / 4_000_000, ..Options::default() }
}

/// What must be said of a lie: the fault, and what stands in its sentence.
fn judge(verdict: &Verdict, lie: Lie) {
    let windows = verdict.comparison == "windows";
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

fn catch(protocol: Protocol, lie: Lie, kinds: &[Kind]) {
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = dir.path().join("ledger");
    let mut liar = Liar::new(lie);
    send(&plan(protocol), &ledger, |client, body| liar.take(&client::name(client), body));
    assert_eq!(liar.came, POINTS as usize);
    let expected = Expected::load(&[&ledger]).expect("a ledger");
    for kind in kinds {
        let verdict = match kind {
            Kind::LogDump => points::compare(&expected, &options(), "log dump", Lines::new(&liar, *kind)),
            Kind::Ndjson => points::compare(&expected, &options(), "newline JSON", Lines::new(&liar, *kind)),
            Kind::Windows => windows::compare_dump(&expected, &options(), &liar.windows()[..]),
        };
        judge(&verdict.unwrap_or_else(|error| panic!("{lie:?}: {error}")), lie);
    }
}

const ALL: [Kind; 3] = [Kind::LogDump, Kind::Windows, Kind::Ndjson];

#[test]
fn an_honest_server_is_found_honest() {
    catch(Protocol::Line, Lie::None, &ALL);
    catch(Protocol::Json, Lie::None, &ALL);
}

#[test]
fn one_point_in_a_million_dropped_is_caught() {
    catch(Protocol::Line, Lie::Drop, &ALL);
    catch(Protocol::Json, Lie::Drop, &[Kind::Windows]);
}

#[test]
fn one_point_in_a_million_doubled_is_caught() {
    catch(Protocol::Line, Lie::Double, &ALL);
    catch(Protocol::Json, Lie::Double, &[Kind::Windows]);
}

#[test]
fn one_point_in_a_million_reordered_is_caught() {
    catch(Protocol::Line, Lie::Reorder, &ALL);
    catch(Protocol::Json, Lie::Reorder, &[Kind::Windows]);
}

#[test]
fn one_point_in_a_million_altered_by_a_millionth_is_caught() {
    catch(Protocol::Line, Lie::Alter, &ALL);
    catch(Protocol::Json, Lie::Alter, &[Kind::Windows]);
}

/// One request after the other, until the client closes.
fn serve(stream: TcpStream, liar: &Mutex<Liar>) {
    let mut input = BufReader::new(stream);
    let mut body = Vec::new();
    loop {
        let (mut length, mut client) = (0, String::new());
        loop {
            let mut line = String::new();
            if input.read_line(&mut line).expect("a head") == 0 {
                return;
            }
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().expect("a length");
                }
                Some(("X-Client-ID", value)) => client = value.to_string(),
                None if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        body.resize(length, 0);
        input.read_exact(&mut body).expect("a body");
        liar.lock().expect("no panic").take(&client, &body);
        input.get_mut().write_all(b"HTTP/1.1 204 No Content\r\n\r\n").expect("answered");
    }
}

/// The same over a socket, and by the command itself.
#[test]
fn a_server_that_drops_one_is_caught_over_the_wire_by_the_command() {
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = dir.path().join("ledger");
    let liar = Arc::new(Mutex::new(Liar::new(Lie::Drop)));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address: SocketAddr = listener.local_addr().expect("bound");
    let server = std::thread::spawn({
        let liar = liar.clone();
        move || serve(listener.accept().expect("a connection").0, &liar)
    });
    let mut stream = TcpStream::connect(address).expect("connected");
    send(&plan(Protocol::Line), &ledger, |client, body| {
        let name = client::name(client);
        let head =
            format!("POST /write HTTP/1.1\r\nHost: l\r\nX-Client-ID: {name}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).expect("sent");
        stream.write_all(body).expect("sent");
        let mut answer = [0; 27];
        stream.read_exact(&mut answer).expect("answered");
        assert!(answer.starts_with(b"HTTP/1.1 204"));
    });
    drop(stream);
    server.join().expect("served");
    let liar = liar.lock().expect("no panic");
    let dump = dir.path().join("dump");
    let mut lines = Lines::new(&liar, Kind::LogDump);
    std::io::copy(&mut lines, &mut std::fs::File::create(&dump).expect("a file")).expect("written");
    let windows = dir.path().join("windows");
    std::fs::write(&windows, liar.windows()).expect("written");

    let verify = |source: &str, file: &PathBuf| {
        std::process::Command::new(env!("CARGO_BIN_EXE_metricstream-loadgen"))
            .args(["verify", "--horizon", "1000000000", "--json", "--ledger"])
            .arg(&ledger)
            .arg(source)
            .arg(file)
            .output()
            .expect("started")
    };
    for (source, file) in [("--log-dump", &dump), ("--windows", &windows)] {
        let output = verify(source, file);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{text} {}", String::from_utf8_lossy(&output.stderr));
        let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(verdict[0]["ok"], false);
        let sentence = verdict[0]["first"][0]["sentence"].as_str().expect("named");
        assert!(sentence.starts_with("missing: ") && sentence.contains(" of client-000001 at 17672256"), "{sentence}");
    }
    // A ledger is no dump.
    let output = verify("--log-dump", &ledger);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("line 1 is not a point as JSON"));
}
