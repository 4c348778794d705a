//! What the ledgers say: every batch, and what became of the requests that carried it.

use std::collections::HashMap;
use std::path::Path;

use super::series_hash;
use crate::commands::Failure;
use crate::ledger::{CLOCK_EVERY_NS, Event, NoAnswer, Reader};
use crate::plan::Plan;
use crate::workload::series::{LIFE_TAG, Slot};
use crate::workload::{Batch, Point, Workload, client};

/// A batch and its fate, in 48 bytes: there is one for each point where batches have one point.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    number: u64,
    stamp_ns: i64,
    client: u32,
    /// Which ledger
    pub run: u16,
    pub acknowledged: u16,
    pub unknown: u16,
    pub refused: u16,
    /// When it was sent first, as a count of events. One request has one such number.
    pub first_sent: u32,
    /// When the last request that may have kept it was over; `u32::MAX` while it may still come
    pub last_over: u32,
    /// When it was acknowledged first; `u32::MAX` for never
    pub first_acknowledged: u32,
}

impl Sent {
    pub fn batch(&self) -> Batch {
        Batch { client: self.client, number: self.number, stamp_ns: self.stamp_ns }
    }

    /// How often its points may be there.
    pub fn copies_max(&self) -> u32 {
        u32::from(self.acknowledged) + u32::from(self.unknown)
    }
}

/// One ledger.
pub struct Run {
    pub path: String,
    pub plan: Plan,
    pub workload: Workload,
    /// (event, time): the events up to this one were over by this time
    clocks: Vec<(u32, i64)>,
    /// Of each slot, without `life`; one slot after the other
    series: Vec<u64>,
}

impl Run {
    #[inline]
    pub fn series_hash(&self, slot: Slot) -> u64 {
        let hash = self.series[(self.workload.series().first(slot.client) + slot.number) as usize];
        if !self.workload.series().has_churn() {
            return hash;
        }
        let mut digits = itoa::Buffer::new();
        hash.wrapping_add(series_hash::of_tag(LIFE_TAG, digits.format(slot.life)))
    }

    /// By when what happened at this event had happened; `None` when the ledger has no clock.
    pub fn by_ns(&self, event: u32) -> Option<i64> {
        let at = self.clocks.partition_point(|(clock, _)| *clock < event);
        match self.clocks.get(at) {
            Some((_, ns)) => Some(*ns),
            None => self.clocks.last().map(|(_, ns)| ns.saturating_add(CLOCK_EVERY_NS)),
        }
    }

    /// `name{key="value"}`, for people.
    pub fn describe(&self, slot: Slot) -> String {
        let tags: Vec<String> = self.workload.tags(slot).iter().map(|(k, v)| format!("{k}={v:?}")).collect();
        format!("{}{{{}}}", self.workload.series().name(slot), tags.join(","))
    }
}

#[derive(Default)]
pub struct Totals {
    pub requests_acknowledged: u64,
    pub requests_refused: u64,
    pub requests_unknown: u64,
}

pub struct Expected {
    pub runs: Vec<Run>,
    pub batches: Vec<Sent>,
    pub totals: Totals,
    pub notes: Vec<String>,
}

/// In the place of a batch that was not noted.
const NO_BATCH: u32 = u32::MAX;
/// Numbers further ahead are taken for damage.
const GAP_MAX: u64 = 1 << 20;

/// A request under way.
struct Request {
    client: u32,
    first: u64,
    count: u32,
    event: u32,
}

impl Expected {
    pub fn load(paths: &[impl AsRef<Path>]) -> Result<Expected, Failure> {
        let mut expected =
            Expected { runs: Vec::new(), batches: Vec::new(), totals: Totals::default(), notes: Vec::new() };
        for path in paths {
            expected.load_one(path.as_ref())?;
        }
        Ok(expected)
    }

    fn load_one(&mut self, path: &Path) -> Result<(), Failure> {
        let told = |problem: crate::ledger::Problem| Failure(problem.to_string());
        let mut reader = Reader::open(path).map_err(told)?;
        let plan = reader.plan().clone();
        let wrong = |what: String| {
            Failure(format!("the ledger {} contradicts itself: {what}; it cannot be compared with", path.display()))
        };
        if plan.workload.batch_points >= 1 << 24 {
            return Err(wrong(format!("{} points in a batch", plan.workload.batch_points)));
        }
        let run = self.runs.len() as u16;
        // Where each client's batches are, in the order of their numbers.
        let mut of_client: Vec<Vec<u32>> = vec![Vec::new(); plan.workload.clients.max(1) as usize];
        let mut under_way: HashMap<u64, Request> = HashMap::new();
        let mut clocks = Vec::new();
        let mut event = 0_u32;
        while let Some(note) = reader.event().map_err(told)? {
            event += 1;
            let mut over = |expected: &mut Expected, id: u64| {
                let request = under_way.remove(&id).ok_or_else(|| {
                    wrong(format!("request {id} has an outcome and was not noted as sent, or has two"))
                })?;
                Ok::<_, Failure>(expected.range(&of_client, &request))
            };
            match note {
                Event::Batch(batch) => {
                    let numbers = of_client
                        .get_mut(batch.client as usize)
                        .ok_or_else(|| wrong(format!("a batch of client {}, beyond the plan's", batch.client)))?;
                    // Batches may be noted out of turn, and one that never left is not noted at all.
                    if batch.number >= numbers.len() as u64 + GAP_MAX {
                        return Err(wrong(format!(
                            "batch {} of client {} follows {} batches",
                            batch.number,
                            batch.client,
                            numbers.len()
                        )));
                    }
                    let number = batch.number as usize;
                    numbers.resize(numbers.len().max(number + 1), NO_BATCH);
                    if std::mem::replace(&mut numbers[number], self.batches.len() as u32) != NO_BATCH {
                        return Err(wrong(format!("batch {number} of client {} was noted twice", batch.client)));
                    }
                    self.batches.push(Sent {
                        number: batch.number,
                        stamp_ns: batch.stamp_ns,
                        client: batch.client,
                        run,
                        acknowledged: 0,
                        unknown: 0,
                        refused: 0,
                        first_sent: u32::MAX,
                        last_over: 0,
                        first_acknowledged: u32::MAX,
                    });
                }
                Event::Sent { request, client, first, count } => {
                    let last = first.checked_add(u64::from(count)).map(|end| first as usize..end as usize);
                    let carried = of_client.get(client as usize).zip(last).and_then(|(all, range)| all.get(range));
                    if carried.is_none_or(|batches| batches.is_empty() || batches.contains(&NO_BATCH)) {
                        return Err(wrong(format!("request {request} carries batches that were not noted")));
                    }
                    let sent = Request { client, first, count, event };
                    if under_way.insert(request, sent).is_some() {
                        return Err(wrong(format!("request {request} was sent twice")));
                    }
                }
                Event::Acknowledged { request, .. } => {
                    for (batch, sent) in over(self, request)? {
                        let batch = &mut self.batches[batch as usize];
                        batch.acknowledged = batch.acknowledged.saturating_add(1);
                        batch.first_sent = batch.first_sent.min(sent);
                        batch.last_over = batch.last_over.max(event);
                        batch.first_acknowledged = batch.first_acknowledged.min(event);
                    }
                    self.totals.requests_acknowledged += 1;
                }
                Event::Refused { request, .. } | Event::Unknown { request, cause: NoAnswer::RefusedConnection } => {
                    for (batch, _) in over(self, request)? {
                        let batch = &mut self.batches[batch as usize];
                        batch.refused = batch.refused.saturating_add(1);
                    }
                    self.totals.requests_refused += 1;
                }
                Event::Unknown { request, .. } => {
                    let batches = over(self, request)?;
                    self.unknown(batches);
                }
                Event::Clock { unix_ns } => clocks.push((event, unix_ns)),
            }
        }
        for request in under_way.values() {
            let batches = self.range(&of_client, request);
            self.unknown(batches);
        }
        if reader.dropped_bytes() > 0 {
            self.notes.push(format!(
                "the ledger {} ends torn: {} bytes left out; what was under way counts as unknown",
                path.display(),
                reader.dropped_bytes()
            ));
        }
        let workload = Workload::without_text(&plan);
        let series = workload.series();
        let mut hashes = Vec::with_capacity(series.total() as usize);
        for client in 0..series.clients() {
            for number in 0..series.slots(client) {
                let slot = Slot { client, number, life: 0 };
                let tags = series.tags(slot);
                let tags = tags.iter().fold(0, |sum: u64, (k, v)| sum.wrapping_add(series_hash::of_tag(k, v)));
                hashes.push(series_hash::of_name(&series.name(slot)).wrapping_add(tags));
            }
        }
        self.runs.push(Run { path: path.display().to_string(), plan, workload, clocks, series: hashes });
        Ok(())
    }

    /// The batches that a request carried, each with the event at which it was sent.
    fn range(&self, of_client: &[Vec<u32>], request: &Request) -> Vec<(u32, u32)> {
        let first = request.first as usize;
        let batches = &of_client[request.client as usize][first..first + request.count as usize];
        batches.iter().map(|batch| (*batch, request.event)).collect()
    }

    fn unknown(&mut self, batches: Vec<(u32, u32)>) {
        for (batch, sent) in batches {
            let batch = &mut self.batches[batch as usize];
            batch.unknown = batch.unknown.saturating_add(1);
            batch.first_sent = batch.first_sent.min(sent);
            // It may be in the server's hands still.
            batch.last_over = u32::MAX;
        }
        self.totals.requests_unknown += 1;
    }

    pub fn run(&self, batch: &Sent) -> &Run {
        &self.runs[usize::from(batch.run)]
    }

    /// Every point that was to be taken: all but the bad ones, in the order of the ledgers. Answers how many were bad.
    pub fn for_each_point(&self, mut each: impl FnMut(u32, &Sent, Point)) -> u64 {
        let mut bad = 0;
        for (n, batch) in self.batches.iter().enumerate() {
            self.run(batch).workload.points(batch.batch(), |point| match point.fault {
                None => each(n as u32, batch, point),
                Some(_) => bad += 1,
            });
        }
        bad
    }

    pub fn point(&self, batch: u32, index: u32) -> Point {
        let batch = &self.batches[batch as usize];
        self.run(batch).workload.point(batch.batch(), index)
    }

    /// All points of all batches, bad ones too.
    pub fn points_max(&self) -> u64 {
        self.batches.iter().map(|batch| u64::from(self.run(batch).workload.batch_points())).sum()
    }

    /// What the server should take the client of a batch for; `None` when the plan leaves it to the server.
    pub fn client_name(&self, batch: &Sent) -> Option<String> {
        let transport = &self.run(batch).plan.transport;
        // A token names the client, and all have the same.
        if transport.token.is_some() { None } else { client::seen_as(transport.identity, batch.client) }
    }
}
