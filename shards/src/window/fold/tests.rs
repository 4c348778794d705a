//! Folding, against a direct merge of the same points, and every way a point can go.

use super::*;
use crate::point::{Protocol, SeriesRef};
use crate::window::summary::Detail;
use crate::window::summary::{Aggregates, Summary};
use proptest::prelude::*;
use std::collections::BTreeMap;

const S_NS: i64 = 1_000_000_000;
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
                let merged =
                    self.cells.entry((partials.window_start_ns, series)).or_default().merge(cell, Detail::Quantiles);
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
            prop_assert_eq!((fold.open_cells(), fold.open_windows(), fold.points_bytes()), (0, 0, 0));
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
        prop_assert_eq!(fold.points_bytes(), 0);
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
    let last_seen = fold.last_seen.memory_bytes();
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
