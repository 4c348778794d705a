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
    summary::Detail,
};
use crate::point::{Batch, FoldInput, INLINE_BIT, Kind, NO_TIMESTAMP, SeriesId, series_key};

/// Points of look-ahead for a cell's directory entry, the cell, what the cell points to, and the count of a bin.
const AHEAD_PAGE: usize = 24;
const AHEAD_CELL: usize = 16;
const AHEAD_POINTS: usize = 10;
const AHEAD_BIN: usize = 4;
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
    pub detail: Detail,
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
            detail: Detail::Quantiles,
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
    /// By series: see [`Fold::last_seen_s`], or `NEVER_S`
    last_seen_s: Vec<u32>,
    /// Bytes that cells hold beyond themselves
    points_bytes: usize,
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
            last_seen_s: Vec::new(),
            points_bytes: 0,
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
                if let (Some(&ahead), Some(&bits)) = (series.get(at + AHEAD_BIN), bits.get(at + AHEAD_BIN)) {
                    // Right for floats; for integers a harmless guess, if it has a bin at all.
                    let guess = f64::from_bits(bits);
                    if guess.is_finite() {
                        window.prefetch_bin(ahead, guess);
                    }
                }
            }
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
                self.points_bytes -= cell.heap_bytes();
                self.open_points -= cell.count();
            }
            ShardMessage::Partials(Partials { window_start_ns, cells })
        } else {
            let mut cells = Vec::new();
            while cells.len() < max.max(1)
                && let Some(cell) = window.overflow.pop_first()
            {
                self.points_bytes -= cell.1.heap_bytes();
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
        self.points_bytes
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
        let budget = Budget { over: self.points_bytes > self.config.points_bytes_max, detail: self.config.detail };
        let window = &mut self.windows[self.latest];
        if let Some(cell) = window.cell(series) {
            return insert(cell, identity, value, budget, &mut self.points_bytes, counts);
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
        assert!(series < self.config.series_max, "series number {series} is out of bounds");
        if self.last_seen_s.len() <= series as usize {
            self.last_seen_s.resize(series as usize + 1, NEVER_S);
        }
        self.last_seen_s[series as usize] = (stamp_ns / S_NS).clamp(1, u32::MAX as i64) as u32;
    }

    #[cold]
    fn fold_overflow(&mut self, client: &str, identity: Identity, value: f64, counts: &mut FoldCounts) -> Inserted {
        let budget = Budget { over: self.points_bytes > self.config.points_bytes_max, detail: self.config.detail };
        let overflow = &mut self.windows[self.latest].overflow;
        if let Some(cell) = overflow.get_mut(client) {
            return insert(cell, identity, value, budget, &mut self.points_bytes, counts);
        }
        let client = if overflow.len() < self.config.overflow_clients_max { client } else { series_key::OVERFLOW_NAME };
        let cell = overflow.entry(client.into()).or_default();
        insert(cell, identity, value, budget, &mut self.points_bytes, counts)
    }
}

/// What a cell may hold.
#[derive(Clone, Copy)]
struct Budget {
    /// Cells hold too much in all
    over: bool,
    detail: Detail,
}

/// Inserts within the budget and keeps the books of bytes.
#[inline]
fn insert(
    cell: &mut Cell,
    identity: Identity,
    value: f64,
    budget: Budget,
    points_bytes: &mut usize,
    counts: &mut FoldCounts,
) -> Inserted {
    let entries_max = if budget.over { ENTRIES_OVER_BUDGET } else { ENTRIES_MAX };
    let before_bytes = cell.heap_bytes();
    let early = budget.over && cell.summary().is_none() && cell.count() < ENTRIES_MAX as u64;
    let inserted = cell.insert_within(identity, value, entries_max, budget.detail);
    *points_bytes = *points_bytes + cell.heap_bytes() - before_bytes;
    counts.summarised_early += (early && cell.summary().is_some()) as u64;
    inserted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point::{Protocol, SeriesRef};
    use crate::window::summary::{Aggregates, Summary};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const START_NS: i64 = 1_700_000_000 * S_NS;

    fn fold_at(floor_ns: i64) -> Fold {
        Fold::new(FoldConfig::default(), floor_ns)
    }

    fn input(batch: &Batch, stamp_ns: i64) -> FoldInput<'_> {
        FoldInput { protocol: Protocol::Json, client: "c", stamp_ns, same_timestamp_all: false, batch }
    }

    fn batch(points: &[(u32, i64, f64)]) -> Batch {
        let mut batch = Batch::default();
        for &(series, timestamp_ns, value) in points {
            batch.push(SeriesRef::Known(SeriesId(series)), timestamp_ns, Kind::Float, value.to_bits());
        }
        batch
    }

    /// What a reducer would do with the messages, on one screen.
    #[derive(Default)]
    struct Merger {
        cells: BTreeMap<(i64, u32), Cell>,
        counted: u64,
        repeated: u64,
    }

    impl Merger {
        fn take_all(&mut self, fold: &mut Fold, mark_ns: i64, max: usize) {
            while let Some(message) = fold.take_ready(mark_ns, max) {
                let ShardMessage::Partials(partials) = message else { panic!("no overflow here") };
                assert!(partials.cells.len() <= max && !partials.cells.is_empty());
                for (series, cell) in partials.cells {
                    let merged = self
                        .cells
                        .entry((partials.window_start_ns, series))
                        .or_default()
                        .merge(cell, Detail::Quantiles);
                    self.counted += merged.counted;
                    self.repeated += merged.repeated;
                }
            }
        }

        fn results(&self) -> Vec<(i64, u32, [u64; 8], bool)> {
            let bits = |a: Aggregates| {
                let [b, c, d, e] = [a.sum, a.min, a.max, a.avg].map(f64::to_bits);
                let [f, g, h] = a.quantiles.expect("wanted").to_bits();
                [a.count, b, c, d, e, f, g, h]
            };
            self.cells
                .iter()
                .map(|(&(start, series), cell)| {
                    (start, series, bits(cell.aggregates(Detail::Quantiles).expect("points")), cell.is_unchecked())
                })
                .collect()
        }

        /// Minutes, by merging 10 s cells.
        fn minutes(&self) -> Vec<(i64, u32, Aggregates)> {
            let mut minutes: BTreeMap<(i64, u32), Summary> = BTreeMap::new();
            for (&(start, series), cell) in &self.cells {
                let minute = minutes.entry((start.div_euclid(60 * S_NS), series));
                minute.or_insert_with(|| Summary::new(Detail::Quantiles)).add_cell(cell);
            }
            minutes.into_iter().map(|((m, s), summary)| (m, s, summary.aggregates().expect("points"))).collect()
        }
    }

    fn points() -> impl Strategy<Value = Vec<(u32, i64, f64)>> {
        let value = prop_oneof![
            prop::sample::select(vec![0.1, 1e-9, 0.0, -0.0, 1e300, -1e300, 0.3, 5e-324]),
            -100.0..100.0f64,
            any::<i32>().prop_map(f64::from),
        ];
        // Few timestamps, so that repeats and conflicts are common.
        prop::collection::vec(
            (0u32..70, 0i64..12, value).prop_map(|(s, t, v)| (s, START_NS + t * 2_500_000_001, v)),
            1..400,
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn shards_order_and_early_closing_do_not_show_in_the_results(
            points in points(),
            order in any::<u64>(),
            shards in 2usize..5,
        ) {
            let stamp_ns = START_NS + 60 * S_NS;
            let mut one = fold_at(START_NS - S_NS);
            let counts = one.fold(&input(&batch(&points), stamp_ns));
            prop_assert_eq!(counts.folded, points.len() as u64);
            let mut expected = Merger::default();
            expected.take_all(&mut one, i64::MAX - 1, 512);
            prop_assert_eq!(counts.repeated_in_shard + expected.counted, points.len() as u64);

            let mut shuffled = points.clone();
            let mut state = order | 1;
            for at in (1..shuffled.len()).rev() {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                shuffled.swap(at, (state >> 33) as usize % (at + 1));
            }
            let mut folds: Vec<Fold> = (0..shards).map(|_| fold_at(START_NS - S_NS)).collect();
            let mut merger = Merger::default();
            let mut repeated = 0;
            for (n, part) in shuffled.chunks(7).enumerate() {
                let fold = &mut folds[n % shards];
                repeated += fold.fold(&input(&batch(part), stamp_ns)).repeated_in_shard;
                if n % 5 == 0 {
                    merger.take_all(fold, START_NS + 15 * S_NS, 3); // later points come as partials of their own
                }
            }
            folds.iter_mut().for_each(|fold| merger.take_all(fold, i64::MAX - 1, 5));
            prop_assert_eq!(merger.results(), expected.results());
            prop_assert_eq!(merger.minutes(), expected.minutes());
            prop_assert_eq!(merger.counted + merger.repeated + repeated, points.len() as u64, "the books balance");
            for fold in &folds {
                prop_assert_eq!((fold.open_cells(), fold.open_windows(), fold.points_bytes), (0, 0, 0));
                prop_assert_eq!(fold.open_points(), 0);
            }
        }

        #[test]
        fn no_input_panics_and_every_point_is_counted(
            columns in prop::collection::vec((any::<u32>(), any::<i64>(), any::<u8>(), any::<u64>()), 0..200),
            stamp_ns in any::<i64>(), floor_ns in any::<i64>(), all in any::<bool>(),
        ) {
            let mut batch = Batch::default();
            for (series, timestamp_ns, kind, bits) in columns {
                batch.series.push(series & (INLINE_BIT | 0xfff));
                batch.timestamps_ns.push(if kind & 64 == 0 { timestamp_ns } else { stamp_ns.wrapping_add(timestamp_ns >> 24) });
                batch.kinds.push(kind & 7);
                batch.bits.push(bits);
            }
            let mut fold = fold_at(floor_ns);
            let counts = fold.fold(&FoldInput { same_timestamp_all: all, ..input(&batch, stamp_ns) });
            prop_assert_eq!(counts.points(), batch.len() as u64);
            let mut handed = 0;
            while let Some(message) = fold.take_ready(i64::MAX, 10) {
                handed += match message {
                    ShardMessage::Partials(p) => p.cells.iter().map(|(_, cell)| cell.count()).sum::<u64>(),
                    ShardMessage::OverflowPartials(p) => p.cells.iter().map(|(_, cell)| cell.count()).sum(),
                    other => panic!("{other:?}"),
                };
            }
            prop_assert_eq!(handed, counts.folded - counts.repeated_in_shard);
            prop_assert_eq!(fold.points_bytes, 0);
        }
    }

    #[test]
    fn a_point_goes_where_its_time_says() {
        let mut fold = fold_at(START_NS);
        let stamp_ns = START_NS + 100 * S_NS;
        let cases: [(i64, FoldCounts); 8] = [
            (START_NS - 1, FoldCounts { late_beyond: 1, ..FoldCounts::default() }),
            (i64::MIN + 1, FoldCounts { late_beyond: 1, ..FoldCounts::default() }),
            (START_NS, FoldCounts { folded: 1, late: 1, ..FoldCounts::default() }),
            (stamp_ns - 20 * S_NS - 1, FoldCounts { folded: 1, late: 1, ..FoldCounts::default() }),
            (stamp_ns - 20 * S_NS, FoldCounts { folded: 1, ..FoldCounts::default() }),
            (NO_TIMESTAMP, FoldCounts { folded: 1, ..FoldCounts::default() }),
            (stamp_ns + 600 * S_NS, FoldCounts { folded: 1, ..FoldCounts::default() }),
            (stamp_ns + 600 * S_NS + 1, FoldCounts { too_far_ahead: 1, ..FoldCounts::default() }),
        ];
        for (timestamp_ns, expected) in cases {
            // START_NS is a multiple of 10 s, and so is stamp_ns.
            assert_eq!(fold.fold(&input(&batch(&[(1, timestamp_ns, 1.0)]), stamp_ns)), expected, "{timestamp_ns}");
        }
        fold.raise_floor(stamp_ns + 10 * S_NS);
        fold.raise_floor(0);
        let counts = fold.fold(&input(&batch(&[(1, stamp_ns + S_NS, 1.0)]), stamp_ns));
        assert_eq!(counts.late_beyond, 1, "the floor does not fall, and freezes open windows too");
        fold.start_era(stamp_ns);
        let counts = fold.fold(&input(&batch(&[(1, stamp_ns + S_NS, 1.0)]), stamp_ns));
        assert_eq!((counts.late_beyond, counts.folded), (0, 1), "but for a new era it does");
    }

    #[test]
    fn strings_booleans_and_non_finite_values_are_counted_apart() {
        let mut batch = Batch::default();
        for (kind, bits) in [
            (Kind::Text, 0),
            (Kind::Bool, 1),
            (Kind::Float, f64::NAN.to_bits()),
            (Kind::Int, -3i64 as u64),
            (Kind::UInt, 4),
        ] {
            batch.push(SeriesRef::Known(SeriesId(0)), NO_TIMESTAMP, kind, bits);
        }
        let mut fold = fold_at(0);
        let counts = fold.fold(&input(&batch, START_NS));
        assert_eq!((counts.folded, counts.not_aggregated), (2, 3));
        let mut merger = Merger::default();
        merger.take_all(&mut fold, START_NS + 10 * S_NS, 10);
        assert_eq!(merger.cells[&(START_NS, 0)].aggregates(Detail::Quantiles).map(|a| a.sum), Some(1.0));

        let mut text = Batch::default();
        text.push(SeriesRef::Known(SeriesId(3)), NO_TIMESTAMP, Kind::Text, 0);
        fold.fold(&input(&text, START_NS));
        assert!(fold.last_seen_s(SeriesId(3)).is_some(), "a series of text alone is not idle");
        assert!(!fold.has_open(SeriesId(3)));
    }

    #[test]
    fn points_without_identity_are_never_repeats() {
        let mut fold = fold_at(0);
        let same = batch(&[(0, START_NS, 1.0), (0, START_NS, 1.0)]);
        let all = FoldInput { same_timestamp_all: true, ..input(&same, START_NS) };
        assert_eq!(fold.fold(&all).repeated_in_shard, 0);
        assert_eq!(fold.fold(&input(&same, START_NS)).repeated_in_shard, 1);
        let none = batch(&[(0, NO_TIMESTAMP, 1.0), (0, NO_TIMESTAMP, 1.0)]);
        assert_eq!(fold.fold(&input(&none, START_NS)).repeated_in_shard, 0);
    }

    #[test]
    fn points_over_the_series_limit_share_a_cell_and_keep_their_identities() {
        let mut batch = Batch::default();
        for (key, timestamp_ns) in [("a", 1), ("b", 1), ("a", 1), ("a", 2)] {
            let n = batch.inline_keys.len() as u32;
            batch.inline_keys.push(key.as_bytes().into());
            batch.push(SeriesRef::Inline(n), START_NS + timestamp_ns, Kind::Int, 1);
        }
        let mut fold = fold_at(0);
        let counts = fold.fold(&input(&batch, START_NS));
        assert_eq!((counts.folded, counts.overflowed, counts.repeated_in_shard), (4, 4, 1));
        let Some(ShardMessage::OverflowPartials(partials)) = fold.take_ready(START_NS + 10 * S_NS, 10) else {
            panic!("an overflow cell")
        };
        assert_eq!(partials.cells.len(), 1);
        assert_eq!((&*partials.cells[0].0, partials.cells[0].1.count()), ("c", 3));
        assert!(fold.take_ready(i64::MAX, 10).is_none());
    }

    #[test]
    fn beyond_the_byte_budget_cells_become_summaries_and_say_so() {
        let config = FoldConfig { points_bytes_max: 4096, ..FoldConfig::default() };
        let mut fold = Fold::new(config, 0);
        let mut total = FoldCounts::default();
        for n in 0..40 {
            let points: Vec<_> = (0..100).map(|series| (series, START_NS + n, n as f64)).collect();
            total.add(&fold.fold(&input(&batch(&points), START_NS)));
        }
        assert_eq!((total.folded, total.summarised_early), (4000, 100));
        let mut merger = Merger::default();
        merger.take_all(&mut fold, i64::MAX, 512);
        assert!(merger.cells.values().all(|cell| cell.is_unchecked() && cell.count() == 40));
    }

    #[test]
    fn without_quantiles_summaries_hold_no_sketch_and_say_the_same_otherwise() {
        let config = FoldConfig { points_bytes_max: 4096, ..FoldConfig::default() };
        let run = |detail| {
            let mut fold = Fold::new(FoldConfig { detail, ..config }, 0);
            for n in 0..40 {
                let points: Vec<_> = (0..100).map(|series| (series, START_NS + n, 1.5f64.powi(n as i32))).collect();
                fold.fold(&input(&batch(&points), START_NS));
            }
            let bytes = fold.points_bytes();
            let Some(ShardMessage::Partials(partials)) = fold.take_ready(i64::MAX, 100) else { panic!("100 cells") };
            assert!(partials.cells.iter().all(|(_, cell)| cell.summary().is_some()));
            let all: Vec<_> = partials.cells.iter().map(|(_, cell)| cell.aggregates(detail).expect("points")).collect();
            (bytes, all)
        };
        let ((with_bytes, with), (without_bytes, without)) = (run(Detail::Quantiles), run(Detail::Plain));
        assert!(without_bytes + 100 * 40 * 8 <= with_bytes, "{without_bytes} and {with_bytes}");
        for (with, without) in with.iter().zip(&without) {
            assert!(with.quantiles.is_some() && without.quantiles.is_none());
            assert!(with.same_values(without), "{with:?} {without:?}");
        }
    }

    #[test]
    fn a_series_is_open_until_its_cells_are_taken() {
        let mut fold = fold_at(0);
        assert_eq!((fold.has_open(SeriesId(7)), fold.last_seen_s(SeriesId(7))), (false, None));
        fold.fold(&input(&batch(&[(7, START_NS, 1.0), (7, START_NS + 20 * S_NS, 1.0)]), START_NS));
        assert!(fold.take_ready(START_NS + 10 * S_NS - 1, 8).is_none(), "its end is after the mark");
        assert!(fold.take_ready(START_NS + 10 * S_NS, 8).is_some());
        assert!(fold.take_ready(START_NS + 10 * S_NS, 8).is_none());
        assert!(fold.has_open(SeriesId(7)));
        assert!(fold.take_ready(START_NS + 30 * S_NS, 8).is_some());
        assert!(!fold.has_open(SeriesId(7)));
        assert_eq!(fold.last_seen_s(SeriesId(7)), Some((START_NS / S_NS) as u32));
        fold.forget(SeriesId(7));
        assert_eq!(fold.last_seen_s(SeriesId(7)), None);
    }

    #[test]
    fn one_value_of_every_series_costs_25_bytes_a_series_and_window() {
        let mut fold = fold_at(0);
        let points: Vec<_> = (0..64_000).map(|series| (series, START_NS, 1.0)).collect();
        fold.fold(&input(&batch(&points), START_NS));
        let last_seen = fold.last_seen_s.capacity() * 4;
        let per_series = (fold.memory_bytes() - last_seen) as f64 / 64_000.0;
        assert!(per_series < 25.1, "{per_series}");
    }

    #[test]
    fn windows_reuse_the_memory_of_closed_ones() {
        let mut fold = fold_at(0);
        let mut after = Vec::new();
        for window in 0..8 {
            let at = START_NS + window * 10 * S_NS;
            let points: Vec<_> = (0..10_000).map(|series| (series, at, 1.0)).collect();
            fold.fold(&input(&batch(&points), at));
            while fold.take_ready(at, 512).is_some() {}
            after.push(fold.memory_bytes());
        }
        assert!(after[4..].iter().all(|&bytes| bytes == after[4]), "{after:?}");
    }
}
