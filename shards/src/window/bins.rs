//! The bins of the sketch: which bin a magnitude falls in, and the value that stands for a bin.
//!
//! Promise: `|representative(index_of(v)) - v| <= 0.01 * v` for every positive finite `v`, subnormals included, and
//! `index_of` is monotone. Both are functions of integers and constants alone, so every machine agrees on every bit.
//!
//! DDSketch (Masson, Rim, Lee, VLDB 2019) has bins `(gamma^(i-1), gamma^i]` with gamma = (1 + a) / (1 - a), and takes
//! a logarithm per value: with a = 1 % that is 34.66 bins an octave. Here gamma is 2^(1/35), which is a = 0.990 %. For
//! 1 % more bins, bin edges meet powers of two, so the exponent field gives the octave and 36 integer thresholds the
//! bin in it: no logarithm, no rounding at an edge, nothing that a libm could do differently. What remains of the 1 %
//! covers the rounding of the representatives.
//!
//! Below 2^-1061 an `f64` has so few bits left that neighbours differ by more than a representative may err: there
//! each value is a bin of its own.

/// Bins an octave.
const PER_OCTAVE: u32 = 35;
/// Multiples of 2^-1074 below this have a bin each; 2^13.
const SINGLES: u64 = 1 << SINGLES_BITS;
const SINGLES_BITS: u32 = 13;
/// Bin numbers are 1..BINS.
pub(super) const BINS: u32 = SINGLES as u32 + PER_OCTAVE * (1024 + 1074 - SINGLES_BITS);

const FRACTION_BITS: u32 = 52;
const FRACTION_MASK: u64 = (1 << FRACTION_BITS) - 1;

/// `EDGES[k]` is the least integer not below 2^(52 + k/35): bin k of an octave starts there.
const EDGES: [u64; 36] = [
    0x10000000000000,
    0x1051ed35254d7b,
    0x10a57de9c16bc8,
    0x10faba81d4e5e0,
    0x1151ab8c56eea3,
    0x11aa59c4115e7e,
    0x1204ce10811782,
    0x12611186bae675,
    0x12bf2d6a54f7db,
    0x131f2b2e54f85d,
    0x1381147622f887,
    0x13e4f316812c30,
    0x144ad116889e7c,
    0x14b2b8b0aaf3c8,
    0x151cb453b9536d,
    0x1588cea3f093be,
    0x15f7127c0ac32a,
    0x16678aee5629f8,
    0x16da4345d1e0ae,
    0x174f47075017a0,
    0x17c6a1f29e2ce7,
    0x18406003b2ae5d,
    0x18bc8d73e16610,
    0x193b36bb158fff,
    0x19bc68911258c0,
    0x1a402feeb9c533,
    0x1ac69a0f5a241d,
    0x1b4fb472022b1b,
    0x1bdb8cdadbe121,
    0x1c6a31548e794e,
    0x1cfbb031a741a5,
    0x1d90180e09c9e4,
    0x1e2777d0676771,
    0x1ec1deabbe3c15,
    0x1f5f5c20dfe5f3,
    0x20000000000000,
];

/// 2 gamma / (gamma + 1): from a bin's lower edge to the value with the least relative error to both edges.
const EDGE_TO_REPRESENTATIVE: f64 = 1.009_901_778_953_003;

/// The bin in which each 1/256 of an octave starts. Bins are wider than that, so at most one edge lies inside.
const STARTS: [u8; 256] = {
    let mut starts = [0; 256];
    let mut cell = 0;
    while cell < 256 {
        let first = (1 << FRACTION_BITS) + ((cell as u64) << (FRACTION_BITS - 8));
        let mut bin = 0;
        while EDGES[bin + 1] <= first {
            bin += 1;
        }
        assert!(bin + 2 > 35 || EDGES[bin + 2] >= first + (1 << (FRACTION_BITS - 8)), "at most one edge inside");
        starts[cell] = bin as u8;
        cell += 1;
    }
    starts
};

/// The bin of a positive finite value.
#[inline]
pub(super) fn index_of(value: f64) -> u32 {
    let bits = value.to_bits();
    let exponent_field = (bits >> FRACTION_BITS) as u32;
    debug_assert!(bits != 0 && exponent_field < 0x7ff, "positive and finite");
    if exponent_field == 0 {
        return index_of_subnormal(bits);
    }
    in_octave(exponent_field + 51 - SINGLES_BITS, bits & FRACTION_MASK)
}

/// `octave` counts from 2^(SINGLES_BITS - 1074): the exponent field less 1023, plus 1074, less SINGLES_BITS.
#[inline]
fn in_octave(octave: u32, fraction: u64) -> u32 {
    let start = STARTS[(fraction >> (FRACTION_BITS - 8)) as usize] as u32;
    let past_edge = ((1 << FRACTION_BITS) | fraction) >= EDGES[start as usize + 1];
    SINGLES as u32 + PER_OCTAVE * octave + start + past_edge as u32
}

#[cold]
fn index_of_subnormal(units: u64) -> u32 {
    if units < SINGLES {
        return units as u32;
    }
    let top = 63 - units.leading_zeros();
    in_octave(top - SINGLES_BITS, (units << (FRACTION_BITS - top)) & FRACTION_MASK)
}

/// The value that stands for a bin: within 1 % of everything in it.
pub(super) fn representative(index: u32) -> f64 {
    if (index as u64) < SINGLES {
        return f64::from_bits(index as u64);
    }
    let (octave, bin) = ((index - SINGLES as u32) / PER_OCTAVE, (index - SINGLES as u32) % PER_OCTAVE);
    // An edge is below 2^53, so it converts exactly; the product is in [2^52, 2^53).
    let significand = EDGES[bin as usize] as f64 * EDGE_TO_REPRESENTATIVE;
    // 2^(octave + SINGLES_BITS - 1074 - 52), as two exact powers, because the first alone may be no normal number.
    // The first product is exact; only the second can round, and only where the result is subnormal.
    let exponent = octave as i32 + SINGLES_BITS as i32 - 1074 - 52;
    let half = exponent / 2;
    significand * power_of_two(half) * power_of_two(exponent - half)
}

fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << FRACTION_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_bigint::BigUint;
    use num_rational::BigRational;
    use proptest::prelude::*;

    fn within_one_percent(value: f64) -> bool {
        let ratio = |v: f64| BigRational::from_float(v).expect("finite");
        let (value, stands) = (ratio(value), ratio(representative(index_of(value))));
        let error = if stands > value { stands - &value } else { &value - stands };
        error * BigRational::from_integer(100.into()) <= value
    }

    #[test]
    fn the_edges_are_the_35th_roots_rounded_up() {
        for (k, &edge) in EDGES.iter().enumerate() {
            let power = BigUint::from(1u8) << (35 * 52 + k);
            assert!(BigUint::from(edge).pow(35) >= power, "edge {k}");
            assert!(BigUint::from(edge - 1).pow(35) < power, "edge {k}");
        }
    }

    /// With this for every bin, the promise holds for every value: an error within a bin is greatest at its ends.
    #[test]
    fn every_bin_keeps_one_percent_at_both_of_its_ends() {
        for units in 1..40_000u64 {
            assert!(within_one_percent(f64::from_bits(units)), "{units} units");
        }
        for exponent_field in 0..2047u64 {
            for pair in EDGES.windows(2) {
                for significand in [pair[0], pair[1] - 1] {
                    let value = if exponent_field == 0 {
                        f64::from_bits(significand >> 3) // a subnormal of the same leading digits
                    } else {
                        f64::from_bits((exponent_field << 52) | (significand & FRACTION_MASK))
                    };
                    let stands = representative(index_of(value));
                    // Exact where it is near the bound; cheap elsewhere.
                    let near = (stands - value).abs() > value * 0.009_95;
                    assert!(!near || within_one_percent(value), "{value:e}");
                }
            }
        }
    }

    #[test]
    fn bins_are_numbered_without_gaps_and_in_order_across_all_edges() {
        let mut last = 0;
        for units in 1..=SINGLES {
            assert_eq!(index_of(f64::from_bits(units)), last + 1);
            last += 1;
        }
        for top in SINGLES_BITS..52 {
            for (k, &edge) in EDGES[..35].iter().enumerate() {
                // The least integer of `top + 1` bits in bin k.
                let first = edge.div_ceil(1 << (52 - top));
                let index = index_of(f64::from_bits(first));
                let previous = index_of(f64::from_bits(first - 1));
                assert!(index == previous + 1 || (top == SINGLES_BITS && index > previous), "{top} {k}");
                last = index;
            }
        }
        for exponent_field in 1..2047u64 {
            for &edge in &EDGES[..35] {
                let value = f64::from_bits((exponent_field << 52) | (edge & FRACTION_MASK));
                assert_eq!(index_of(value), last + 1, "{value:e}");
                assert_eq!(index_of(value.next_down()), last, "{value:e}");
                last += 1;
            }
        }
        assert_eq!(index_of(f64::MAX), BINS - 1);
        assert_eq!(last, BINS - 1);
    }

    #[test]
    fn a_representative_lies_in_its_own_bin() {
        for index in 1..BINS {
            assert_eq!(index_of(representative(index)), index);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_value_is_within_one_percent_and_larger_values_have_no_smaller_bins(bits in 1u64..0x7ff << 52, gap in 0u64..1 << 45) {
            let value = f64::from_bits(bits);
            prop_assert!(within_one_percent(value));
            let larger = f64::from_bits((bits + gap).min(f64::MAX.to_bits()));
            prop_assert!(index_of(larger) >= index_of(value));
        }
    }
}
