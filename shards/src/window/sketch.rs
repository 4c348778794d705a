//! A DDSketch: a quantile of any number of values within 1 % of the value at its rank, with exact merges.
//!
//! Counts per logarithmic bin (see `bins`), positive and negative magnitudes apart, zero on its own. Bins are never
//! collapsed: the whole range of `f64` is covered. Counts are integers, so merging in any order gives equal sketches.
//! A store starts sparse, 8 bytes a used bin, and becomes dense, 8 bytes a bin of its span, when that is cheap; the
//! form never shows, equality included.
//!
//! Rank rule: for quantile q of n values, the value with index floor(q (n - 1)) when sorted, counted from 0, in
//! integers; the result is the representative of its bin, clamped to [min, max] by the caller, who knows them.

use super::{bins, prefetch::prefetch, state::put_varint};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sketch {
    positive: Store,
    negative: Store,
    zeros: u64,
}

/// floor(q (n - 1)) with q in thousandths, without overflow or rounding. `count` must not be 0.
pub fn rank(per_mille: u16, count: u64) -> u64 {
    debug_assert!(per_mille <= 1000 && count > 0);
    (per_mille as u128 * (count as u128 - 1) / 1000) as u64
}

/// What a value becomes by passing through a sketch: the representative of its bin, not clamped.
pub fn representative(value: f64) -> f64 {
    if value > 0.0 {
        bins::representative(bins::index_of(value))
    } else if value < 0.0 {
        -bins::representative(bins::index_of(-value))
    } else {
        0.0
    }
}

impl Sketch {
    pub fn new() -> Sketch {
        Sketch::default()
    }

    #[inline]
    pub fn add(&mut self, value: f64) {
        self.add_many(value, 1);
    }

    /// Adds `count` equal values; `value` must be finite.
    #[inline]
    pub fn add_many(&mut self, value: f64, count: u64) {
        if value > 0.0 {
            self.positive.add(bins::index_of(value), count);
        } else if value < 0.0 {
            self.negative.add(bins::index_of(-value), count);
        } else {
            self.zeros += count;
        }
    }

    pub fn merge(&mut self, other: &Sketch) {
        self.zeros += other.zeros;
        self.positive.merge(&other.positive);
        self.negative.merge(&other.negative);
    }

    pub fn count(&self) -> u64 {
        self.zeros + self.positive.total + self.negative.total
    }

    /// By the rank rule, clamped to the least and greatest value. An empty sketch has no quantiles.
    pub fn quantile(&self, per_mille: u16, min: f64, max: f64) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| self.at_rank(rank(per_mille, count)).clamp(min, max))
    }

    fn at_rank(&self, rank: u64) -> f64 {
        let negatives = self.negative.total;
        if rank < negatives {
            // The least value has the greatest magnitude.
            return -bins::representative(self.negative.bin_at(negatives - 1 - rank));
        }
        let rank = rank - negatives;
        if rank < self.zeros { 0.0 } else { bins::representative(self.positive.bin_at(rank - self.zeros)) }
    }

    /// Zeros and bins as bytes (see `state`).
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.zeros);
        for store in [&self.negative, &self.positive] {
            put_varint(out, u64::from(store.used));
            let mut before = 0;
            for (bin, count) in store.iter() {
                put_varint(out, u64::from(bin - before));
                put_varint(out, count);
                before = bin;
            }
        }
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.zeros = 0;
        self.positive.clear();
        self.negative.clear();
    }

    /// Asks for the count that adding this value will change.
    #[inline]
    pub(super) fn prefetch_bin(&self, value: f64) {
        if value > 0.0 {
            self.positive.prefetch_bin(bins::index_of(value));
        } else if value < 0.0 {
            self.negative.prefetch_bin(bins::index_of(-value));
        }
    }

    pub fn heap_bytes(&self) -> usize {
        self.positive.heap_bytes() + self.negative.heap_bytes()
    }
}

/// Counts by bin number.
#[derive(Clone, Debug, Default)]
struct Store {
    total: u64,
    /// Dense: the bin of `counts[0]`. Sparse: `SPARSE`
    first: u32,
    /// Bins with a count
    used: u32,
    /// Dense: the counts from `first` on. Sparse: sorted, bin number above [`COUNT_BITS`], count below.
    /// Which of the two is `first`.
    counts: Vec<u64>,
}

/// Bin numbers start at 1, so no dense store starts at 0, and an empty one is sparse by `Default`.
const SPARSE: u32 = 0;
/// 2^17 bins leave 47 bits of count in a sparse entry; a greater count makes the store dense.
const COUNT_BITS: u32 = 47;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const _: () = assert!(bins::BINS <= 1 << (64 - COUNT_BITS));
/// Bins of slack in front, when a dense store grows downwards: at least these, and an eighth of what it has, so that
/// falling values do not move all counts every time.
const SLACK_IN_FRONT: u32 = 16;

impl Store {
    #[inline]
    fn add(&mut self, bin: u32, count: u64) {
        self.total += count;
        if self.first != SPARSE {
            if let Some(counter) = self.counts.get_mut(bin.wrapping_sub(self.first) as usize) {
                self.used += (*counter == 0) as u32;
                *counter += count;
                return;
            }
            self.add_outside(bin, count);
        } else {
            self.add_sparse(bin, count);
        }
    }

    fn add_sparse(&mut self, bin: u32, count: u64) {
        let at = self.counts.partition_point(|&entry| bin_of(entry) < bin);
        match self.counts.get_mut(at) {
            Some(entry) if bin_of(*entry) == bin => {
                if count <= COUNT_MAX - (*entry & COUNT_MAX) {
                    *entry += count;
                } else {
                    self.make_dense(bin, bin);
                    self.counts[(bin - self.first) as usize] += count;
                }
            }
            _ if count > COUNT_MAX => {
                self.make_dense(bin, bin);
                self.counts[(bin - self.first) as usize] += count;
                self.used += 1;
            }
            _ => {
                self.counts.insert(at, entry(bin, count));
                self.used += 1;
                let span = bin_of(self.counts[self.counts.len() - 1]) - bin_of(self.counts[0]) + 1;
                // Dense when it costs at most twice as much; with many bins at any price below 16 times, because
                // insertion in the middle moves half of them.
                if span <= 2 * self.used + 16 || (self.used >= 1024 && span <= 16 * self.used) {
                    self.make_dense(bin, bin);
                }
            }
        }
    }

    /// A bin beyond a dense store's ends: grows it, or makes it sparse where the gap would cost too much.
    #[cold]
    fn add_outside(&mut self, bin: u32, count: u64) {
        let last = self.first + self.counts.len() as u32 - 1;
        let span = bin.max(last) - bin.min(self.first) + 1;
        let too_wide = span > 8 * self.used + 128 && (self.used < 1024 || span > 32 * self.used);
        if too_wide && self.counts.iter().all(|&count| count <= COUNT_MAX) {
            self.make_sparse();
            return self.add_sparse(bin, count);
        }
        if bin > last {
            self.counts.resize((bin - self.first) as usize + 1, 0);
        } else {
            let slack = SLACK_IN_FRONT.max(self.counts.len() as u32 / 8);
            let first = bin.saturating_sub(slack).max(1);
            self.counts.splice(0..0, std::iter::repeat_n(0, (self.first - first) as usize));
            self.first = first;
        }
        self.counts[(bin - self.first) as usize] += count;
        self.used += 1;
    }

    /// From sparse, spanning its bins and `low..=high`.
    fn make_dense(&mut self, low: u32, high: u32) {
        let low = self.counts.first().map_or(low, |&entry| bin_of(entry).min(low));
        let high = self.counts.last().map_or(high, |&entry| bin_of(entry).max(high));
        let mut counts = vec![0; (high - low) as usize + 1];
        for &entry in &self.counts {
            counts[(bin_of(entry) - low) as usize] = entry & COUNT_MAX;
        }
        self.counts = counts;
        self.first = low;
    }

    fn make_sparse(&mut self) {
        self.counts = self.iter().map(|(bin, count)| entry(bin, count)).collect();
        self.first = SPARSE;
    }

    fn merge(&mut self, other: &Store) {
        if self.total == 0 {
            self.counts.clone_from(&other.counts);
            (self.first, self.used, self.total) = (other.first, other.used, other.total);
            return;
        }
        // Both dense and this one spans the other: plain additions.
        if self.first != SPARSE
            && other.first >= self.first
            && other.first as usize + other.counts.len() <= self.first as usize + self.counts.len()
        {
            let from = (other.first - self.first) as usize;
            for (counter, &count) in self.counts[from..].iter_mut().zip(&other.counts) {
                self.used += (*counter == 0 && count != 0) as u32;
                *counter += count;
            }
            self.total += other.total;
            return;
        }
        for (bin, count) in other.iter() {
            self.add(bin, count);
        }
    }

    /// Used bins and their counts, ascending.
    fn iter(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let first = self.first;
        self.counts.iter().enumerate().filter_map(move |(at, &word)| {
            if first == SPARSE {
                Some((bin_of(word), word & COUNT_MAX))
            } else {
                (word != 0).then_some((first + at as u32, word))
            }
        })
    }

    /// The bin of the value with this rank, ascending from 0; `rank` must be below `total`.
    fn bin_at(&self, rank: u64) -> u32 {
        let mut seen = 0;
        for (bin, count) in self.iter() {
            seen += count;
            if seen > rank {
                return bin;
            }
        }
        unreachable!("rank {rank} of {} values", self.total)
    }

    #[inline]
    fn prefetch_bin(&self, bin: u32) {
        // Sparse entries are searched; the middle is where that begins.
        let at = if self.first == SPARSE { self.counts.len() / 2 } else { bin.wrapping_sub(self.first) as usize };
        prefetch(self.counts.as_ptr().wrapping_add(at));
    }

    fn clear(&mut self) {
        self.counts.clear();
        self.first = SPARSE;
        self.used = 0;
        self.total = 0;
    }

    fn heap_bytes(&self) -> usize {
        self.counts.capacity() * size_of::<u64>()
    }
}

impl PartialEq for Store {
    fn eq(&self, other: &Store) -> bool {
        self.total == other.total && self.used == other.used && self.iter().eq(other.iter())
    }
}
impl Eq for Store {}

fn bin_of(entry: u64) -> u32 {
    (entry >> COUNT_BITS) as u32
}

fn entry(bin: u32, count: u64) -> u64 {
    ((bin as u64) << COUNT_BITS) | count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUANTILES: [u16; 7] = [0, 1, 500, 950, 990, 999, 1000];

    fn sketch_of(values: &[f64]) -> Sketch {
        let mut sketch = Sketch::new();
        values.iter().for_each(|&v| sketch.add(v));
        sketch
    }

    fn values() -> impl Strategy<Value = Vec<f64>> {
        let wild = any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |v| v.is_finite());
        let tame = prop_oneof![8 => 0.5..200.0f64, 2 => -50.0..50.0f64, 1 => Just(0.0), 1 => Just(1e300)];
        prop_oneof![prop::collection::vec(wild, 1..300), prop::collection::vec(tame, 1..2000)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn a_quantile_is_the_representative_of_the_value_at_its_rank(values in values()) {
            let sketch = sketch_of(&values);
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
            for q in QUANTILES {
                let exact = sorted[(q as usize * (sorted.len() - 1)) / 1000];
                let got = sketch.quantile(q, min, max).expect("not empty");
                prop_assert_eq!(got.to_bits(), representative(exact).clamp(min, max).to_bits());
                prop_assert!((got - exact).abs() <= exact.abs() * 0.010_000_1 || exact.abs() < 1e-300, "{} for {}", got, exact);
            }
        }

        #[test]
        fn order_and_grouping_change_nothing(values in values(), cut in any::<prop::sample::Index>()) {
            let (head, tail) = values.split_at(cut.index(values.len()));
            let whole = sketch_of(&values);
            let mut merged = sketch_of(tail);
            merged.merge(&sketch_of(&head.iter().rev().copied().collect::<Vec<_>>()));
            prop_assert_eq!(&merged, &whole);
            let mut other_way = sketch_of(head);
            other_way.merge(&sketch_of(tail));
            prop_assert_eq!(&other_way, &whole);
            prop_assert_eq!(whole.count(), values.len() as u64);
        }

        #[test]
        fn the_reference_crate_agrees_within_both_errors(values in prop::collection::vec(0.001..1e6f64, 1..500)) {
            let mut oracle = sketches_ddsketch::DDSketch::new(sketches_ddsketch::Config::defaults());
            values.iter().for_each(|&v| oracle.add(v));
            let sketch = sketch_of(&values);
            for q in [500, 950, 990] {
                let ours = sketch.quantile(q, f64::MIN, f64::MAX).expect("not empty");
                let theirs = oracle.quantile(q as f64 / 1000.0).expect("in range").expect("not empty");
                prop_assert!((ours / theirs - 1.0).abs() < 0.0203, "{} and {}", ours, theirs);
            }
        }
    }

    #[test]
    fn forms_change_and_nothing_is_lost() {
        let mut sketch = Sketch::new();
        for n in 1..=1000 {
            sketch.add(n as f64);
        }
        assert_ne!(sketch.positive.first, SPARSE, "a contiguous range is dense");
        assert!(sketch.heap_bytes() < 8 * 1024);
        let mut few = sketch_of(&[1.0, 1.1, 1.2]);
        few.add(1e300);
        few.add(1e-300);
        assert_eq!(few.positive.first, SPARSE, "outliers do not make it span the gap");
        assert!(few.heap_bytes() < 256);
        few.merge(&sketch);
        sketch.merge(&sketch_of(&[1e-300, 1e300, 1.2, 1.1, 1.0]));
        assert_eq!(few, sketch);
        assert_eq!(few.count(), 1005);
    }

    #[test]
    fn one_value_of_every_size_fits_in_bounded_memory_in_any_direction() {
        let all: Vec<f64> = (1..bins::BINS).map(bins::representative).collect();
        let mut up = Sketch::new();
        all.iter().for_each(|&v| up.add(v));
        let mut down = Sketch::new();
        all.iter().rev().for_each(|&v| down.add(v));
        let mut mixed = Sketch::new();
        (0..all.len()).for_each(|n| mixed.add(all[n * 7919 % all.len()]));
        assert!(up == down && down == mixed);
        for sketch in [up, down, mixed] {
            assert!(sketch.heap_bytes() <= 2 * 8 * bins::BINS as usize, "{}", sketch.heap_bytes());
        }
    }

    #[test]
    fn counts_beyond_a_sparse_entry_are_kept() {
        let mut sketch = Sketch::new();
        sketch.add_many(1e-200, COUNT_MAX);
        sketch.add_many(1.0, COUNT_MAX);
        sketch.add_many(1.0, COUNT_MAX);
        sketch.add_many(1e200, u64::MAX / 2);
        assert_eq!(sketch.count(), 3 * COUNT_MAX + u64::MAX / 2);
        assert_eq!(sketch.quantile(0, 0.0, f64::MAX).map(|v| v < 1e-199), Some(true));
        assert_eq!(sketch.quantile(990, 0.0, f64::MAX).map(|v| v > 1e199), Some(true));
    }

    #[test]
    fn the_rank_is_computed_in_integers() {
        assert_eq!(rank(500, 1), 0);
        assert_eq!(rank(500, 2), 0);
        assert_eq!(rank(500, 3), 1);
        assert_eq!(rank(990, 101), 99);
        assert_eq!(rank(990, 100), 98);
        assert_eq!(rank(1000, u64::MAX), u64::MAX - 1);
    }
}
