//! A shard's windows: folds durable records into cells, in log order, and hands out cells of windows that are ready.
//!
//! The same function runs live and on records read back after a restart. Content never depends on the clock: only the
//! record's stamp, the floor and the bounds decide whether a point is folded, and every point is counted once in
//! [`FoldCounts`], so that `points = folded + late_beyond + too_far_ahead + not_aggregated`.
//!
//! The caller owes: columns of equal length, series numbers below `series_max`, and a number given to another series
//! only when [`Fold::has_open`] says no. What clients choose freely (times, values, keys) cannot make it panic.

use super::{
    open::{OpenWindow, Spares},
    partial::{OverflowPartials, Partials, ShardMessage},
    set::{Cell, ENTRIES_MAX, Identity, Inserted},
};
use crate::point::{Batch, FoldInput, INLINE_BIT, Kind, NO_TIMESTAMP, SeriesId, series_key};

/// Points of look-ahead for a cell's directory entry, the cell, and what the cell points to.
const AHEAD_PAGE: usize = 24;
const AHEAD_CELL: usize = 16;
const AHEAD_POINTS: usize = 8;
/// Beyond the byte budget a cell keeps this many points before it becomes a summary: below that, a summary is larger.
const ENTRIES_OVER_BUDGET: usize = 8;
/// "Never seen", and the unit of `last_seen`.
const NEVER_S: u32 = 0;
const S_NS: i64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoldConfig {
    /// Length of the base windows; at most 17 s, because offsets in it have 34 bits
    pub window_ns: i64,
    /// For the label `late` only
    pub lateness_ns: i64,
    /// Points further ahead of their record's stamp are not folded
    pub future_bound_ns: i64,
    /// Series numbers are below this
    pub series_max: u32,
    /// Bound of the bytes that cells hold beyond themselves; above it they become summaries early
    pub points_bytes_max: usize,
    /// Clients with an `__overflow__` series of their own in one window; further ones share one
    pub overflow_clients_max: usize,
}

impl Default for FoldConfig {
    fn default() -> FoldConfig {
        FoldConfig {
            window_ns: 10 * S_NS,
            lateness_ns: 15 * S_NS,
            future_bound_ns: 600 * S_NS,
            series_max: 1 << 21,
            points_bytes_max: 512 << 20,
            overflow_clients_max: 4096,
        }
    }
}

/// What became of points. `folded + late_beyond + too_far_ahead + not_aggregated` is all of them; the others are
/// labels of folded ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FoldCounts {
    pub folded: u64,
    /// Their window is frozen: it ends at or before the floor
    pub late_beyond: u64,
    pub too_far_ahead: u64,
    /// Booleans and text, kept for forwarding
    pub not_aggregated: u64,
    /// Folded; known already in this shard's open cells, so not counted in a window
    pub repeated_in_shard: u64,
    /// Repeated, with another value: the greater one stays
    pub conflicts: u64,
    /// Folded; arrived after their window's lateness
    pub late: u64,
    /// Folded into a client's `__overflow__`
    pub overflowed: u64,
    /// Cells that became summaries early because of the byte budget (cells, not points)
    pub summarised_early: u64,
}

impl FoldCounts {
    pub fn points(&self) -> u64 {
        self.folded + self.late_beyond + self.too_far_ahead + self.not_aggregated
    }

    pub fn add(&mut self, other: &FoldCounts) {
        self.folded += other.folded;
        self.late_beyond += other.late_beyond;
        self.too_far_ahead += other.too_far_ahead;
        self.not_aggregated += other.not_aggregated;
        self.repeated_in_shard += other.repeated_in_shard;
        self.conflicts += other.conflicts;
        self.late += other.late;
        self.overflowed += other.overflowed;
        self.summarised_early += other.summarised_early;
    }
}

/// The open windows of one shard, or of one refold.
#[derive(Debug)]
pub struct Fold {
    config: FoldConfig,
    floor_ns: i64,
    /// By start; usually two or three, at most those between the floor and the future bound
    windows: Vec<OpenWindow>,
    /// Index in `windows` of the last point's
    latest: usize,
    /// By series: second of the last record that opened a cell of it, or `NEVER_S`
    last_seen_s: Vec<u32>,
    /// Bytes that cells hold beyond themselves
    points_bytes: usize,
    spares: Spares,
}

impl Fold {
    pub fn new(config: FoldConfig) -> Fold {
        assert!(
            config.window_ns > 0 && config.window_ns as u64 <= Identity::OFFSET_MAX_NS,
            "the base window is at most 17 s"
        );
        assert!(config.future_bound_ns >= 0 && config.lateness_ns >= 0, "bounds are not negative");
        assert!(config.series_max <= INLINE_BIT, "the top bit of a series number means an inline key");
        Fold {
            config,
            floor_ns: i64::MIN,
            windows: Vec::new(),
            latest: 0,
            last_seen_s: Vec::new(),
            points_bytes: 0,
            spares: Spares::default(),
        }
    }

    /// Windows that end at or before the floor are frozen. It never falls.
    pub fn raise_floor(&mut self, floor_ns: i64) {
        self.floor_ns = self.floor_ns.max(floor_ns);
    }

    /// Folds all points of one record.
    pub fn fold(&mut self, input: &FoldInput<'_>) -> FoldCounts {
        let Batch { series, timestamps_ns, kinds, bits, .. } = input.batch;
        let points = series.len();
        assert!(
            timestamps_ns.len() == points && kinds.len() == points && bits.len() == points,
            "columns have one entry a point"
        );
        let mut counts = FoldCounts::default();
        let furthest_ns = input.stamp_ns.saturating_add(self.config.future_bound_ns);
        for at in 0..points {
            if let Some(window) = self.windows.get(self.latest) {
                // Guesses that the points ahead are of the same window. An inline number finds no page.
                if let Some(&ahead) = series.get(at + AHEAD_PAGE) {
                    window.prefetch_page(ahead);
                }
                if let Some(&ahead) = series.get(at + AHEAD_CELL) {
                    window.prefetch_cell(ahead);
                }
                if let Some(&ahead) = series.get(at + AHEAD_POINTS) {
                    window.prefetch_points(ahead);
                }
            }
            // Decoders refuse what is not finite; a value that is so all the same must not poison a window.
            let number = Kind::from_u8(kinds[at]).and_then(|kind| kind.number(bits[at])).filter(|n| n.is_finite());
            let Some(value) = number else {
                counts.not_aggregated += 1;
                continue;
            };
            let given_ns = timestamps_ns[at];
            let has_identity = given_ns != NO_TIMESTAMP && !input.same_timestamp_all;
            let timestamp_ns = if given_ns == NO_TIMESTAMP { input.stamp_ns } else { given_ns };
            if timestamp_ns > furthest_ns {
                counts.too_far_ahead += 1;
                continue;
            }
            let Some(start_ns) = self.open(timestamp_ns) else {
                counts.late_beyond += 1;
                continue;
            };
            let end_ns = start_ns + self.config.window_ns;
            counts.folded += 1;
            counts.late += (end_ns.saturating_add(self.config.lateness_ns) <= input.stamp_ns) as u64;
            let inserted = if series[at] & INLINE_BIT == 0 {
                let identity = match has_identity {
                    true => Identity::at_offset((timestamp_ns - start_ns) as u64),
                    false => Identity::ANONYMOUS,
                };
                self.fold_known(series[at], identity, value, input.stamp_ns, &mut counts)
            } else {
                let key = input.batch.inline_keys.get((series[at] & !INLINE_BIT) as usize);
                let identity = match (has_identity, key) {
                    (true, Some(key)) => Identity::hashed(key, timestamp_ns),
                    _ => Identity::ANONYMOUS,
                };
                counts.overflowed += 1;
                self.fold_overflow(input.client, identity, value, &mut counts)
            };
            match inserted {
                Inserted::Counted => {}
                Inserted::Repeated => counts.repeated_in_shard += 1,
                Inserted::Conflict => {
                    counts.repeated_in_shard += 1;
                    counts.conflicts += 1;
                }
            }
        }
        counts
    }

    /// One message with the next cells, at most `max`, of windows that end at or before the mark; `None` when there are
    /// no more. A window comes again when late points have reopened it. Take only when the mailbox has room.
    pub fn take_ready(&mut self, mark_ns: i64, max: usize) -> Option<ShardMessage> {
        let window = self.windows.first_mut()?;
        if window.start_ns + self.config.window_ns > mark_ns {
            return None;
        }
        let window_start_ns = window.start_ns;
        let message = if window.cells() > 0 {
            let cells = window.take(max.max(1), &mut self.spares);
            self.points_bytes -= cells.iter().map(|(_, cell)| cell.heap_bytes()).sum::<usize>();
            ShardMessage::Partials(Partials { window_start_ns, cells })
        } else {
            let mut cells = Vec::new();
            while cells.len() < max.max(1)
                && let Some(cell) = window.overflow.pop_first()
            {
                self.points_bytes -= cell.1.heap_bytes();
                cells.push(cell);
            }
            ShardMessage::OverflowPartials(OverflowPartials { window_start_ns, cells })
        };
        if window.is_empty() {
            self.windows.remove(0).recycle(&mut self.spares);
            self.latest = self.latest.saturating_sub(1);
        }
        Some(message)
    }

    /// Some window has a cell of this series: its number must not be given to another.
    pub fn has_open(&self, series: SeriesId) -> bool {
        self.windows.iter().any(|window| window.has(series.0))
    }

    /// Unix second of the record that last opened a cell of this series: up to one base window before its last point.
    /// `None` when it has had no points since it was made or forgotten.
    pub fn last_seen_s(&self, series: SeriesId) -> Option<u32> {
        self.last_seen_s.get(series.0 as usize).copied().filter(|&seen| seen != NEVER_S)
    }

    /// The series is evicted; its number may come again for another.
    pub fn forget(&mut self, series: SeriesId) {
        assert!(!self.has_open(series), "a series with open cells is not forgotten");
        if let Some(seen) = self.last_seen_s.get_mut(series.0 as usize) {
            *seen = NEVER_S;
        }
    }

    pub fn open_windows(&self) -> usize {
        self.windows.len()
    }

    pub fn open_cells(&self) -> usize {
        self.windows.iter().map(|window| window.cells() + window.overflow.len()).sum()
    }

    /// Start of the oldest open window.
    pub fn oldest_start_ns(&self) -> Option<i64> {
        self.windows.first().map(|window| window.start_ns)
    }

    /// All memory held, by walking the directories: for status pages, not for the hot path.
    pub fn memory_bytes(&self) -> usize {
        self.points_bytes
            + self.windows.iter().map(OpenWindow::memory_bytes).sum::<usize>()
            + self.spares.memory_bytes()
            + self.last_seen_s.capacity() * size_of::<u32>()
    }

    /// Makes the timestamp's window the latest one and gives its start; `None` when it is frozen.
    #[inline]
    fn open(&mut self, timestamp_ns: i64) -> Option<i64> {
        if let Some(window) = self.windows.get(self.latest) {
            let offset_ns = timestamp_ns.wrapping_sub(window.start_ns);
            // An open window may end below a floor that rose meanwhile.
            if (0..self.config.window_ns).contains(&offset_ns)
                && window.start_ns <= timestamp_ns
                && window.start_ns + self.config.window_ns > self.floor_ns
            {
                return Some(window.start_ns);
            }
        }
        self.open_other(timestamp_ns)
    }

    #[cold]
    fn open_other(&mut self, timestamp_ns: i64) -> Option<i64> {
        // At the ends of the range of i64 a window would not fit in it: nothing there is ever above a floor, nor can
        // it be less than the future bound ahead of a sane stamp.
        let start_ns = timestamp_ns.checked_sub(timestamp_ns.rem_euclid(self.config.window_ns))?;
        let end_ns = start_ns.checked_add(self.config.window_ns)?;
        if end_ns <= self.floor_ns {
            return None;
        }
        let at = self.windows.partition_point(|window| window.start_ns < start_ns);
        if self.windows.get(at).is_none_or(|window| window.start_ns != start_ns) {
            self.windows.insert(at, OpenWindow::new(start_ns, &mut self.spares));
        }
        self.latest = at;
        Some(start_ns)
    }

    #[inline]
    fn fold_known(
        &mut self,
        series: u32,
        identity: Identity,
        value: f64,
        stamp_ns: i64,
        counts: &mut FoldCounts,
    ) -> Inserted {
        let over_budget = self.points_bytes > self.config.points_bytes_max;
        let window = &mut self.windows[self.latest];
        if let Some(cell) = window.cell(series) {
            return insert(cell, identity, value, over_budget, &mut self.points_bytes, counts);
        }
        assert!(series < self.config.series_max, "series number {series} is out of bounds");
        window.insert(series, Cell::one(identity, value), &mut self.spares);
        if self.last_seen_s.len() <= series as usize {
            self.last_seen_s.resize(series as usize + 1, NEVER_S);
        }
        self.last_seen_s[series as usize] = (stamp_ns / S_NS).clamp(1, u32::MAX as i64) as u32;
        Inserted::Counted
    }

    #[cold]
    fn fold_overflow(&mut self, client: &str, identity: Identity, value: f64, counts: &mut FoldCounts) -> Inserted {
        let over_budget = self.points_bytes > self.config.points_bytes_max;
        let overflow = &mut self.windows[self.latest].overflow;
        if let Some(cell) = overflow.get_mut(client) {
            return insert(cell, identity, value, over_budget, &mut self.points_bytes, counts);
        }
        let client = if overflow.len() < self.config.overflow_clients_max { client } else { series_key::OVERFLOW_NAME };
        let cell = overflow.entry(client.into()).or_default();
        insert(cell, identity, value, over_budget, &mut self.points_bytes, counts)
    }
}

/// Inserts within the budget and keeps the books of bytes.
#[inline]
fn insert(
    cell: &mut Cell,
    identity: Identity,
    value: f64,
    over_budget: bool,
    points_bytes: &mut usize,
    counts: &mut FoldCounts,
) -> Inserted {
    let entries_max = if over_budget { ENTRIES_OVER_BUDGET } else { ENTRIES_MAX };
    let before_bytes = cell.heap_bytes();
    let early = over_budget && cell.summary().is_none() && cell.count() < ENTRIES_MAX as u64;
    let inserted = cell.insert_within(identity, value, entries_max);
    *points_bytes = *points_bytes + cell.heap_bytes() - before_bytes;
    counts.summarised_early += (early && cell.summary().is_some()) as u64;
    inserted
}
