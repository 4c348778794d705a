//! Compares points with the ledgers, whatever source they come from.
//!
//! A table from the hash of a point's identity (series and timestamp) to its place takes 28 bytes a point on average;
//! the point itself is made again when it is met. Ids and identities, where a source has them, take 16 each.
//!
//! Records with equal ids are one record: the first counts, the others are repeats, and must say the same. A point that
//! comes under two ids must be the work of a client that sent it twice, and then has one identity.
//!
//! Order is compared within each series, for each log (or partition) by itself, where the ledger knows it: a point is out
//! of order when the last request that may have carried it was over before a point that stands ahead of it was ever sent,
//! or when one request carried both, and the other way round. Requests that were under way together may be taken in
//! either order.

use super::Options;
use super::clients::Clients;
use super::expected::{Expected, Sent};
use super::hashed::{HashedMap, HashedSet};
use super::progress::Progress;
use super::repeats::{Identities, Ids, Seen};
use super::series_hash;
use super::verdict::{Fault, FaultKind, Verdict};
use crate::commands::Failure;
use crate::workload::Point;

/// A point as a source has it.
pub struct Found<'a> {
    /// The hash of its name and tags
    pub series: u64,
    pub timestamp_ns: i64,
    /// As text
    pub value: &'a str,
    pub client: &'a str,
    /// Order holds within it; `None`: the source has no order.
    pub log: Option<&'a str>,
    /// The record's, where the source has ids
    pub id: Option<&'a str>,
    pub identity: Identity<'a>,
}

/// What makes a client's retry known as the same point.
pub enum Identity<'a> {
    /// The source has none.
    Without,
    /// The source has them; a point may be without.
    Told(Option<&'a str>),
    /// Equal points are one row by themselves.
    OneRow,
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

pub struct Points<'a> {
    expected: &'a Expected,
    options: &'a Options,
    verdict: Verdict,
    table: HashedMap<Place>,
    ids: Ids,
    identities: Identities,
    /// By log and series
    order: HashedMap<Last>,
    /// All series of the ledgers, once they are needed
    known: Option<HashedSet>,
    clients: Clients<'a>,
    bad: u64,
    found: u64,
    kept: u64,
    repeats: u64,
    equal_ids: u64,
    others: u64,
}

impl<'a> Points<'a> {
    /// `comparison` names the source.
    pub fn new(expected: &'a Expected, options: &'a Options, comparison: &'static str) -> Result<Points<'a>, Failure> {
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
            ids: Ids::default(),
            identities: Identities::default(),
            order: HashedMap::default(),
            known: None,
            clients: Clients::new(expected, options),
            bad,
            found: 0,
            kept: 0,
            repeats: 0,
            equal_ids: 0,
            others: 0,
        })
    }

    /// `describe`: the series in words, asked for when no ledger has it.
    pub fn take(&mut self, found: &Found<'_>, describe: impl FnOnce() -> String) {
        self.found += 1;
        let key = series_hash::of_place(found.series, found.timestamp_ns, 0);
        if let Some(id) = found.id {
            match self.ids.note(id, series_hash::of_record(key, found.value, found.client)) {
                Seen::First => {}
                Seen::Again => {
                    self.equal_ids += 1;
                    return;
                }
                Seen::Taken => return self.taken(id, found, describe),
            }
        }
        let Some(place) = self.table.get_mut(&key) else {
            self.foreign(found, describe);
            return;
        };
        let before = place.seen();
        place.index_and_seen = place.index() | (before + 1).min(255) << INDEX_BITS;
        let place = *place;
        let batch = self.expected.batches[place.batch as usize];
        let point = self.expected.point(place.batch, place.index());
        self.compare(&batch, &point, found, before);
        self.compare_identity(&batch, &point, found, key, before);
        // One too many has no place in the order.
        if let Some(log) = found.log
            && !self.options.any_order
            && before < batch.copies_max()
        {
            self.compare_order(place, &batch, &point, log);
        }
    }

    fn compare(&mut self, batch: &Sent, point: &Point, found: &Found<'_>, before: u32) {
        let one_row = matches!(found.identity, Identity::OneRow);
        let copies_max = if one_row { batch.copies_max().min(1) } else { batch.copies_max() };
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
        if found.value.parse::<f64>().ok().map(f64::to_bits) != Some(expected.to_bits()) {
            let value = format!("the value {}", found.value);
            self.fault(FaultKind::Altered, batch, point, format!("the value {expected}"), value);
        }
        if let Some(expected) = self.clients.wrong(batch, found.client) {
            self.fault(FaultKind::Altered, batch, point, expected, format!("the client {:?}", found.client));
        }
    }

    fn compare_identity(&mut self, batch: &Sent, point: &Point, found: &Found<'_>, key: u64, before: u32) {
        let Identity::Told(identity) = found.identity else { return };
        let (kind, expected, what) = match (self.identities.note(identity, key), before) {
            (Some(Seen::First), 0) | (None, 0) | (Some(Seen::Again), _) => return,
            (Some(Seen::First), _) => (
                FaultKind::Doubled,
                "it again under the identity it came with first, as a client's retry has it",
                "another identity",
            ),
            (None, _) => (FaultKind::Doubled, "it again only with an identity, as a client's retry has it", "none"),
            (Some(Seen::Taken), _) => (FaultKind::Altered, "an identity of its own", "that of another point"),
        };
        let found = identity.map_or_else(|| what.to_string(), |identity| format!("{what}, {identity}"));
        self.fault(kind, batch, point, expected.to_string(), found);
    }

    /// One id for two records: who removes repeats by id would lose one.
    fn taken(&mut self, id: &str, found: &Found<'_>, describe: impl FnOnce() -> String) {
        self.verdict.fault(FaultKind::Altered, || {
            Fault::new(
                FaultKind::Altered,
                found.client.to_string(),
                describe(),
                found.timestamp_ns,
                format!("what came under the id {id} before"),
                format!("another record, with the value {}", found.value),
            )
        });
    }

    fn compare_order(&mut self, place: Place, batch: &Sent, point: &Point, log: &str) {
        let slot = self.expected.run(batch).workload.series().first(point.slot.client) + point.slot.number;
        let log = series_hash::of_bytes(log.as_bytes());
        let last = self.order.entry(series_hash::of_place(log, slot as i64, batch.run.into())).or_default();
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

    fn foreign(&mut self, found: &Found<'_>, describe: impl FnOnce() -> String) {
        let known = self.known.get_or_insert_with(|| all_series(self.expected));
        let known = known.contains(&found.series);
        if !known && self.options.others_allowed {
            self.others += 1;
            return;
        }
        self.verdict.fault(FaultKind::Foreign, || {
            let expected = if known { "no point of it then" } else { "no such series" };
            Fault::new(
                FaultKind::Foreign,
                found.client.to_string(),
                describe(),
                found.timestamp_ns,
                expected.to_string(),
                format!("the value {}", found.value),
            )
        });
    }

    fn fault(&mut self, kind: FaultKind, batch: &Sent, point: &Point, expected: String, found: String) {
        self.verdict.fault(kind, || name_fault(self.expected, kind, batch, point, expected, found));
    }

    pub fn finish(mut self) -> Verdict {
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
            ("records with an id seen before", self.equal_ids),
            ("points of other series", self.others),
        ] {
            self.verdict.total(name, count);
        }
        self.verdict.notes.clone_from(&expected.notes);
        self.verdict
    }
}

pub(super) fn all_series(expected: &Expected) -> HashedSet {
    let mut all = HashedSet::default();
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
