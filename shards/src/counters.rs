//! The books of one shard: counters that only the shard writes and anyone may read.
//!
//! A counter is a relaxed atomic with one writer, so adding is a load and a store, no locked instruction. Latency and
//! size distributions are HdrHistograms kept by the shard and published as copies about once a second.
//!
//! The identities that must hold at every moment when the shard is idle, per protocol, in points:
//! `received = accepted + rejected`, `durable = pending + folded + late_beyond + too_far_ahead + not_aggregated`;
//! and over the process `folded = open + counted + repeated + late_in_reducer` (the reducer's books).

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;
use hdrhistogram::Histogram;

use crate::point::{Protocol, Reason};

/// Written by one thread, read by any.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    pub const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a request was turned away without being decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Shed {
    /// Over the client's quota of requests, points or bytes
    Quota = 0,
    /// The log cannot take more: full, failing, or too much of it not flushed
    Log,
    /// The process is stopping
    Draining,
    /// More connections than allowed, in all or from one address
    Connections,
}

impl Shed {
    pub const ALL: [Shed; 4] = [Shed::Quota, Shed::Log, Shed::Draining, Shed::Connections];
    pub const fn name(self) -> &'static str {
        match self {
            Shed::Quota => "quota",
            Shed::Log => "log",
            Shed::Draining => "draining",
            Shed::Connections => "connections",
        }
    }
}

/// The statuses a shard answers with; anything else is counted as the last.
pub const STATUSES: [u16; 19] =
    [200, 204, 400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 417, 429, 431, 500, 501, 503, 505];

/// In points, of one protocol.
#[derive(Default, Debug)]
pub struct PointBooks {
    pub received: Counter,
    pub accepted: Counter,
    pub rejected: [Counter; Reason::COUNT],
    /// Decoded, then refused because the log could not take them (the client was told 503).
    pub rejected_unavailable: Counter,
    pub durable: Counter,
    pub folded: Counter,
    pub late: Counter,
    pub late_beyond: Counter,
    pub too_far_ahead: Counter,
    pub not_aggregated: Counter,
    pub repeated_in_shard: Counter,
    pub conflicts_in_shard: Counter,
    pub overflow: Counter,
    /// Acknowledged from memory and then lost with a failed flush (`durability = "memory"` only).
    pub lost_after_ack: Counter,
}

impl PointBooks {
    pub fn rejected_total(&self) -> u64 {
        self.rejected.iter().map(Counter::get).sum::<u64>() + self.rejected_unavailable.get()
    }
    /// Durable and not yet folded.
    pub fn pending(&self) -> u64 {
        self.durable.get().saturating_sub(
            self.folded.get() + self.late_beyond.get() + self.too_far_ahead.get() + self.not_aggregated.get(),
        )
    }
}

/// Distributions, copied out whole. Times in µs, sizes in bytes.
#[derive(Clone)]
pub struct Distributions {
    pub flush_us: Histogram<u64>,
    pub acknowledge_us: Histogram<u64>,
    pub commit_bytes: Histogram<u64>,
    pub commit_points: Histogram<u64>,
}

impl Distributions {
    pub fn new() -> Distributions {
        let histogram =
            |high: u64| Histogram::new_with_bounds(1, high, 2).expect("constant bounds that the crate accepts");
        Distributions {
            flush_us: histogram(60_000_000),
            acknowledge_us: histogram(60_000_000),
            commit_bytes: histogram(1 << 30),
            commit_points: histogram(1 << 30),
        }
    }
}

impl Default for Distributions {
    fn default() -> Self {
        Self::new()
    }
}

/// Everything one shard counts.
pub struct Counters {
    pub points: [PointBooks; Protocol::ALL.len()],
    /// `[route][status]`, by `http::route::Route as usize` and position in [`STATUSES`]
    pub requests: Vec<[Counter; STATUSES.len() + 1]>,
    pub shed: [Counter; Shed::ALL.len()],
    /// Requests over a quota of requests, points, bytes
    pub limited: [Counter; 3],
    pub received_bytes: Counter,
    pub sent_bytes: Counter,
    pub body_bytes: Counter,
    pub connections_accepted: Counter,
    pub connections_closed: Counter,
    pub connections_refused: Counter,
    pub connections_timed_out: Counter,
    pub receive_paused: Counter,
    pub receive_buffers_exhausted: Counter,
    pub turns: Counter,
    pub commits: Counter,
    pub commit_failures: Counter,
    pub log_end_block: Counter,
    pub log_durable_block: Counter,
    pub log_written_bytes: Counter,
    pub log_unflushed_bytes: Counter,
    pub log_segment: Counter,
    /// 1 while appends are refused
    pub log_unavailable: Counter,
    pub fold_from_disk_blocks: Counter,
    pub damaged_points: Counter,
    pub series_live: Counter,
    pub series_created: Counter,
    pub series_evicted: Counter,
    pub clients_live: Counter,
    pub open_cells: Counter,
    pub open_points: Counter,
    pub mailbox_full: Counter,
    published: ArrayQueue<Box<Distributions>>,
}

impl Counters {
    pub fn new(routes: usize) -> Counters {
        Counters {
            points: Default::default(),
            requests: (0..routes).map(|_| Default::default()).collect(),
            shed: Default::default(),
            limited: Default::default(),
            received_bytes: Counter::new(),
            sent_bytes: Counter::new(),
            body_bytes: Counter::new(),
            connections_accepted: Counter::new(),
            connections_closed: Counter::new(),
            connections_refused: Counter::new(),
            connections_timed_out: Counter::new(),
            receive_paused: Counter::new(),
            receive_buffers_exhausted: Counter::new(),
            turns: Counter::new(),
            commits: Counter::new(),
            commit_failures: Counter::new(),
            log_end_block: Counter::new(),
            log_durable_block: Counter::new(),
            log_written_bytes: Counter::new(),
            log_unflushed_bytes: Counter::new(),
            log_segment: Counter::new(),
            log_unavailable: Counter::new(),
            fold_from_disk_blocks: Counter::new(),
            damaged_points: Counter::new(),
            series_live: Counter::new(),
            series_created: Counter::new(),
            series_evicted: Counter::new(),
            clients_live: Counter::new(),
            open_cells: Counter::new(),
            open_points: Counter::new(),
            mailbox_full: Counter::new(),
            published: ArrayQueue::new(1),
        }
    }

    pub fn points(&self, protocol: Protocol) -> &PointBooks {
        &self.points[protocol as usize]
    }

    pub fn count_request(&self, route: usize, status: u16) {
        let column = STATUSES.iter().position(|&s| s == status).unwrap_or(STATUSES.len());
        self.requests[route][column].add(1);
    }

    /// Called by the shard; replaces what nobody has fetched.
    pub fn publish(&self, distributions: &Distributions) {
        self.published.force_push(Box::new(distributions.clone()));
    }

    /// The newest copy, once. The reader keeps it for the next time.
    pub fn fetch(&self) -> Option<Box<Distributions>> {
        self.published.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_is_what_is_durable_and_in_no_other_book() {
        let books = PointBooks::default();
        books.durable.add(10);
        books.folded.add(4);
        books.late_beyond.add(1);
        books.not_aggregated.add(2);
        assert_eq!(books.pending(), 3);
    }

    #[test]
    fn a_status_outside_the_table_is_still_counted() {
        let counters = Counters::new(1);
        counters.count_request(0, 204);
        counters.count_request(0, 418);
        assert_eq!(counters.requests[0][1].get(), 1);
        assert_eq!(counters.requests[0][STATUSES.len()].get(), 1);
    }
}
