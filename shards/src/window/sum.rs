//! Exact sums of `f64`: the same bits for any order of the terms and any grouping into merges.
//!
//! A compensated sum still depends on order, and then one shard and four shards differ in the last bit. Here the sum
//! is kept without any rounding and rounded once, to nearest even, in [`ExactSum::to_f64`].
//!
//! Two forms, one meaning. *Fixed* is a 128-bit integer times a power of two chosen at the first value: two integer
//! additions a term, no allocation. What does not fit there moves to *wide*, a boxed integer that spans every `f64`
//! with 64 carry bits (the superaccumulator of Kulisch), so that 2^64 terms of any size cannot overflow it.
//! Terms must be finite; NaN and infinities are refused at decode.

/// The exponent of the least bit of an `f64`: every finite value is a multiple of 2^-1074.
const LEAST_EXPONENT: i32 = -1074;
/// Bits kept free below the first value, so that somewhat smaller ones need no new exponent.
const ROOM_BELOW_BITS: i32 = 20;
/// A shifted term stays below 2^(53 + 72) < 2^127.
const SHIFT_MAX: u32 = 72;
/// 2098 bits of `f64` range, 64 of carry, one of sign: 2163 bits.
const LIMBS: usize = 34;

/// The unrounded sum of any number of finite `f64`. Equality is equality of the sums, whatever their forms.
#[derive(Clone, Debug)]
pub struct ExactSum(Form);

#[derive(Clone, Debug)]
enum Form {
    /// `(hi * 2^64 + lo) * 2^exponent`; halves, because an `i128` would make every holder 16-byte aligned
    Fixed {
        hi: i64,
        lo: u64,
        exponent: i32,
    },
    Wide(Box<Wide>),
}

impl Default for ExactSum {
    fn default() -> ExactSum {
        ExactSum::new()
    }
}

impl ExactSum {
    pub const fn new() -> ExactSum {
        // An exponent above every value's: the first term takes the slow path, which chooses the real one.
        ExactSum(Form::Fixed { hi: 0, lo: 0, exponent: i32::MAX / 2 })
    }

    /// The exactly rounded sum of a slice.
    pub fn of(values: &[f64]) -> f64 {
        let mut sum = ExactSum::new();
        for &value in values {
            sum.add(value);
        }
        sum.to_f64()
    }

    #[inline]
    pub fn add(&mut self, value: f64) {
        debug_assert!(value.is_finite(), "non-finite values are refused before they are summed");
        let (significand, value_exponent) = take_apart(value);
        if let Form::Fixed { hi, lo, exponent } = &mut self.0 {
            let shift = (value_exponent - *exponent) as u32;
            if shift <= SHIFT_MAX {
                let accumulated = join(*hi, *lo);
                if let Some(total) = accumulated.checked_add((significand as i128) << shift) {
                    (*hi, *lo) = split(total);
                    return;
                }
            }
        }
        self.add_scaled_integer(significand as i128, value_exponent);
    }

    /// Adds `count` equal terms.
    pub fn add_many(&mut self, value: f64, count: u64) {
        let (significand, exponent) = take_apart(value);
        // At most 53 + 64 bits.
        self.add_scaled_integer(significand as i128 * count as i128, exponent);
    }

    /// Sign, magnitude without trailing zero bits (least limb first), and its exponent of two.
    pub(super) fn parts(&self) -> (bool, [u64; LIMBS], i32) {
        let (negative, mut limbs, exponent) = match &self.0 {
            Form::Fixed { hi, lo, exponent } => {
                let total = join(*hi, *lo);
                let magnitude = total.unsigned_abs();
                let mut limbs = [0; LIMBS];
                limbs[..2].copy_from_slice(&[magnitude as u64, (magnitude >> 64) as u64]);
                (total < 0, limbs, *exponent)
            }
            Form::Wide(wide) => {
                let (negative, magnitude) = wide.magnitude();
                (negative, magnitude, LEAST_EXPONENT)
            }
        };
        let Some(first) = limbs.iter().position(|&limb| limb != 0) else { return (false, limbs, 0) };
        let (whole, bits) = (first, limbs[first].trailing_zeros());
        limbs.copy_within(whole.., 0);
        limbs[LIMBS - whole..].fill(0);
        if bits > 0 {
            for at in 0..LIMBS {
                let above = limbs.get(at + 1).copied().unwrap_or(0);
                limbs[at] = limbs[at] >> bits | above << (64 - bits);
            }
        }
        (negative, limbs, exponent + (whole * 64) as i32 + bits as i32)
    }

    pub fn merge(&mut self, other: &ExactSum) {
        if let (Form::Fixed { hi, lo, exponent }, Form::Fixed { hi: its_hi, lo: its_lo, exponent: its }) =
            (&mut self.0, &other.0)
            && exponent == its
            && let Some(total) = join(*hi, *lo).checked_add(join(*its_hi, *its_lo))
        {
            (*hi, *lo) = split(total);
            return;
        }
        match &other.0 {
            Form::Fixed { hi, lo, exponent } => self.add_scaled_integer(join(*hi, *lo), *exponent),
            Form::Wide(wide) => self.widen().add_wide(wide),
        }
    }

    /// Rounds once, to nearest, ties to even. Zero is +0. A sum beyond `f64::MAX` is an infinity of its sign: a
    /// defined result, for the caller to count.
    pub fn to_f64(&self) -> f64 {
        match &self.0 {
            Form::Fixed { hi, lo, exponent } => {
                let total = join(*hi, *lo);
                round(total < 0, total.unsigned_abs(), *exponent)
            }
            Form::Wide(wide) => wide.to_f64(),
        }
    }

    /// Bytes on the heap, for memory budgets.
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Form::Fixed { .. } => 0,
            Form::Wide(_) => size_of::<Wide>(),
        }
    }

    /// Adds `integer * 2^exponent`: looks for an exponent at which both fit, and goes wide when there is none.
    #[cold]
    fn add_scaled_integer(&mut self, integer: i128, exponent: i32) {
        if integer == 0 {
            return;
        }
        let (integer, exponent) = without_trailing_zeros(integer, exponent);
        if let Form::Fixed { hi, lo, exponent: own } = &mut self.0
            && let Some((total, chosen)) = add_fixed((join(*hi, *lo), *own), (integer, exponent))
        {
            (*hi, *lo) = split(total);
            *own = chosen;
            return;
        }
        self.widen().add_integer(integer, exponent);
    }

    fn widen(&mut self) -> &mut Wide {
        if let Form::Fixed { hi, lo, exponent } = self.0 {
            let mut wide = Box::new(Wide { limbs: [0; LIMBS] });
            wide.add_integer(join(hi, lo), exponent);
            self.0 = Form::Wide(wide);
        }
        match &mut self.0 {
            Form::Wide(wide) => wide,
            Form::Fixed { .. } => unreachable!("made wide just above"),
        }
    }
}

impl PartialEq for ExactSum {
    fn eq(&self, other: &ExactSum) -> bool {
        let wide = |sum: &ExactSum| match &sum.0 {
            Form::Fixed { hi, lo, exponent } => {
                let mut wide = Wide { limbs: [0; LIMBS] };
                wide.add_integer(join(*hi, *lo), *exponent);
                wide
            }
            Form::Wide(wide) => Wide { limbs: wide.limbs },
        };
        wide(self).limbs == wide(other).limbs
    }
}

/// `value = significand * 2^exponent`, exactly.
#[inline]
fn take_apart(value: f64) -> (i64, i32) {
    let bits = value.to_bits();
    let exponent_field = (bits >> 52) as i32 & 0x7ff;
    let fraction = (bits & ((1 << 52) - 1)) as i64;
    let normal = (exponent_field != 0) as i64;
    let magnitude = fraction | (normal << 52);
    let sign = (bits as i64) >> 63; // 0 or -1
    let significand = (magnitude ^ sign) - sign;
    (significand, exponent_field.max(1) - 1075)
}

#[inline]
fn join(hi: i64, lo: u64) -> i128 {
    ((hi as i128) << 64) | lo as i128
}

#[inline]
fn split(total: i128) -> (i64, u64) {
    ((total >> 64) as i64, total as u64)
}

fn without_trailing_zeros(integer: i128, exponent: i32) -> (i128, i32) {
    if integer == 0 {
        return (0, exponent);
    }
    let zeros = integer.trailing_zeros();
    (integer >> zeros, exponent + zeros as i32)
}

fn bit_length(integer: i128) -> i32 {
    (128 - integer.unsigned_abs().leading_zeros()) as i32
}

/// The sum of two scaled integers as one, with some room below, or `None` when 127 bits do not hold it.
fn add_fixed((a, a_exponent): (i128, i32), (b, b_exponent): (i128, i32)) -> Option<(i128, i32)> {
    let (a, a_exponent) = without_trailing_zeros(a, a_exponent);
    let least = if a == 0 { b_exponent } else { a_exponent.min(b_exponent) };
    let shifted = |integer: i128, exponent: i32| {
        if integer == 0 {
            return Some(0);
        }
        let shift = exponent - least;
        (bit_length(integer) + shift <= 126).then(|| integer << shift)
    };
    let total = shifted(a, a_exponent)?.checked_add(shifted(b, b_exponent)?)?;
    // Lower the exponent for what may come, but leave 32 bits above for the sum to grow.
    let room = ROOM_BELOW_BITS.min(127 - 32 - bit_length(total)).min(least - LEAST_EXPONENT).max(0);
    Some((total << room, least - room))
}

/// `magnitude * 2^exponent`, rounded to nearest even.
fn round(negative: bool, magnitude: u128, exponent: i32) -> f64 {
    if magnitude == 0 {
        return 0.0;
    }
    let top = 127 - magnitude.leading_zeros() as i32 + exponent;
    let bits = if top > 1023 {
        f64::INFINITY.to_bits()
    } else {
        let least = (top - 52).max(LEAST_EXPONENT);
        let shift = least - exponent;
        let significand = if shift <= 0 {
            (magnitude << -shift) as u64
        } else if shift >= 128 {
            // Wholly below the least subnormal: cannot come from sums of `f64`, whose least bit is 2^-1074.
            0
        } else {
            let kept = (magnitude >> shift) as u64;
            let rest = magnitude & ((1 << shift) - 1);
            let half = 1 << (shift - 1);
            kept + (rest > half || (rest == half && kept & 1 == 1)) as u64
        };
        // Subnormals are their significand. For the others a carry out of the significand runs into the exponent
        // field, where it is right: the next power of two, and infinity after the largest.
        if top < -1022 { significand } else { (((top + 1023) as u64) << 52) + (significand - (1 << 52)) }
    };
    f64::from_bits(bits | (negative as u64) << 63)
}

/// A two's complement integer of 34 limbs, least first, in units of 2^-1074.
#[derive(Clone, Debug)]
struct Wide {
    limbs: [u64; LIMBS],
}

impl Wide {
    fn add_integer(&mut self, integer: i128, exponent: i32) {
        if integer == 0 {
            return;
        }
        let (integer, exponent) = without_trailing_zeros(integer, exponent);
        assert!(exponent >= LEAST_EXPONENT, "sums of f64 are multiples of 2^-1074");
        let position = (exponent - LEAST_EXPONENT) as usize;
        let (first, offset) = (position / 64, position % 64);
        let magnitude = integer.unsigned_abs();
        let low = magnitude << offset;
        let high = if offset == 0 { 0 } else { (magnitude >> (128 - offset)) as u64 };
        let parts = [low as u64, (low >> 64) as u64, high];
        let mut carry = false;
        for (at, limb) in self.limbs[first..].iter_mut().enumerate() {
            let part = parts.get(at).copied().unwrap_or(0);
            if at >= parts.len() && !carry {
                break;
            }
            let (sum, over_part) = if integer < 0 { limb.overflowing_sub(part) } else { limb.overflowing_add(part) };
            let (sum, over_carry) =
                if integer < 0 { sum.overflowing_sub(carry as u64) } else { sum.overflowing_add(carry as u64) };
            *limb = sum;
            carry = over_part | over_carry;
        }
    }

    fn add_wide(&mut self, other: &Wide) {
        let mut carry = false;
        for (limb, &part) in self.limbs.iter_mut().zip(&other.limbs) {
            let (sum, over_part) = limb.overflowing_add(part);
            let (sum, over_carry) = sum.overflowing_add(carry as u64);
            *limb = sum;
            carry = over_part | over_carry;
        }
    }

    fn magnitude(&self) -> (bool, [u64; LIMBS]) {
        let negative = (self.limbs[LIMBS - 1] as i64) < 0;
        let mut magnitude = self.limbs;
        if negative {
            let mut carry = true;
            for limb in &mut magnitude {
                let (sum, over) = (!*limb).overflowing_add(carry as u64);
                *limb = sum;
                carry = over;
            }
        }
        (negative, magnitude)
    }

    fn to_f64(&self) -> f64 {
        let (negative, magnitude) = self.magnitude();
        let Some(top) = magnitude.iter().rposition(|&limb| limb != 0) else { return 0.0 };
        // Three limbs: at least 129 bits, folded to 128 with a sticky last bit; far more than the 54 that decide.
        let limb = |n: usize| magnitude.get(n).copied().unwrap_or(0);
        if top < 2 {
            let low = ((limb(1) as u128) << 64) | limb(0) as u128;
            return round(negative, low, LEAST_EXPONENT);
        }
        let leading = ((limb(top) as u128) << 64) | limb(top - 1) as u128;
        let sticky = magnitude[..top - 1].iter().any(|&limb| limb != 0) as u128;
        round(negative, leading | sticky, LEAST_EXPONENT + 64 * (top as i32 - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_bigint::BigInt;
    use num_rational::BigRational;
    use num_traits::{ToPrimitive, Zero};
    use proptest::prelude::*;

    /// Any finite value, with the awkward ones often.
    pub(crate) fn finite() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<u64>().prop_map(|bits| f64::from_bits(bits & !(0x400 << 52))),
            any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |v| v.is_finite()),
            (-1e6..1e6f64),
            (-1000i32..1000).prop_map(|n| n as f64 / 10.0),
            prop::sample::select(vec![
                0.0,
                -0.0,
                0.1,
                1e-9,
                1e300,
                -1e300,
                5e-324,
                f64::MAX,
                f64::MIN,
                f64::MIN_POSITIVE,
                1.0,
                -1.0,
                9007199254740993.0,
            ]),
        ]
    }

    fn exact(values: &[f64]) -> BigInt {
        // In units of 2^-1074, so integers do.
        values.iter().fold(BigInt::zero(), |sum, &value| {
            let (significand, exponent) = take_apart(value);
            sum + (BigInt::from(significand) << (exponent - LEAST_EXPONENT) as usize)
        })
    }

    /// Nearest even by comparing distances to neighbouring floats, sharing nothing with the code under test.
    fn is_rounded(sum: f64, exact: &BigInt) -> bool {
        let ratio = |value: f64| BigRational::from_float(value).expect("finite");
        let unit = BigRational::new(BigInt::from(1), BigInt::from(1) << 1074usize);
        let wanted = BigRational::from_integer(exact.clone()) * unit;
        if !sum.is_finite() {
            let limit = ratio(f64::MAX) + BigRational::from_integer(BigInt::from(1) << 970usize);
            let magnitude = if wanted < BigRational::zero() { -wanted.clone() } else { wanted.clone() };
            return magnitude >= limit && (sum > 0.0) == (wanted > BigRational::zero());
        }
        if wanted.is_zero() {
            return sum.to_bits() == 0;
        }
        let distance = |value: f64| {
            let d = ratio(value) - &wanted;
            if d < BigRational::zero() { -d } else { d }
        };
        [sum.next_up(), sum.next_down()].iter().filter(|v| v.is_finite()).all(|&other| {
            let (own, its) = (distance(sum), distance(other));
            own < its || (own == its && sum.to_bits() & 1 == 0)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn the_sum_is_the_rational_sum_rounded_once(values in prop::collection::vec(finite(), 0..40)) {
            let mut sum = ExactSum::new();
            values.iter().for_each(|&v| sum.add(v));
            prop_assert!(is_rounded(sum.to_f64(), &exact(&values)), "{:?} of {:?}", sum.to_f64(), values);
        }

        #[test]
        fn order_and_grouping_change_nothing(values in prop::collection::vec(finite(), 1..40), cut in any::<prop::sample::Index>()) {
            let mut forward = ExactSum::new();
            values.iter().for_each(|&v| forward.add(v));
            let (head, tail) = values.split_at(cut.index(values.len()));
            let (mut left, mut right) = (ExactSum::new(), ExactSum::new());
            head.iter().rev().for_each(|&v| left.add(v));
            tail.iter().rev().for_each(|&v| right.add(v));
            right.merge(&left);
            prop_assert!(forward == right);
            prop_assert_eq!(forward.to_f64().to_bits(), right.to_f64().to_bits());
        }
    }

    #[test]
    fn usual_values_stay_in_the_small_form() {
        let mut sum = ExactSum::new();
        for n in 0..100_000 {
            sum.add(n as f64 * 0.1);
            sum.add(1e9 + n as f64);
            sum.add(-1e-3 * n as f64);
        }
        assert_eq!(sum.heap_bytes(), 0);
        assert_eq!(size_of::<ExactSum>(), 24);
    }

    #[test]
    fn ties_go_to_even_and_the_least_term_breaks_them() {
        let two_53 = 9007199254740992.0;
        let cases: [(&[f64], f64); 6] = [
            (&[two_53, 1.0], two_53),
            (&[two_53, 1.0, 5e-324], two_53 + 2.0),
            (&[two_53, 1.0, -5e-324], two_53),
            (&[two_53 + 2.0, 1.0], two_53 + 4.0),
            (&[-two_53, -1.0, -1e-300], -two_53 - 2.0),
            (&[f64::MAX, 2f64.powi(970), -5e-324], f64::MAX),
        ];
        for (terms, expected) in cases {
            assert_eq!(ExactSum::of(terms), expected, "{terms:?}");
        }
        assert_eq!(ExactSum::of(&[f64::MAX, 2f64.powi(970)]), f64::INFINITY);
    }

    #[test]
    fn zero_is_plus_zero_however_it_comes_about() {
        for values in [&[][..], &[-0.0], &[1.5, -1.5], &[1e300, 1e-300, -1e300, -1e-300]] {
            assert_eq!(ExactSum::of(values).to_bits(), 0, "{values:?}");
        }
    }

    #[test]
    fn overflow_is_an_infinity_and_comes_back_when_the_terms_do() {
        let mut sum = ExactSum::new();
        for _ in 0..1000 {
            sum.add(f64::MAX);
        }
        assert_eq!(sum.to_f64(), f64::INFINITY);
        for _ in 0..999 {
            sum.add(-f64::MAX);
        }
        assert_eq!(sum.to_f64(), f64::MAX);
        assert_eq!(ExactSum::of(&[f64::MIN, f64::MIN]), f64::NEG_INFINITY);
    }

    #[test]
    fn two_to_the_64_terms_of_any_size_fit() {
        let mut sum = ExactSum::new();
        sum.add(f64::MIN);
        sum.add(5e-324); // forces the wide form
        sum.add(-5e-324);
        for _ in 0..64 {
            let twin = sum.clone();
            sum.merge(&twin);
        }
        let Form::Wide(wide) = &sum.0 else { panic!("the wide form") };
        assert!((wide.limbs[LIMBS - 1] as i64) < 0, "the sign survived");
        let expected = exact(&[f64::MIN]) << 64usize;
        let mut back = BigInt::zero();
        for limb in wide.limbs.iter().rev() {
            back = (back << 64usize) + BigInt::from(*limb);
        }
        back -= BigInt::from(1) << (64 * LIMBS);
        assert_eq!(back, expected);
        assert!(expected.to_f64().is_some());
    }
}
