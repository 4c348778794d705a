//! What a window says about its values: the results, and the state that any number of values sum up to.
//!
//! **The result is a pure function of the multiset of values**: count; the exact sum, rounded once; min; max;
//! avg = sum / count; p50, p95 and p99 by the sketch's rank rule. It has the same bits whether it is computed from a
//! small set of values or from a [`Summary`], and whichever way parts were merged. Values are finite; -0 counts as +0.

use super::{prefetch::prefetch, set::Cell, sketch, sketch::Sketch, sum::ExactSum};

/// The results of one window of one series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aggregates {
    pub count: u64,
    /// Infinite when the exact sum is beyond `f64`; to be counted
    pub sum: f64,
    pub min: f64,
    pub max: f64,
    pub avg: f64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

impl Aggregates {
    /// Of a few values, by sorting them; `None` of no values.
    pub fn of(values: &mut [f64]) -> Option<Aggregates> {
        if let &mut [value] = values {
            // The most frequent case by far. A representative clamped to [value, value] is the value.
            let value = value + 0.0;
            let all = Aggregates {
                count: 1,
                sum: value,
                min: value,
                max: value,
                avg: value,
                p50: value,
                p95: value,
                p99: value,
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
            p50: quantile(500),
            p95: quantile(950),
            p99: quantile(990),
        })
    }

    /// Equal bit for bit: what decides whether a late partial changed a result.
    pub fn same_bits(&self, other: &Aggregates) -> bool {
        let bits = |a: &Aggregates| [a.sum, a.min, a.max, a.avg, a.p50, a.p95, a.p99].map(f64::to_bits);
        self.count == other.count && bits(self) == bits(other)
    }
}

/// Any number of values, without their identities.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    count: u64,
    sum: ExactSum,
    min: f64,
    max: f64,
    sketch: Sketch,
    /// Holds points with an identity that were taken in without looking for repeats
    unchecked: bool,
}

impl Default for Summary {
    fn default() -> Summary {
        Summary::new()
    }
}

impl Summary {
    pub fn new() -> Summary {
        Summary {
            count: 0,
            sum: ExactSum::new(),
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            sketch: Sketch::new(),
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
        self.sketch.add(value);
    }

    pub fn merge(&mut self, other: &Summary) {
        self.count += other.count;
        self.sum.merge(&other.sum);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sketch.merge(&other.sketch);
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
            self.sketch.add_many(value, count);
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

    pub(super) fn sketch(&self) -> &Sketch {
        &self.sketch
    }

    pub fn is_unchecked(&self) -> bool {
        self.unchecked
    }

    pub fn mark_unchecked(&mut self) {
        self.unchecked = true;
    }

    /// `None` of no values.
    pub fn aggregates(&self) -> Option<Aggregates> {
        let quantile = |per_mille| self.sketch.quantile(per_mille, self.min, self.max);
        let sum = self.sum.to_f64();
        Some(Aggregates {
            count: self.count,
            sum,
            min: self.min,
            max: self.max,
            avg: sum / self.count as f64,
            p50: quantile(500)?,
            p95: quantile(950)?,
            p99: quantile(990)?,
        })
    }

    /// A quantile in thousandths, by the documented rank rule; `None` of no values.
    pub fn quantile(&self, per_mille: u16) -> Option<f64> {
        self.sketch.quantile(per_mille, self.min, self.max)
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        let mut sketch = std::mem::take(&mut self.sketch);
        sketch.clear();
        *self = Summary { sketch, ..Summary::new() };
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
        self.sketch.prefetch_bin(value);
    }

    pub fn heap_bytes(&self) -> usize {
        self.sum.heap_bytes() + self.sketch.heap_bytes()
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
            let got = Aggregates::of(&mut values.clone()).expect("not empty");
            prop_assert_eq!((got.count, got.sum, got.avg), (values.len() as u64, sum, sum / values.len() as f64));
            prop_assert_eq!((got.min, got.max), (sorted[0], sorted[sorted.len() - 1]));
            for (q, quantile) in [(500, got.p50), (950, got.p95), (990, got.p99)] {
                let at_rank = sorted[q * (sorted.len() - 1) / 1000];
                prop_assert!((quantile - at_rank).abs() <= 0.01 * at_rank.abs());
            }
            let mut merged = Summary::new();
            for part in values.chunks(values.len().div_ceil(parts)) {
                let mut summary = Summary::new();
                part.iter().for_each(|&v| summary.add(v));
                merged.merge(&summary);
            }
            prop_assert!(merged.aggregates().expect("not empty").same_bits(&got));
        }
    }

    #[test]
    fn a_cleared_summary_is_a_new_one() {
        let mut summary = Summary::new();
        (0..500).for_each(|n| summary.add(n as f64));
        summary.mark_unchecked();
        summary.clear();
        assert_eq!(summary, Summary::new());
        assert!(summary.heap_bytes() > 0, "it keeps its memory");
        assert_eq!(summary.aggregates(), None);
        summary.add(-0.0);
        let all = summary.aggregates().expect("one value");
        assert!(all.same_bits(&Aggregates::of(&mut [-0.0]).expect("one value")));
        assert_eq!(all.sum.to_bits(), 0);
        assert_eq!(all.min.to_bits(), 0);
    }
}
