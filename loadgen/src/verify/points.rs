//! Compares points, as `log dump` or a sink gives them, with the ledgers.
//!
//! A table from the hash of a point's identity (series and timestamp) to its place takes 28 bytes a point on average;
//! the point itself is made again when it is met.
//!
//! What a line is: the log's (`name`, `tags`, `client_id`, `timestamp_ns`, `value`, `log`), or a sink's, which may have
//! `timestamp` instead, and an `id`: of lines with equal ids the first counts and the others are repeats.
//!
//! Order is compared within each series, for each log by itself, where the ledger knows it: a point is out of order when
//! the last request that may have carried it was over before a point that stands ahead of it was ever sent, or when one
//! request carried both, and the other way round. Requests that were under way together may be taken in either order.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::io::BufRead;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Options;
use super::expected::{Expected, Sent};
use super::progress::Progress;
use super::series_hash::{self, Tags, Text};
use super::verdict::{Fault, FaultKind, Verdict};
use crate::commands::Failure;
use crate::workload::Point;

/// For keys that are hashes.
#[derive(Default)]
pub(super) struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 keys are hashed")
    }
    #[inline]
    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

pub(super) type HashedMap<V> = HashMap<u64, V, BuildHasherDefault<AsIs>>;

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, default)]
    log: Option<Text<'a>>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    client_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    name: Option<Text<'a>>,
    #[serde(default)]
    tags: Tags,
    #[serde(default)]
    timestamp_ns: Option<i64>,
    #[serde(default)]
    timestamp: Option<i64>,
    #[serde(borrow, default)]
    value: Option<&'a RawValue>,
    /// Only lines of the aggregate log have one of these.
    #[serde(default)]
    window_s: Option<u32>,
    #[serde(default)]
    era: Option<u32>,
}

/// Where a point is, and how often it was found.
#[derive(Clone, Copy)]
struct Place {
    batch: u32,
    /// Index in the low 24 bits, the count above
    index_and_seen: u32,
}

const INDEX_BITS: u32 = 24;
const INDEX_MASK: u32 = (1 << INDEX_BITS) - 1;

impl Place {
    fn index(self) -> u32 {
        self.index_and_seen & INDEX_MASK
    }
    fn seen(self) -> u32 {
        self.index_and_seen >> INDEX_BITS
    }
}

/// The last point of a series in a log.
#[derive(Clone, Copy, Default)]
struct Last {
    /// The latest first sending among the points so far
    latest_sent: u32,
    /// The last point's
    batch: u32,
    index: u32,
}

/// The series of one run in one log.
struct Order {
    log: String,
    run: u16,
    slots: Vec<Last>,
}

pub struct Points<'a> {
    expected: &'a Expected,
    options: &'a Options,
    verdict: Verdict,
    table: HashedMap<Place>,
    ids: HashSet<u64, BuildHasherDefault<AsIs>>,
    order: Vec<Order>,
    /// All series of the ledgers, once they are needed
    known: Option<HashSet<u64, BuildHasherDefault<AsIs>>>,
    /// What the server calls all clients, where the plan leaves it open
    one_name: Option<String>,
    bad: u64,
    found: u64,
    kept: u64,
    repeats: u64,
    equal_ids: u64,
    others: u64,
}

/// `comparison` names the source.
pub fn compare(
    expected: &Expected,
    options: &Options,
    comparison: &'static str,
    input: impl BufRead,
) -> Result<Verdict, Failure> {
    let mut points = Points::new(expected, options, comparison)?;
    let mut progress = Progress::new("points read", options.progress);
    super::for_each_line(input, |number, line| {
        progress.add(1);
        points.line(number, line)
    })?;
    Ok(points.finish())
}

impl<'a> Points<'a> {
    fn new(expected: &'a Expected, options: &'a Options, comparison: &'static str) -> Result<Points<'a>, Failure> {
        let mut table = HashedMap::<Place>::default();
        table.reserve(expected.points_max() as usize);
        let mut twice = None;
        let mut progress = Progress::new("points made again from the ledger", options.progress);
        let bad = expected.for_each_point(|n, batch, point| {
            progress.add(1);
            let hash = expected.run(batch).series_hash(point.slot);
            let place = Place { batch: n, index_and_seen: point.index };
            if let Some(other) = table.insert(series_hash::of_place(hash, point.timestamp_ns, 0), place) {
                twice.get_or_insert((other, place));
            }
        });
        if let Some((one, other)) = twice {
            let run = |place: Place| expected.run(&expected.batches[place.batch as usize]);
            let slot = expected.point(one.batch, one.index()).slot;
            return Err(Failure(format!(
                "{} and {} both have a point of {} with one timestamp, so they cannot be told apart; give each process \
                 a seed of its own, and do not name a ledger twice",
                run(one).path,
                run(other).path,
                run(one).describe(slot)
            )));
        }
        Ok(Points {
            expected,
            options,
            verdict: Verdict::new(comparison),
            table,
            ids: HashSet::default(),
            order: Vec::new(),
            known: None,
            one_name: options.client.clone(),
            bad,
            found: 0,
            kept: 0,
            repeats: 0,
            equal_ids: 0,
            others: 0,
        })
    }

    fn line(&mut self, number: u64, text: &[u8]) -> Result<(), Failure> {
        let line: Line<'_> = serde_json::from_slice(text).map_err(|error| {
            Failure(format!("line {number} is not a point as JSON: {error}; is it the output of `log dump`?"))
        })?;
        if line.window_s.is_some() || line.era.is_some() {
            return Ok(());
        }
        let (Some(name), Some(timestamp_ns)) = (&line.name, line.timestamp_ns.or(line.timestamp)) else {
            return Err(Failure(format!(
                "line {number} is not a point: it has no `name`, or no `timestamp_ns` or `timestamp`"
            )));
        };
        self.found += 1;
        if let Some(id) = line.id
            && !self.ids.insert(series_hash::of_bytes(id.get().as_bytes()))
        {
            self.equal_ids += 1;
            return Ok(());
        }
        let series = series_hash::of_name(&name.0).wrapping_add(line.tags.0);
        let Some(place) = self.table.get_mut(&series_hash::of_place(series, timestamp_ns, 0)) else {
            self.foreign(series, &line, timestamp_ns, text);
            return Ok(());
        };
        let before = place.seen();
        place.index_and_seen = place.index() | (before + 1).min(255) << INDEX_BITS;
        let place = *place;
        let batch = self.expected.batches[place.batch as usize];
        let point = self.expected.point(place.batch, place.index());
        self.compare(&batch, &point, &line, before);
        // One too many has no place in the order.
        if !self.options.any_order && before < batch.copies_max() {
            self.compare_order(place, &batch, &point, line.log.as_ref().map_or("", |log| &log.0));
        }
        Ok(())
    }

    fn compare(&mut self, batch: &Sent, point: &Point, line: &Line<'_>, before: u32) {
        let copies_max = batch.copies_max();
        if copies_max == 0 {
            let fate = match batch.refused {
                0 => "none: its batch was made and never sent".to_string(),
                n => format!("none: all {n} requests with it were refused"),
            };
            return self.fault(FaultKind::Refused, batch, point, fate, "it".to_string());
        }
        if before == 0 {
            self.kept += 1;
        } else if before < copies_max {
            self.repeats += 1;
        } else {
            let expected = match copies_max {
                1 => "it once".to_string(),
                n => format!("it at most {n} times, as often as its batch was sent and not refused"),
            };
            self.fault(FaultKind::Doubled, batch, point, expected, format!("it {} times", before + 1));
        }
        let expected = point.value.to_f64();
        let found = line.value.map_or("nothing", |value| value.get());
        if found.parse::<f64>().ok().map(f64::to_bits) != Some(expected.to_bits()) {
            self.fault(FaultKind::Altered, batch, point, format!("the value {expected}"), format!("the value {found}"));
        }
        let client = line.client_id.as_ref().map_or("", |client| &client.0);
        let told = self.expected_client(batch);
        let wanted = match told {
            Some(name) => name,
            // Whatever the first was taken for.
            None => self.one_name.get_or_insert_with(|| client.to_string()).clone(),
        };
        if client != wanted {
            let expected = format!("the client {wanted:?} (say --client NAME when the server names clients otherwise)");
            self.fault(FaultKind::Altered, batch, point, expected, format!("the client {client:?}"));
        }
    }

    fn expected_client(&self, batch: &Sent) -> Option<String> {
        match &self.options.client {
            Some(_) => None,
            None => self.expected.client_name(batch),
        }
    }

    fn compare_order(&mut self, place: Place, batch: &Sent, point: &Point, log: &str) {
        let workload = &self.expected.run(batch).workload;
        let known = self.order.iter().position(|order| order.run == batch.run && order.log == log);
        let at = known.unwrap_or_else(|| {
            let slots = vec![Last::default(); workload.series().total() as usize];
            self.order.push(Order { log: log.to_string(), run: batch.run, slots });
            self.order.len() - 1
        });
        let slot = workload.series().first(point.slot.client) + point.slot.number;
        let last = &mut self.order[at].slots[slot as usize];
        let before = *last;
        *last =
            Last { latest_sent: before.latest_sent.max(batch.first_sent), batch: place.batch, index: place.index() };
        let mut wrong = batch.last_over < before.latest_sent;
        if before.latest_sent > 0 {
            let other = self.expected.batches[before.batch as usize];
            let one_request =
                batch.copies_max() == 1 && other.copies_max() == 1 && batch.first_sent == other.first_sent;
            let (here, there) = (batch.batch().number, other.batch().number);
            wrong |= one_request && (here, place.index()) < (there, before.index);
        }
        if wrong {
            let other = self.expected.point(before.batch, before.index);
            let found = format!("it behind the one at {}, which was sent later", other.timestamp_ns);
            self.fault(FaultKind::OutOfOrder, batch, point, "it in the order sent".to_string(), found);
        }
    }

    fn foreign(&mut self, series: u64, line: &Line<'_>, timestamp_ns: i64, text: &[u8]) {
        let known = self.known.get_or_insert_with(|| all_series(self.expected));
        let known = known.contains(&series);
        if !known && self.options.others_allowed {
            self.others += 1;
            return;
        }
        self.verdict.fault(FaultKind::Foreign, || {
            let expected = if known { "no point of it then" } else { "no such series" };
            let value = line.value.map_or("nothing", |value| value.get());
            let client = line.client_id.as_ref().map_or("", |client| &client.0).to_string();
            Fault::new(
                FaultKind::Foreign,
                client,
                describe_line(text),
                timestamp_ns,
                expected.to_string(),
                format!("the value {value}"),
            )
        });
    }

    fn fault(&mut self, kind: FaultKind, batch: &Sent, point: &Point, expected: String, found: String) {
        self.verdict.fault(kind, || name_fault(self.expected, kind, batch, point, expected, found));
    }

    fn finish(mut self) -> Verdict {
        let (mut acknowledged, mut unknown, mut refused) = (0, 0, 0);
        let mut progress = Progress::new("points looked for", self.options.progress);
        let (expected, table, verdict) = (self.expected, &self.table, &mut self.verdict);
        expected.for_each_point(|_, batch, point| {
            progress.add(1);
            match (batch.acknowledged, batch.unknown) {
                (0, 0) => refused += 1,
                (0, _) => unknown += 1,
                _ => {
                    acknowledged += 1;
                    let hash = expected.run(batch).series_hash(point.slot);
                    let place = table.get(&series_hash::of_place(hash, point.timestamp_ns, 0));
                    if place.is_none_or(|place| place.seen() == 0) {
                        verdict.fault(FaultKind::Missing, || {
                            let value = format!("the value {}", point.value.to_f64());
                            name_fault(expected, FaultKind::Missing, batch, &point, value, "nothing".to_string())
                        });
                    }
                }
            }
        });
        let totals = &expected.totals;
        for (name, count) in [
            ("requests acknowledged", totals.requests_acknowledged),
            ("requests refused", totals.requests_refused),
            ("requests unknown", totals.requests_unknown),
            ("points acknowledged", acknowledged),
            ("points unknown", unknown),
            ("points refused or never sent", refused),
            ("bad points", self.bad),
            ("points found", self.found),
            ("points found and sent", self.kept),
            ("repeats by retries", self.repeats),
            ("lines with an id seen before", self.equal_ids),
            ("points of other series", self.others),
        ] {
            self.verdict.total(name, count);
        }
        self.verdict.notes.clone_from(&expected.notes);
        self.verdict
    }
}

pub(super) fn all_series(expected: &Expected) -> HashSet<u64, BuildHasherDefault<AsIs>> {
    let mut all = HashSet::default();
    expected.for_each_point(|_, batch, point| {
        all.insert(expected.run(batch).series_hash(point.slot));
    });
    all
}

pub(super) fn name_fault(
    all: &Expected,
    kind: FaultKind,
    batch: &Sent,
    point: &Point,
    expected: String,
    found: String,
) -> Fault {
    name_fault_at(all, kind, batch, point, point.timestamp_ns, expected, found)
}

/// Of the point's series, at another time.
pub(super) fn name_fault_at(
    all: &Expected,
    kind: FaultKind,
    batch: &Sent,
    point: &Point,
    timestamp_ns: i64,
    expected: String,
    found: String,
) -> Fault {
    let client = all.client_name(batch).unwrap_or_else(|| format!("client {}", point.slot.client));
    Fault::new(kind, client, all.run(batch).describe(point.slot), timestamp_ns, expected, found)
}

/// `name{key="value"}` of a line's own.
pub(super) fn describe_line(text: &[u8]) -> String {
    let line: serde_json::Value = serde_json::from_slice(text).unwrap_or_default();
    let tags = line["tags"].as_object().map_or_else(Vec::new, |tags| {
        tags.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<String>>()
    });
    format!("{}{{{}}}", line["name"].as_str().unwrap_or("?"), tags.join(","))
}
