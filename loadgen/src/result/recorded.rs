//! A histogram as text.
//!
//! The encoding is HdrHistogram's V2 (<https://github.com/HdrHistogram/HdrHistogram>), in base64: a header of 40 bytes, then
//! counts as zigzag varints, runs of zeros as one negative number. Only histograms of [`histogram`]'s own bounds are taken,
//! so that all of them can be added and none costs more memory than ours.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};
use serde::{Deserialize, Serialize};

use super::{HIGHEST_US, histogram};

/// A histogram of µs, kept as text.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded(pub Histogram<u64>);

impl Default for Recorded {
    fn default() -> Recorded {
        Recorded(histogram())
    }
}

impl Recorded {
    /// In µs; 0 when nothing was recorded. `quantile` is 0 to 1.
    pub fn at(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile)
    }

    /// Counts of both. Values are not lost: the bounds are the same wherever a histogram came from.
    pub fn add(&mut self, other: &Recorded) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    pub fn encode(&self) -> String {
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&self.0, &mut bytes).expect("a Vec takes everything");
        STANDARD.encode(bytes)
    }

    pub fn decode(text: &str) -> Result<Recorded, &'static str> {
        if text.len() > TEXT_BYTES_MAX {
            return Err("longer than any histogram of its bounds");
        }
        let bytes = STANDARD.decode(text).map_err(|_| "no base64")?;
        let Some((header, payload)) = bytes.split_at_checked(HEADER_BYTES) else {
            return Err("shorter than its header");
        };
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let long = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        if word(0) != V2_COOKIE {
            return Err("not HdrHistogram's V2 encoding");
        }
        // The library allocates by this length before it reads.
        if word(4) as usize != payload.len() {
            return Err("cut, or longer than it says");
        }
        if (word(12), long(16), long(24)) != (3, 1, HIGHEST_US) {
            return Err("of other bounds than 1 us to an hour with three digits");
        }
        // The one number whose negation the library would overflow on; as a count it is absurd anyway.
        if payload.windows(9).any(|bytes| bytes.iter().all(|byte| *byte == 0xff)) {
            return Err("holds a count that no run reaches");
        }
        let histogram =
            Deserializer::new().deserialize::<u64, _>(&mut bytes.as_slice()).map_err(|_| "its counts are damaged")?;
        // Shares are computed as f64.
        if histogram.iter_recorded().map(|step| u128::from(step.count_at_value())).sum::<u128>() > 1 << 53 {
            return Err("holds a count that no run reaches");
        }
        Ok(Recorded(histogram))
    }
}

const V2_COOKIE: u32 = 0x1c84_9303 | 0x10;
const HEADER_BYTES: usize = 40;
/// Every counter (fewer than 24,000) in its longest form, 9 bytes, as base64.
const TEXT_BYTES_MAX: usize = 24_000 * 9 * 4 / 3 + 64;

impl Serialize for Recorded {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.encode())
    }
}

impl<'de> Deserialize<'de> for Recorded {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Recorded, D::Error> {
        let text = String::deserialize(deserializer)?;
        Recorded::decode(&text).map_err(|fault| serde::de::Error::custom(format_args!("this histogram is {fault}")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn recorded(values: &[u64]) -> Recorded {
        let mut recorded = Recorded::default();
        for value in values {
            recorded.0.saturating_record(*value);
        }
        recorded
    }

    #[test]
    fn the_bounds_of_the_text_cover_the_histogram() {
        assert!(histogram().distinct_values() < 24_000, "{}", histogram().distinct_values());
    }

    #[test]
    fn an_encoding_is_what_other_implementations_write() {
        // Header: cookie with a word size of 1, payload length, no offset, 3 digits, bounds, ratio 1.
        let bytes = STANDARD.decode(recorded(&[1, 1, 5]).encode()).unwrap();
        assert_eq!(bytes[..4], [0x1c, 0x84, 0x93, 0x13]);
        assert_eq!(bytes[8..16], [0, 0, 0, 0, 0, 0, 0, 3]);
        assert_eq!(bytes[32..40], 1f64.to_be_bytes());
        // A zero, two of 1, three zeros, one of 5: zigzag 0, 2, -3, 1.
        assert_eq!(bytes[40..], [0, 4, 5, 2]);
    }

    #[test]
    fn what_is_no_histogram_is_refused_with_its_reason() {
        let good = STANDARD.decode(recorded(&[1, 70_000, 3]).encode()).unwrap();
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            Recorded::decode(&STANDARD.encode(bytes)).unwrap_err()
        };
        for (fault, expected) in [
            (Recorded::decode("%%%").unwrap_err(), "no base64"),
            (Recorded::decode("").unwrap_err(), "shorter than its header"),
            (with(&|b| b[0] = 0), "not HdrHistogram's V2 encoding"),
            (with(&|b| b.truncate(41)), "cut, or longer than it says"),
            (with(&|b| b[4] = 0xff), "cut, or longer than it says"),
            (with(&|b| b[15] = 5), "of other bounds than 1 us to an hour with three digits"),
            (with(&|b| b[24] = 1), "of other bounds than 1 us to an hour with three digits"),
            (
                with(&|b| {
                    b.truncate(40);
                    b.extend([0xff; 9]);
                    b[7] = 9;
                }),
                "holds a count that no run reaches",
            ),
            (
                with(&|b| {
                    b.truncate(40);
                    b.extend([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
                    b[7] = 9;
                }),
                "holds a count that no run reaches",
            ),
            (Recorded::decode(&"A".repeat(TEXT_BYTES_MAX + 4)).unwrap_err(), "longer than any histogram of its bounds"),
        ] {
            assert_eq!(fault, expected);
        }
    }

    proptest! {
        #[test]
        fn what_was_recorded_comes_back(values in prop::collection::vec(0u64..4_000_000_000, 0..200)) {
            let before = recorded(&values);
            let after = Recorded::decode(&before.encode()).unwrap();
            prop_assert_eq!(&before, &after);
            prop_assert_eq!((before.at(0.99), before.0.max(), before.0.len()), (after.at(0.99), after.0.max(), after.0.len()));
        }

        #[test]
        fn arbitrary_bytes_behind_a_good_header_never_panic(payload in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = STANDARD.decode(Recorded::default().encode()).unwrap();
            bytes.truncate(HEADER_BYTES);
            bytes[4..8].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
            bytes.extend(payload);
            if let Ok(recorded) = Recorded::decode(&STANDARD.encode(bytes)) {
                prop_assert_eq!(Recorded::decode(&recorded.encode()).unwrap(), recorded);
            }
        }
    }
}
