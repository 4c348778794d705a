//! What a [`Summary`] is made of, as bytes: so that windows of several appliances can be merged without any rounding.
//!
//! Count, least and greatest value stand beside it where it is stored; here are the exact sum and the sketch's bins.
//! Two states merge by adding: sums as exact numbers, counts bin by bin. Reading never panics, never allocates, and never
//! reads past the buffer. A *varint* is unsigned LEB128 in its shortest form.
//!
//! | type | field |
//! |---|---|
//! | varint | sum: 2 x bytes of the magnitude, + 1 when it is negative; 0 for a sum of zero |
//! | bytes | magnitude, an odd integer, least byte first, without zeros at its end |
//! | varint | exponent e of two, zigzag; left out for a sum of zero. The sum is +-magnitude x 2^e |
//! | varint | count of zeros (this and what follows are 0 where quantiles were not wanted) |
//! | varint | used bins of negative values, then for each: varint bin (less the one before), varint count |
//! | varint | the same of positive values |
//!
//! Bins are those of `bins`: value v > 0 with v = 2^k (1 + f) falls into bin 8192 + 35 (k + 1061) + floor(35 log2(1 + f)),
//! with edges as that file states them; below 2^-1061 the bin is v / 2^-1074.

use super::sum::ExactSum;
use super::summary::{Detail, Summary};

/// Appends the state of `summary`.
pub fn put(summary: &Summary, out: &mut Vec<u8>) {
    summary.sum().put(out);
    match summary.sketch() {
        Some(sketch) => sketch.put(out),
        None => out.extend_from_slice(&[0; 3]),
    }
}

/// Appends the state of `count` values that all equal `value`.
pub fn put_equal(value: f64, count: u64, detail: Detail, out: &mut Vec<u8>) {
    let mut summary = Summary::new(detail);
    summary.add_many(value, count);
    put(&summary, out);
}

/// A state, checked to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateView<'a> {
    pub sum: SumView<'a>,
    pub zeros: u64,
    negative: &'a [u8],
    positive: &'a [u8],
}

/// (-1)^negative x magnitude x 2^exponent
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumView<'a> {
    pub negative: bool,
    /// Least byte first; empty for zero
    pub magnitude: &'a [u8],
    pub exponent: i32,
}

/// 2163 bits: 34 limbs of a wide sum.
const MAGNITUDE_BYTES_MAX: u64 = 272;

impl<'a> StateView<'a> {
    /// The state at the start of `bytes`, and how many bytes it takes; `None` when there is none.
    pub fn read(bytes: &'a [u8]) -> Option<(StateView<'a>, usize)> {
        let mut at = 0;
        let head = take_varint(bytes, &mut at)?;
        let sum = if head == 0 {
            SumView { negative: false, magnitude: &[], exponent: 0 }
        } else {
            let length = head / 2;
            if length == 0 || length > MAGNITUDE_BYTES_MAX {
                return None;
            }
            let magnitude = bytes.get(at..)?.get(..length as usize)?;
            at += magnitude.len();
            if magnitude[0] & 1 == 0 || magnitude[magnitude.len() - 1] == 0 {
                return None;
            }
            let zigzag = u32::try_from(take_varint(bytes, &mut at)?).ok()?;
            let exponent = (zigzag >> 1) as i32 ^ -((zigzag & 1) as i32);
            if !(-1074..=1100).contains(&exponent) {
                return None;
            }
            SumView { negative: head & 1 == 1, magnitude, exponent }
        };
        let zeros = take_varint(bytes, &mut at)?;
        let negative = take_bins(bytes, &mut at)?;
        let positive = take_bins(bytes, &mut at)?;
        Some((StateView { sum, zeros, negative, positive }, at))
    }

    /// Bins of negative values by magnitude, and their counts; ascending.
    pub fn negative(&self) -> impl Iterator<Item = (u32, u64)> + 'a {
        bins(self.negative)
    }
    pub fn positive(&self) -> impl Iterator<Item = (u32, u64)> + 'a {
        bins(self.positive)
    }

    /// How many values its bins hold, 0 where no sketch was made; saturates on nonsense.
    pub fn count(&self) -> u64 {
        let counts = self.negative().chain(self.positive()).map(|(_, count)| count);
        counts.fold(self.zeros, u64::saturating_add)
    }
}

/// The bins' bytes behind their number, every one of them looked at.
fn take_bins<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let used = take_varint(bytes, at)?;
    if used > u64::from(super::bins::BINS) {
        return None;
    }
    let start = *at;
    let mut bin = 0u64;
    for _ in 0..used {
        let step = take_varint(bytes, at)?;
        bin = bin.checked_add(step)?;
        if step == 0 || bin >= u64::from(super::bins::BINS) || take_varint(bytes, at)? == 0 {
            return None;
        }
    }
    bytes.get(start..*at)
}

fn bins(bytes: &[u8]) -> impl Iterator<Item = (u32, u64)> + '_ {
    let (mut at, mut bin) = (0, 0u64);
    std::iter::from_fn(move || {
        bin += take_varint(bytes, &mut at)?;
        Some((bin as u32, take_varint(bytes, &mut at)?))
    })
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        let bits = u64::from(byte & 0x7F);
        if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

impl ExactSum {
    /// The first three fields.
    fn put(&self, out: &mut Vec<u8>) {
        let (negative, limbs, exponent) = self.parts();
        let Some(top) = limbs.iter().rposition(|&limb| limb != 0) else { return out.push(0) };
        let length = top * 8 + (64 - limbs[top].leading_zeros() as usize).div_ceil(8);
        put_varint(out, (length as u64) << 1 | u64::from(negative));
        let bytes = limbs.iter().flat_map(|limb| limb.to_le_bytes()).take(length);
        out.extend(bytes);
        put_varint(out, u64::from(((exponent << 1) ^ (exponent >> 31)) as u32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_bigint::{BigInt, Sign};
    use num_rational::BigRational;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn state_of(values: &[f64]) -> Vec<u8> {
        let mut summary = Summary::new(Detail::Quantiles);
        values.iter().for_each(|&value| summary.add(value));
        let mut out = Vec::new();
        put(&summary, &mut out);
        out
    }

    fn rational(sum: SumView<'_>) -> BigRational {
        let sign = if sum.negative { Sign::Minus } else { Sign::Plus };
        let magnitude = BigInt::from_bytes_le(sign, sum.magnitude);
        let power = BigInt::from(1) << sum.exponent.unsigned_abs();
        if sum.exponent < 0 { BigRational::new(magnitude, power) } else { BigRational::from(magnitude * power) }
    }

    fn values() -> impl Strategy<Value = Vec<f64>> {
        let wild = any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |v| v.is_finite());
        let tame = prop_oneof![8 => 0.5..200.0f64, 2 => -50.0..50.0f64, 1 => Just(0.0), 1 => Just(0.1)];
        prop_oneof![prop::collection::vec(wild, 1..40), prop::collection::vec(tame, 1..300)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]
        #[test]
        fn states_of_parts_add_up_to_the_state_of_all(values in values(), parts in 1usize..5) {
            let all = state_of(&values);
            let (view, used) = StateView::read(&all).expect("just written");
            prop_assert_eq!(used, all.len());
            prop_assert_eq!(view.count(), values.len() as u64);
            let exact: BigRational = values.iter().map(|&v| BigRational::from_float(v).expect("finite")).sum();
            prop_assert_eq!(rational(view.sum), exact);

            let (mut negative, mut positive) = (BTreeMap::new(), BTreeMap::new());
            let (mut zeros, mut sum) = (0, BigRational::from(BigInt::from(0)));
            for part in values.chunks(values.len().div_ceil(parts)) {
                let bytes = state_of(part);
                let (view, _) = StateView::read(&bytes).expect("just written");
                view.negative().for_each(|(bin, count)| *negative.entry(bin).or_insert(0) += count);
                view.positive().for_each(|(bin, count)| *positive.entry(bin).or_insert(0) += count);
                zeros += view.zeros;
                sum += rational(view.sum);
            }
            prop_assert_eq!(negative, view.negative().collect::<BTreeMap<_, _>>());
            prop_assert_eq!(positive, view.positive().collect::<BTreeMap<_, _>>());
            prop_assert_eq!((zeros, sum), (view.zeros, rational(view.sum)));
        }

        #[test]
        fn equal_values_have_the_state_of_adding_them_one_by_one(value in -1e300..1e300f64, count in 1usize..200) {
            let mut out = Vec::new();
            put_equal(value, count as u64, Detail::Quantiles, &mut out);
            prop_assert_eq!(out, state_of(&vec![value; count]));
        }
    }

    #[test]
    fn without_quantiles_there_is_the_sum_alone() {
        let mut summary = Summary::new(Detail::Plain);
        [1.0, 2.0].iter().for_each(|&value| summary.add(value));
        let mut out = Vec::new();
        put(&summary, &mut out);
        let (view, used) = StateView::read(&out).expect("just written");
        assert_eq!((used, view.count(), rational(view.sum)), (out.len(), 0, BigRational::from(BigInt::from(3))));
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        // 1.5 = 3 x 2^-1, zigzag of -1 is 1; 2^0 begins bin 8192 + 35 x 1061 = 45327, and 1.5 is 20 bins on.
        assert_eq!(state_of(&[1.5]), [2, 3, 1, 0, 0, 1, 0xA3, 0xE2, 2, 1]);
        assert_eq!(state_of(&[0.0, -0.0]), [0, 2, 0, 0]);
        assert_eq!(state_of(&[-2.0, 1.0]), [3, 1, 0, 0, 1, 0xB2, 0xE2, 2, 1, 1, 0x8F, 0xE2, 2, 1]);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic_and_never_past_their_end() {
        let mut seed = 7u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize
        };
        let good = state_of(&[1.5, -3.0, 0.0, 1e300, -1e-310]);
        for length in 0..good.len() {
            assert_eq!(StateView::read(&good[..length]), None, "cut to {length}");
        }
        for _ in 0..100_000 {
            let mut bytes = good.clone();
            for _ in 0..=random() % 3 {
                let at = random() % bytes.len();
                bytes[at] = random() as u8;
            }
            if let Some((view, used)) = StateView::read(&bytes) {
                assert!(used <= bytes.len());
                assert!(view.count() >= view.zeros);
            }
        }
    }
}
