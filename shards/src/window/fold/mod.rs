//! A shard's windows: folds durable records into cells, in log order, and hands out cells of windows that are ready.
//!
//! The same function runs live and on records read back after a restart. Content never depends on the clock: only the
//! record's stamp, the floor and the bounds decide whether a point is folded, and every point is counted once in
//! [`FoldCounts`], so that `points = folded + late_beyond + too_far_ahead + not_aggregated`.
//!
//! The caller owes: columns of equal length, series numbers below `series_max`, and a number given to another series
//! only when [`Fold::has_open`] says no. What clients choose freely (times, values, keys) cannot make it panic.

mod budget;
mod config;
mod counts;
mod last_seen;
#[cfg(test)]
mod tests;

pub use config::FoldConfig;
pub use counts::FoldCounts;

use super::{
    open::{OpenWindow, Spares},
    partial::{OverflowPartials, Partials, ShardMessage},
    set::{Cell, Identity, Inserted},
};
use crate::point::{Batch, FoldInput, INLINE_BIT, Kind, NO_TIMESTAMP, SeriesId, series_key};
use budget::Budget;
use last_seen::LastSeen;

/// Points of look-ahead for a cell's directory entry, the cell, what the cell points to, and the count of a bin.
const AHEAD_PAGE: usize = 24;
const AHEAD_CELL: usize = 16;
const AHEAD_POINTS: usize = 10;
const AHEAD_BIN: usize = 4;

/// The open windows of one shard, or of one refold.
#[derive(Debug)]
pub struct Fold {
    config: FoldConfig,
    floor_ns: i64,
    /// By start; usually two or three, at most those between the floor and the future bound
    windows: Vec<OpenWindow>,
    /// Index in `windows` of the last point's
    latest: usize,
    last_seen: LastSeen,
    budget: Budget,
    /// Points counted in cells
    open_points: u64,
    spares: Spares,
}

impl Fold {
    /// The floor is an argument because without one clients could open any number of windows in the past.
    pub fn new(config: FoldConfig, floor_ns: i64) -> Fold {
        assert!(
            config.window_ns > 0 && config.window_ns as u64 <= Identity::OFFSET_MAX_NS,
            "the base window is at most 17 s"
        );
        assert!(config.future_bound_ns >= 0 && config.lateness_ns >= 0, "bounds are not negative");
        assert!(config.series_max <= INLINE_BIT, "the top bit of a series number means an inline key");
        Fold {
            config,
            floor_ns,
            windows: Vec::new(),
            latest: 0,
            last_seen: LastSeen::default(),
            budget: Budget::new(config.points_bytes_max, config.detail),
            open_points: 0,
            spares: Spares::default(),
        }
    }

    /// Windows that end at or before the floor are frozen. It never falls within an era.
    pub fn raise_floor(&mut self, floor_ns: i64) {
        self.floor_ns = self.floor_ns.max(floor_ns);
    }

    /// The clock went back and with it the floor: what comes now must not be too late until the old time is reached.
    pub fn start_era(&mut self, floor_ns: i64) {
        self.floor_ns = self.floor_ns.min(floor_ns);
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
            self.look_ahead(input.batch, at);
            // Decoders refuse what is not finite; a value that is so all the same must not poison a window.
            let number = Kind::from_u8(kinds[at]).and_then(|kind| kind.number(bits[at])).filter(|n| n.is_finite());
            let Some(value) = number else {
                counts.not_aggregated += 1;
                self.saw(series[at], input.stamp_ns);
                continue;
            };
            let given_ns = timestamps_ns[at];
            let has_identity = given_ns != NO_TIMESTAMP && !input.same_timestamp_all;
            let timestamp_ns = if given_ns == NO_TIMESTAMP { input.stamp_ns } else { given_ns };
            if timestamp_ns > furthest_ns {
                counts.too_far_ahead += 1;
                self.saw(series[at], input.stamp_ns);
                continue;
            }
            let Some(start_ns) = self.open(timestamp_ns) else {
                counts.late_beyond += 1;
                self.saw(series[at], input.stamp_ns);
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
        self.open_points += counts.folded - counts.repeated_in_shard;
        counts
    }

    /// Asks for the memory that points further on in the batch will need, in four steps, each when the one before has come.
    #[inline]
    fn look_ahead(&self, batch: &Batch, at: usize) {
        let Some(window) = self.windows.get(self.latest) else { return };
        // Guesses that the points ahead are of the same window. An inline number finds no page.
        if let Some(&ahead) = batch.series.get(at + AHEAD_PAGE) {
            window.prefetch_page(ahead);
        }
        if let Some(&ahead) = batch.series.get(at + AHEAD_CELL) {
            window.prefetch_cell(ahead);
        }
        if let Some(&ahead) = batch.series.get(at + AHEAD_POINTS) {
            window.prefetch_points(ahead);
        }
        if let (Some(&ahead), Some(&bits)) = (batch.series.get(at + AHEAD_BIN), batch.bits.get(at + AHEAD_BIN)) {
            // Right for floats; for integers a harmless guess, if it has a bin at all.
            let guess = f64::from_bits(bits);
            if guess.is_finite() {
                window.prefetch_bin(ahead, guess);
            }
        }
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
            for (_, cell) in &cells {
                self.budget.release(cell);
                self.open_points -= cell.count();
            }
            ShardMessage::Partials(Partials { window_start_ns, cells })
        } else {
            let mut cells = Vec::new();
            while cells.len() < max.max(1)
                && let Some(cell) = window.overflow.pop_first()
            {
                self.budget.release(&cell.1);
                self.open_points -= cell.1.count();
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

    /// Unix second of the record that last opened a cell of this series, or that had a point of it that went into no
    /// cell. An open cell takes points without moving it, so idle means: long not seen, and nothing open. `None` when it has had no points since it was made or forgotten.
    pub fn last_seen_s(&self, series: SeriesId) -> Option<u32> {
        self.last_seen.get_s(series)
    }

    /// The series is evicted; its number may come again for another.
    pub fn forget(&mut self, series: SeriesId) {
        assert!(!self.has_open(series), "a series with open cells is not forgotten");
        self.last_seen.forget(series);
    }

    pub fn open_windows(&self) -> usize {
        self.windows.len()
    }

    pub fn open_cells(&self) -> usize {
        self.windows.iter().map(|window| window.cells() + window.overflow.len()).sum()
    }

    /// Points counted in open cells: folded, less those found to be repeats, less those handed out.
    pub fn open_points(&self) -> u64 {
        self.open_points
    }

    /// Start of the oldest open window.
    pub fn oldest_start_ns(&self) -> Option<i64> {
        self.windows.first().map(|window| window.start_ns)
    }

    /// What counts against `points_bytes_max`.
    pub fn points_bytes(&self) -> usize {
        self.budget.used_bytes()
    }

    /// All memory held, by walking the directories: for status pages, not for the hot path.
    pub fn memory_bytes(&self) -> usize {
        self.budget.used_bytes()
            + self.windows.iter().map(OpenWindow::memory_bytes).sum::<usize>()
            + self.spares.memory_bytes()
            + self.last_seen.memory_bytes()
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
        let window = &mut self.windows[self.latest];
        if let Some(cell) = window.cell(series) {
            return self.budget.insert(cell, identity, value, counts);
        }
        assert!(series < self.config.series_max, "series number {series} is out of bounds");
        window.insert(series, Cell::one(identity, value), &mut self.spares);
        self.saw(series, stamp_ns);
        Inserted::Counted
    }

    /// The series lives: a cell of it was opened, or it had a point that is in no cell.
    fn saw(&mut self, series: u32, stamp_ns: i64) {
        if series & INLINE_BIT != 0 {
            return;
        }
        self.last_seen.saw(series, stamp_ns, self.config.series_max);
    }

    #[cold]
    fn fold_overflow(&mut self, client: &str, identity: Identity, value: f64, counts: &mut FoldCounts) -> Inserted {
        let overflow = &mut self.windows[self.latest].overflow;
        if let Some(cell) = overflow.get_mut(client) {
            return self.budget.insert(cell, identity, value, counts);
        }
        let client = if overflow.len() < self.config.overflow_clients_max { client } else { series_key::OVERFLOW_NAME };
        let cell = overflow.entry(client.into()).or_default();
        self.budget.insert(cell, identity, value, counts)
    }
}
