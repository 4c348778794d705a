//! The InfluxDB sink: line protocol over HTTP, to the write APIs of version 1 and 2 and to what speaks like them.
//!
//! Points are spread over lanes by their series, and each lane delivers one batch after the other: several writes are in
//! flight, and no series changes its order. A unit is settled when all of its lines are: written, refused by the server and
//! counted, or durable among the dead letters. Retries are made by the lanes, for ever; the cursor waits.
//! Memory is bounded: what waits in the lanes is at most `QUEUED_BYTES_MAX` and one unit.

pub mod answer;
pub mod client;
pub mod delivery;
pub mod init;
mod lane;
mod tls;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::calls::CallBooks;
use super::dead_letter::{Bounds, DeadLetters, Fate};
use super::id::{self, Ids};
use super::letters_command::Resend;
use super::line::{self, Lines, Schema, is_aggregate};
use super::sink::{Report, Settled, Sink, SinkFailed, UnitId};
use super::unit::{Item, Unit};
use crate::config::{self, InfluxApi, InfluxSchema};
use client::{Client, Target, authorization};
use lane::{Batch, Done, Shared};
use tls::TlsFiles;

const QUEUED_BYTES_MAX: usize = 24 << 20;
/// How soon answers are looked at while writes are in flight.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// .. and while lanes wait for the server.
const LOOK_SELDOM: Duration = Duration::from_millis(50);

/// Names of the kinds of answers, for the books.
pub const KINDS: &[&str] = &["written", "partial", "bad_line", "too_large", "held", "busy", "timeout", "network"];

#[derive(Clone, Debug)]
pub struct Settings {
    pub name: String,
    pub url: String,
    /// Of raw points, and of windows
    pub targets: [Target; 2],
    pub schema: Schema,
    /// Unsigned integers have a type of their own there
    pub unsigned: bool,
    pub gzip: bool,
    pub batch_points: usize,
    pub batch_bytes: usize,
    pub batch_within: Duration,
    pub lanes: usize,
    pub request_within: Duration,
    pub retry_most: Duration,
    pub credentials: Credentials,
    pub tls: TlsFiles,
    pub dead_letters: PathBuf,
}

impl Settings {
    /// With the secrets and certificates as they are now. Errors are one sentence.
    fn client_now(&self, connections: usize) -> Result<Client, String> {
        Client::new(connections, self.request_within, self.credentials.header()?, &self.tls)
    }
}

/// Where the secrets are. Read whenever a client is made, so that they are in no configuration that is printed.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    pub username: String,
    pub password_file: Option<PathBuf>,
    pub token_file: Option<PathBuf>,
}

impl Credentials {
    /// The Authorization header. Errors are one sentence.
    pub fn header(&self) -> Result<Option<String>, String> {
        let token = self.token_file.as_ref().map(secret).transpose()?;
        let password = self.password_file.as_ref().map(secret).transpose()?;
        let user = (!self.username.is_empty()).then(|| (self.username.as_str(), password.as_deref().unwrap_or("")));
        Ok(authorization(user, token.as_deref()))
    }
}

/// A relative path counts from systemd's directory of credentials, where there is one.
fn secret(path: &PathBuf) -> Result<String, String> {
    let path = match std::env::var_os("CREDENTIALS_DIRECTORY") {
        Some(directory) if path.is_relative() => PathBuf::from(directory).join(path),
        _ => path.clone(),
    };
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    let text = text.trim();
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(format!("{} holds no token or password on one line", path.display()));
    }
    Ok(text.to_owned())
}

impl Settings {
    /// Of a sink without [`problems`].
    pub fn new(sink: &config::Sink, data_dir: &std::path::Path) -> Settings {
        let target = |is_aggregate: bool| match sink.api {
            InfluxApi::V1 => Target::V1 {
                database: sink.database.clone(),
                retention_policy: if is_aggregate {
                    sink.retention_policy_aggregates.clone()
                } else {
                    sink.retention_policy.clone()
                },
            },
            InfluxApi::V2 => Target::V2 {
                org: sink.org.clone(),
                bucket: if is_aggregate { sink.bucket_aggregates.clone() } else { sink.bucket.clone() },
            },
        };
        Settings {
            name: sink.name.clone(),
            url: sink.url.clone(),
            targets: [target(false), target(true)],
            schema: match sink.schema {
                InfluxSchema::Platform => Schema::Platform,
                InfluxSchema::Natural => Schema::Natural,
            },
            unsigned: sink.api == InfluxApi::V2,
            gzip: sink.gzip,
            batch_points: sink.batch_points as usize,
            batch_bytes: 4 << 20,
            batch_within: sink.batch_within,
            lanes: sink.in_flight as usize,
            request_within: sink.request_within,
            retry_most: sink.retry_every_max,
            credentials: Credentials {
                username: sink.username.clone(),
                password_file: sink.password_file.clone(),
                token_file: sink.token_file.clone(),
            },
            tls: TlsFiles {
                ca: sink.tls_ca.clone(),
                certificate: sink.tls_certificate.clone(),
                key: sink.tls_key.clone(),
            },
            dead_letters: dead_letters_dir(data_dir, &sink.name),
        }
    }
}

pub fn dead_letters_dir(data_dir: &std::path::Path, sink: &str) -> PathBuf {
    data_dir.join("dead-letters").join(sink)
}

/// What is wrong with the keys of such a sink: key, message.
pub fn problems(sink: &config::Sink) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let rest = sink.url.strip_prefix("http://").or_else(|| sink.url.strip_prefix("https://"));
    let plain = |url: &str| !url.contains(['?', '#', '@']) && !url.chars().any(|c| c.is_whitespace() || c.is_control());
    if !rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && plain(rest)) {
        let message = if sink.url.is_empty() { "a sink of type \"influx\" needs a url" } else { "cannot be used" };
        found.push((
            "url",
            format!("{message}: write http://host:8086 or https://host:8086/path; credentials have keys of their own"),
        ));
    }
    let needed: &[(&str, &String)] = match sink.api {
        InfluxApi::V1 => &[("database", &sink.database)],
        InfluxApi::V2 => {
            &[("org", &sink.org), ("bucket", &sink.bucket), ("bucket_aggregates", &sink.bucket_aggregates)]
        }
    };
    for (key, value) in needed.iter().filter(|(_, value)| value.is_empty()) {
        let _ = value;
        found.push((key, "must be set for this version of InfluxDB's API".to_owned()));
    }
    if sink.token_file.is_some() && !sink.username.is_empty() {
        found.push(("token_file", "either a token or a username, not both".to_owned()));
    }
    if sink.username.is_empty() && sink.password_file.is_some() {
        found.push(("username", "a password needs a username".to_owned()));
    }
    let is_https = sink.url.starts_with("https://");
    let files = [("tls_ca", &sink.tls_ca), ("tls_certificate", &sink.tls_certificate), ("tls_key", &sink.tls_key)];
    if let Some((key, _)) = files.iter().find(|(_, file)| file.is_some() && !is_https) {
        found.push((key, "is for TLS, but the url does not begin with https://".to_owned()));
    }
    if sink.tls && !is_https {
        found.push(("tls", "a sink of type \"influx\" speaks TLS when its url begins with https://".to_owned()));
    }
    if sink.tls_certificate.is_some() != sink.tls_key.is_some() {
        found.push(("tls_key", "tls_certificate and tls_key go together".to_owned()));
    }
    found
}

pub struct InfluxSink {
    settings: Settings,
    ids: Ids,
    calls: Arc<CallBooks>,
    lines: Lines,
    started: Option<Started>,
    generation: u64,
    units: HashMap<UnitId, Open>,
    /// Settled without a line
    ready: Vec<(UnitId, Settled)>,
    /// Text in lanes and in what is being built
    bytes: usize,
    /// Batches in lanes
    in_lanes: usize,
}

/// Once the first unit has come: threads made then run where the sink's own thread runs.
struct Started {
    shared: Arc<Shared>,
    lanes: Vec<LaneEnd>,
    done: Receiver<Done>,
}

struct LaneEnd {
    batches: Sender<Batch>,
    /// Of raw points, and of windows
    building: [Option<Batch>; 2],
}

/// A unit whose lines are not all through.
#[derive(Default)]
struct Open {
    left: u64,
    settled: Settled,
}

impl InfluxSink {
    pub fn new(settings: Settings, node_id: u128, calls: Arc<CallBooks>) -> InfluxSink {
        InfluxSink {
            lines: Lines::new(settings.schema, settings.unsigned),
            settings,
            ids: Ids::new(node_id),
            calls,
            started: None,
            generation: 1,
            units: HashMap::new(),
            ready: Vec::new(),
            bytes: 0,
            in_lanes: 0,
        }
    }

    fn start(&mut self) -> Result<(), SinkFailed> {
        let settings = &self.settings;
        let held = |message| SinkFailed { message, held: true, retry_after: None };
        let client = settings.client_now(settings.lanes).map_err(held)?;
        let letters = DeadLetters::open(&settings.dead_letters, Bounds::default()).map_err(|error| {
            SinkFailed::retry(format!(
                "the directory of dead letters {} cannot be used: {error}",
                settings.dead_letters.display()
            ))
        })?;
        if let Ok(stock) = letters.stock() {
            self.calls.dead_letter_bytes.store(stock.bytes, Ordering::Relaxed);
        }
        let shared = Arc::new(Shared {
            name: settings.name.clone(),
            ids: self.ids.clone(),
            client_now: {
                let settings = settings.clone();
                Box::new(move || settings.client_now(1))
            },
            labels: settings.targets.each_ref().map(Target::label),
            urls: settings.targets.each_ref().map(|target| target.write_url(&settings.url)),
            gzip: settings.gzip,
            retry_most: settings.retry_most,
            calls: self.calls.clone(),
            dead_letters: Mutex::new(letters),
            batch_bytes_max: AtomicUsize::new(settings.batch_bytes),
            generation: AtomicU64::new(self.generation),
            finishing: AtomicBool::new(false),
            wake: (Mutex::new(()), Condvar::new()),
        });
        let (done, done_end) = channel();
        let mut lanes = Vec::new();
        for n in 0..settings.lanes {
            let (batches, batches_end) = channel();
            let (shared, client, done) = (shared.clone(), client.clone(), done.clone());
            let seed = crate::reducer::thread::wall_ns() as u64 ^ (n as u64) << 56;
            std::thread::Builder::new()
                .name(format!("ms-influx-{n}"))
                .spawn(move || lane::run(&shared, client, &batches_end, &done, seed))
                .map_err(|error| SinkFailed::retry(format!("a thread cannot be started: {error}")))?;
            lanes.push(LaneEnd { batches, building: [None, None] });
        }
        self.started = Some(Started { shared, lanes, done: done_end });
        Ok(())
    }

    /// Hands on what is old enough, or all.
    fn hand_on(&mut self, now: Instant, all: bool) {
        let Some(started) = &mut self.started else { return };
        for lane in &mut started.lanes {
            for building in &mut lane.building {
                let due = |batch: &mut Batch| all || now.duration_since(batch.begun) >= self.settings.batch_within;
                if let Some(batch) = building.take_if(due) {
                    self.in_lanes += 1;
                    lane.batches.send(batch).expect("a lane lives as long as its sink");
                }
            }
        }
    }

    fn take(&mut self, done: Done, report: &mut Report) {
        if done.generation != self.generation {
            return;
        }
        self.bytes -= done.bytes;
        self.in_lanes -= 1;
        for (unit, settled) in done.settled {
            let open = self.units.get_mut(&unit).expect("its lines were counted");
            open.settled.delivered += settled.delivered;
            open.settled.refused += settled.refused;
            open.settled.dead_lettered += settled.dead_lettered;
            open.left -= settled.delivered + settled.refused + settled.dead_lettered;
            if open.left == 0 {
                let open = self.units.remove(&unit).expect("just found");
                report.settled.push((unit, open.settled));
            }
        }
    }
}

impl Sink for InfluxSink {
    fn has_room(&self) -> bool {
        self.bytes < QUEUED_BYTES_MAX
    }

    fn send(&mut self, unit: &mut Unit<'_>, now: Instant) -> Result<(), SinkFailed> {
        if self.started.is_none() {
            self.start()?;
        }
        let Started { shared, lanes, .. } = self.started.as_mut().expect("started above");
        let (id, log_id, segment_id) = (unit.id, unit.log_id, unit.segment_id);
        let target = usize::from(is_aggregate(log_id));
        let (points_max, bytes_max) = (self.settings.batch_points, shared.batch_bytes_max.load(Ordering::Relaxed));
        let (lines, generation) = (&mut self.lines, self.generation);
        let mut open = Open::default();
        let count = lanes.len() as u64;
        let mut unreadable = 0;
        unit.for_each(|item| {
            let (place, rendered, hash) = match &item {
                Item::Point(point) => match lines.series(log_id, segment_id, point) {
                    Some(rendered) => ((point.epoch, point.number), Some((rendered, point)), None),
                    None => {
                        unreadable += 1;
                        return Ok(());
                    }
                },
                Item::Window(window) => ((window.epoch, window.number), None, Some(line::hash(window.view.key))),
            };
            let hash = rendered.as_ref().map_or_else(|| hash.expect("one of them"), |(rendered, _)| rendered.hash);
            let lane = &mut lanes[(hash % count) as usize];
            let batch = lane.building[target].get_or_insert_with(|| Batch::new(generation, target, now));
            let before = batch.text.len();
            match (&rendered, &item) {
                (Some((rendered, point)), _) => rendered.point(point.value, point.timestamp_ns, &mut batch.text),
                (None, Item::Window(window)) => lines.window(window, &mut batch.text),
                (None, Item::Point(_)) => unreachable!("rendered above"),
            }
            if batch.units.last().is_none_or(|(unit, _, _)| *unit != id) {
                batch.units.push((id, log_id, batch.ends.len() as u32));
            }
            batch.ends.push(batch.text.len() as u32);
            batch.places.push(place);
            open.left += 1;
            self.bytes += batch.text.len() - before;
            if batch.ends.len() >= points_max || batch.text.len() >= bytes_max {
                let batch = lane.building[target].take().expect("just filled");
                self.in_lanes += 1;
                lane.batches.send(batch).expect("a lane lives as long as its sink");
            }
            Ok::<_, SinkFailed>(())
        })?;
        // Keys are checked where records are made; a point that has none can be sent nowhere.
        open.settled.refused = unreadable;
        if open.left > 0 {
            self.units.insert(id, open);
        } else if unreadable > 0 {
            self.ready.push((id, open.settled));
        }
        Ok(())
    }

    fn turn(&mut self, now: Instant, report: &mut Report) -> Result<(), SinkFailed> {
        report.settled.append(&mut self.ready);
        while let Some(done) = self.started.as_ref().and_then(|started| started.done.try_recv().ok()) {
            self.take(done, report);
        }
        self.hand_on(now, false);
        Ok(())
    }

    fn next_turn(&self, now: Instant) -> Option<Instant> {
        let waiting = self.calls.waiting.load(Ordering::Relaxed) + self.calls.held.load(Ordering::Relaxed) > 0;
        let look = (self.in_lanes > 0).then(|| now + if waiting { LOOK_SELDOM } else { LOOK_EVERY });
        let lanes = self.started.iter().flat_map(|started| &started.lanes);
        let oldest = lanes.flat_map(|lane| &lane.building).flatten().map(|batch| batch.begun).min();
        look.into_iter().chain(oldest.map(|begun| begun + self.settings.batch_within)).min()
    }

    fn finish(&mut self, deadline: Instant, report: &mut Report) -> Result<(), SinkFailed> {
        self.hand_on(Instant::now(), true);
        let Some(started) = &self.started else { return Ok(()) };
        // Lanes that wait for the server would not be through in time.
        started.shared.finishing.store(true, Ordering::Release);
        started.shared.wake_all();
        while self.in_lanes > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(done) = self.started.as_ref().and_then(|started| started.done.recv_timeout(left).ok()) else {
                return Err(SinkFailed::retry("writes to InfluxDB are still under way"));
            };
            self.take(done, report);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.generation += 1;
        self.units.clear();
        self.ready.clear();
        (self.bytes, self.in_lanes) = (0, 0);
        if let Some(started) = &mut self.started {
            for lane in &mut started.lanes {
                lane.building = [None, None];
            }
            started.shared.generation.store(self.generation, Ordering::Release);
            started.shared.wake_all();
        }
    }
}

/// Dead letters once more, one line a request.
pub fn resend(settings: Settings) -> Result<Resend, String> {
    let client = settings.client_now(1)?;
    Ok(Box::new(move |entry| {
        let target = settings.targets.iter().find(|target| target.label() == entry.target);
        // The sink may have got another database or bucket since.
        let now = &settings.targets[usize::from(id::is_of_a_window(&entry.id))];
        let url = target.unwrap_or(now).write_url(&settings.url);
        let heard = client.write(&url, entry.body.as_bytes(), false);
        match answer::judge(&heard, std::time::SystemTime::now()) {
            answer::Verdict::Written | answer::Verdict::Partial { dropped: 0, .. } => Ok(Fate::Taken),
            answer::Verdict::Partial { reason, .. }
            | answer::Verdict::BadLine { reason }
            | answer::Verdict::TooLarge { reason } => Ok(Fate::Refused(reason)),
            answer::Verdict::Held { reason } | answer::Verdict::Later { reason, .. } => Err(reason),
        }
    }))
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn tls_is_judged_with_the_configuration() {
        let (http, https) = ("url = \"http://h:8086\"", "url = \"https://h:8086\"");
        for (lines, expected) in [
            (format!("{https}\ntls_ca = \"ca.pem\"\ntls_certificate = \"c.pem\"\ntls_key = \"c.key\""), ""),
            (format!("{https}\ntls = true"), ""),
            (format!("{http}\ntls = true"), "sink[0].tls: a sink of type \"influx\" speaks TLS when"),
            (format!("{http}\ntls_ca = \"ca.pem\""), "sink[0].tls_ca: is for TLS, but the url"),
            (format!("{https}\ntls_key = \"c.key\""), "sink[0].tls_key: tls_certificate and tls_key go together"),
        ] {
            let text = format!("[[sink]]\nname = \"i\"\ntype = \"influx\"\n{lines}\n");
            let found: Vec<_> = match Config::parse(&text, "test") {
                Ok(_) => Vec::new(),
                Err(problems) => problems.list.into_iter().map(|p| format!("{}: {}", p.key, p.message)).collect(),
            };
            match expected {
                "" => assert!(found.is_empty(), "{lines}: {found:?}"),
                _ => assert!(found.len() == 1 && found[0].starts_with(expected), "{lines}: {found:?}"),
            }
        }
    }
}
