//! Sums of `f64` without rounding.
//!
//! Of a value with d decimals, the `f64` is a multiple of 2^-k with the k of [`unit_bits`]: unless it is zero it is at
//! least 10^-d, and has 53 bits. So values of one series add up in 128-bit integers, exactly, and the sum is rounded
//! once, when it is asked for.

use crate::workload::values::Decimal;

/// k for values with so many decimals.
fn unit_bits(decimals: u8) -> u32 {
    // 10^-d >= 2^-ceil(d log2(10)), whose last bit is 52 below.
    if decimals == 0 { 0 } else { (u32::from(decimals) * 3_322).div_ceil(1_000) + 52 }
}

/// Of values that have equal decimals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    // Halves, so that tables of these need no gaps for alignment.
    low: u64,
    high: u64,
}

impl Sum {
    fn get(self) -> i128 {
        (u128::from(self.high) << 64 | u128::from(self.low)) as i128
    }

    /// Below 2^63 values; those of a workload stay far below the 2^127 units that fit.
    #[inline]
    pub fn add(&mut self, value: Decimal) {
        let units = to_units(value.to_f64(), unit_bits(value.decimals));
        let sum = self.get().checked_add(units).expect("a window's sum of a workload fits in 128 bits");
        *self = Sum { low: sum as u64, high: (sum as u128 >> 64) as u64 };
    }

    /// The nearest `f64`, ties to even.
    pub fn rounded(self, decimals: u8) -> f64 {
        // Integers convert to the nearest, ties to even; the power of two is exact.
        self.get() as f64 * 2_f64.powi(-(unit_bits(decimals) as i32))
    }
}

/// `value` * 2^`bits`, which is an integer.
fn to_units(value: f64, bits: u32) -> i128 {
    let raw = value.to_bits();
    let exponent = (raw >> 52 & 0x7FF) as i32;
    if exponent == 0 {
        assert!(value == 0.0, "{value} is subnormal: no value of a workload is");
        return 0;
    }
    let mantissa = i128::from(raw & ((1 << 52) - 1) | 1 << 52);
    let shift = exponent - 1_075 + bits as i32;
    let units = if shift >= 0 {
        assert!(shift < 70, "{value} is larger than any value of a workload");
        mantissa << shift
    } else {
        let cut = (-shift).min(127);
        assert!(mantissa & ((1 << cut) - 1) == 0, "{value} is no multiple of 2^-{bits}");
        mantissa >> cut
    };
    if value < 0.0 { -units } else { units }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(mantissas: &[i64], decimals: u8) -> f64 {
        let mut sum = Sum::default();
        for &mantissa in mantissas {
            sum.add(Decimal { mantissa, decimals });
        }
        sum.rounded(decimals)
    }

    #[test]
    fn a_sum_rounds_once() {
        // 0.1 added ten times in turn is 0.9999999999999999; exactly it is a little over 1 and rounds to 1.
        assert_eq!(sum(&[1; 10], 1), 1.0);
        assert_eq!((0..10).fold(0.0, |sum, _| sum + 0.1), 0.999_999_999_999_999_9);
        assert_eq!(sum(&[(1 << 53) - 1, 1, 1, 1 - (1 << 53)], 0), 2.0);
        assert_eq!(sum(&[], 3).to_bits(), 0);
        assert_eq!(sum(&[5, -5], 9).to_bits(), 0);
        // Ties go to even: 2^53 + 1 lies between 2^53 and 2^53 + 2.
        assert_eq!(sum(&[(1 << 53) - 1, 2], 0), 9_007_199_254_740_992.0);
        assert_eq!(sum(&[(1 << 53) - 1, 4], 0), 9_007_199_254_740_996.0);
    }

    proptest! {
        /// Two values: the hardware rounds their sum once, too.
        #[test]
        fn two_values_add_up_as_the_hardware_adds(
            a in -(1_i64 << 40)..1 << 40, b in -(1_i64 << 40)..1 << 40, decimals in 0_u8..10
        ) {
            let (x, y) = (Decimal { mantissa: a, decimals }, Decimal { mantissa: b, decimals });
            prop_assert_eq!(sum(&[a, b], decimals), x.to_f64() + y.to_f64());
        }

        #[test]
        fn order_does_not_matter(mut values in prop::collection::vec(-(1_i64 << 50)..1 << 50, 0..50), decimals in 0_u8..10) {
            let forward = sum(&values, decimals);
            values.reverse();
            prop_assert_eq!(sum(&values, decimals).to_bits(), forward.to_bits());
        }
    }
}
