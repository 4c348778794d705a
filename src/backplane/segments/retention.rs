//! What a log's segments count for, and which of them may go: past their time, and needed by no window and no sink.

use std::sync::atomic::Ordering;

use super::{Kept, Segment};

/// A segment from before the start is counted by what it takes on the disk: its unused end is given back. But at least so
/// many make a whole one, or their number would know no bound.
pub(super) const SMALL_SEGMENTS_A_WHOLE: u64 = 64;

/// What a segment that a start has found counts for against the log's bound.
pub fn counted_bytes(disk_bytes: u64, segment_bytes: u64) -> u64 {
    disk_bytes.clamp(segment_bytes / SMALL_SEGMENTS_A_WHOLE, segment_bytes)
}

impl Segment {
    /// Windows below the floor are frozen: nothing will be rebuilt from this segment any more.
    pub(super) fn is_done(&self, floor_ns: i64) -> bool {
        self.newest_ns < floor_ns
    }
}

/// Segments past their time become unused; more unused files than are soon needed are deleted.
pub(super) fn release(log: &mut Kept, clock_ns: i64, floor_ns: i64, ready: usize) {
    let oldest_kept_ns = clock_ns.saturating_sub(log.retention.as_nanos() as i64);
    while let Some(oldest) = log.segments.front()
        && oldest.is_done(floor_ns)
        && oldest.id < log.share.held_from()
        // The last one is being written, or holds the place where recovery begins.
        && (log.segments.len() > 1 || log.shard.is_none())
        && (oldest.last_stamp_ns < oldest_kept_ns || over(log, ready))
    {
        let oldest = log.segments.pop_front().expect("looked at");
        log.gauges.recycled.fetch_add(1, Ordering::Relaxed);
        log.unused.push(oldest.path);
    }
    let spare = if log.shard.is_some() { 1 } else { 0 };
    while log.unused.len() > spare {
        let path = log.unused.pop().expect("more than some");
        let _ = std::fs::remove_file(path);
    }
}

/// Whether one more segment would be too many. A spare file does not count: it becomes that segment.
pub(super) fn over(log: &Kept, ready: usize) -> bool {
    used_bytes(log) + (ready as u64 + 1) * log.segment_bytes > log.bytes_max
}

pub(super) fn used_bytes(log: &Kept) -> u64 {
    log.segments.iter().map(|segment| segment.bytes).sum()
}
