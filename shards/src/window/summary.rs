//! What a window says about its values: the results, and the state that any number of values sum up to.
//!
//! **The result is a pure function of the multiset of values**: count; the exact sum, rounded once; min; max;
//! avg = sum / count; where they are wanted ([`Detail`]) p50, p95 and p99 by the sketch's rank rule. It has the same bits
//! whether it is computed from a small set of values or from a [`Summary`], and whichever way parts were merged. Values
//! are finite; -0 counts as +0.

use super::{prefetch::prefetch, set::Cell, sketch, sketch::Sketch, sum::ExactSum};

/// Which results are wanted: one answer for the whole process, `windows.quantiles`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Count, sum, min, max and avg: no sketch is made anywhere
    Plain,
    /// And p50, p95 and p99
    Quantiles,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantiles {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

impl Quantiles {
    /// Of values that are all equal: a representative clamped to [value, value] is the value.
    pub fn all(value: f64) -> Quantiles {
        Quantiles { p50: value, p95: value, p99: value }
    }

    pub fn to_bits(self) -> [u64; 3] {
        [self.p50, self.p95, self.p99].map(f64::to_bits)
    }
}

/// The results of one window of one series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aggregates {
    pub count: u64,
    /// Infinite when the exact sum is beyond `f64`; to be counted
    pub sum: f64,
    pub min: f64,
    pub max: f64,
    pub avg: f64,
    /// `None` where they were not wanted
    pub quantiles: Option<Quantiles>,
}

impl Aggregates {
    /// Of a few values, by sorting them; `None` of no values.
    pub fn of(values: &mut [f64], detail: Detail) -> Option<Aggregates> {
        if let &mut [value] = values {
            // The most frequent case by far.
            let value = value + 0.0;
            let all = Aggregates {
                count: 1,
                sum: value,
                min: value,
                max: value,
                avg: value,
                quantiles: (detail == Detail::Quantiles).then(|| Quantiles::all(value)),
            };
            return Some(all);
        }
        values.iter_mut().for_each(|value| *value += 0.0); // -0 becomes +0
        values.sort_unstable_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let count = values.len() as u64;
        let quantile = |per_mille| {
            let value = values[sketch::rank(per_mille, count) as usize];
            sketch::representative(value).clamp(min, max)
        };
        let sum = ExactSum::of(values);
        Some(Aggregates {
            count,
            sum,
            min,
            max,
            avg: sum / count as f64,
            quantiles: (detail == Detail::Quantiles).then(|| Quantiles {
                p50: quantile(500),
                p95: quantile(950),
                p99: quantile(990),
            }),
        })
    }

    /// Equal bit for bit.
    pub fn same_bits(&self, other: &Aggregates) -> bool {
        self.same_values(other) && self.quantiles.is_some() == other.quantiles.is_some()
    }

    /// Equal bit for bit in everything that both have. Of equal values nothing else can differ: this decides whether a
    /// result that was logged under the other [`Detail`] is still right.
    pub fn same_values(&self, other: &Aggregates) -> bool {
        let bits = |a: &Aggregates| [a.sum, a.min, a.max, a.avg].map(f64::to_bits);
        self.count == other.count
            && bits(self) == bits(other)
            && self.quantiles.zip(other.quantiles).is_none_or(|(a, b)| a.to_bits() == b.to_bits())
    }
}

/// Any number of values, without their identities.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    count: u64,
    sum: ExactSum,
    min: f64,
    max: f64,
    /// `None` where quantiles are not wanted
    sketch: Option<Sketch>,
    /// Holds points with an identity that were taken in without looking for repeats
    unchecked: bool,
}

impl Summary {
    pub fn new(detail: Detail) -> Summary {
        Summary {
            count: 0,
            sum: ExactSum::new(),
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            sketch: (detail == Detail::Quantiles).then(Sketch::new),
            unchecked: false,
        }
    }

    #[inline]
    pub fn add(&mut self, value: f64) {
        let value = value + 0.0; // -0 becomes +0
        self.count += 1;
        self.sum.add(value);
        self.min = if value < self.min { value } else { self.min };
        self.max = if value > self.max { value } else { self.max };
        if let Some(sketch) = &mut self.sketch {
            sketch.add(value);
        }
    }

    /// All of one process are of one [`Detail`]. Should they not be, the result has no quantiles: a sketch of some of the
    /// values would be a wrong one.
    pub fn merge(&mut self, other: &Summary) {
        self.count += other.count;
        self.sum.merge(&other.sum);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        if let (Some(sketch), Some(theirs)) = (&mut self.sketch, &other.sketch) {
            sketch.merge(theirs);
        }
        self.unchecked |= other.unchecked;
    }

    /// Adds `count` equal values.
    pub fn add_many(&mut self, value: f64, count: u64) {
        if count > 0 {
            let value = value + 0.0; // -0 becomes +0
            self.count += count;
            self.sum.add_many(value, count);
            self.min = self.min.min(value);
            self.max = self.max.max(value);
            if let Some(sketch) = &mut self.sketch {
                sketch.add_many(value, count);
            }
        }
    }

    /// Adds what a cell holds: longer windows from shorter ones, rules from series.
    pub fn add_cell(&mut self, cell: &Cell) {
        match cell.summary() {
            Some(summary) => self.merge(summary),
            None => cell.entries().iter().for_each(|entry| self.add(entry.value)),
        }
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn sum(&self) -> &ExactSum {
        &self.sum
    }

    pub(super) fn sketch(&self) -> Option<&Sketch> {
        self.sketch.as_ref()
    }

    pub fn is_unchecked(&self) -> bool {
        self.unchecked
    }

    pub fn mark_unchecked(&mut self) {
        self.unchecked = true;
    }

    /// `None` of no values.
    pub fn aggregates(&self) -> Option<Aggregates> {
        if self.count == 0 {
            return None;
        }
        let sum = self.sum.to_f64();
        Some(Aggregates {
            count: self.count,
            sum,
            min: self.min,
            max: self.max,
            avg: sum / self.count as f64,
            quantiles: self.quantiles(),
        })
    }

    fn quantiles(&self) -> Option<Quantiles> {
        let sketch = self.sketch.as_ref().filter(|sketch| sketch.count() == self.count)?;
        let quantile = |per_mille| sketch.quantile(per_mille, self.min, self.max);
        Some(Quantiles { p50: quantile(500)?, p95: quantile(950)?, p99: quantile(990)? })
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        let mut sketch = self.sketch.take();
        sketch.iter_mut().for_each(Sketch::clear);
        *self = Summary { sketch, ..Summary::new(Detail::Plain) };
    }

    /// Asks for all of it but what is on the heap.
    #[inline]
    pub(super) fn prefetch(&self) {
        let start: *const u8 = (&raw const *self).cast();
        for line in 0..size_of::<Summary>().div_ceil(64) {
            prefetch(start.wrapping_add(64 * line));
        }
    }

    #[inline]
    pub(super) fn prefetch_bin(&self, value: f64) {
        if let Some(sketch) = &self.sketch {
            sketch.prefetch_bin(value);
        }
    }

    pub fn heap_bytes(&self) -> usize {
        self.sum.heap_bytes() + self.sketch.as_ref().map_or(0, Sketch::heap_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_rational::BigRational;
    use num_traits::ToPrimitive;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn results_agree_with_rationals_and_a_sort_whatever_holds_the_values(
            values in prop::collection::vec(prop_oneof![-1e3..1e3f64, Just(0.1), Just(1e-9), Just(0.0)], 1..200),
            parts in 1usize..6,
        ) {
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let exact: BigRational = values.iter().map(|&v| BigRational::from_float(v).expect("finite")).sum();
            let sum = exact.to_f64().expect("in range");
            let got = Aggregates::of(&mut values.clone(), Detail::Quantiles).expect("not empty");
            prop_assert_eq!((got.count, got.sum, got.avg), (values.len() as u64, sum, sum / values.len() as f64));
            prop_assert_eq!((got.min, got.max), (sorted[0], sorted[sorted.len() - 1]));
            let quantiles = got.quantiles.expect("wanted");
            for (q, quantile) in [(500, quantiles.p50), (950, quantiles.p95), (990, quantiles.p99)] {
                let at_rank = sorted[q * (sorted.len() - 1) / 1000];
                prop_assert!((quantile - at_rank).abs() <= 0.01 * at_rank.abs());
            }
            let mut merged = Summary::new(Detail::Quantiles);
            for part in values.chunks(values.len().div_ceil(parts)) {
                let mut summary = Summary::new(Detail::Quantiles);
                part.iter().for_each(|&v| summary.add(v));
                merged.merge(&summary);
            }
            prop_assert!(merged.aggregates().expect("not empty").same_bits(&got));

            // Without quantiles everything else is the same to the bit.
            let plain = Aggregates::of(&mut values.clone(), Detail::Plain).expect("not empty");
            prop_assert!(plain.same_bits(&Aggregates { quantiles: None, ..got }), "{:?} {:?}", plain, got);
            let mut summary = Summary::new(Detail::Plain);
            values.iter().for_each(|&v| summary.add(v));
            prop_assert!(summary.aggregates().expect("not empty").same_bits(&plain));
        }
    }

    #[test]
    fn a_sketch_of_some_of_the_values_gives_no_quantiles() {
        let of = |detail| {
            let mut summary = Summary::new(detail);
            (0..100).for_each(|n| summary.add(n as f64));
            summary
        };
        for (left, right) in [(Detail::Plain, Detail::Quantiles), (Detail::Quantiles, Detail::Plain)] {
            let mut merged = of(left);
            merged.merge(&of(right));
            let all = merged.aggregates().expect("not empty");
            assert_eq!((all.count, all.sum, all.quantiles), (200, 9900.0, None));
        }
        assert!(of(Detail::Plain).heap_bytes() == 0 && of(Detail::Quantiles).heap_bytes() > 0);
    }

    #[test]
    fn a_cleared_summary_is_a_new_one() {
        let mut summary = Summary::new(Detail::Quantiles);
        (0..500).for_each(|n| summary.add(n as f64));
        summary.mark_unchecked();
        summary.clear();
        assert_eq!(summary, Summary::new(Detail::Quantiles));
        assert!(summary.heap_bytes() > 0, "it keeps its memory");
        assert_eq!(summary.aggregates(), None);
        summary.add(-0.0);
        let all = summary.aggregates().expect("one value");
        assert!(all.same_bits(&Aggregates::of(&mut [-0.0], Detail::Quantiles).expect("one value")));
        assert_eq!(all.sum.to_bits(), 0);
        assert_eq!(all.min.to_bits(), 0);
    }
}
