//! Values, as decimal fixed point: their text and their `f64` are the same number, whoever reads the text.
//!
//! Each is a function of (series, n), in integers, so that the n-th is made without those before it:
//! - *gauge*: smooth noise, a walk between bounds; some series are negative at times, some tiny (down to 1e-9);
//! - *counter*: n steps of a fixed size, each with a random part, so that it never falls;
//! - *latency*: log-normal around the series' median, the normal being the sum of eight uniforms.

use super::hash::{Purpose, Stream, scale};
use crate::plan;

/// `mantissa` / 10^`decimals`. The mantissa is below 2^53 and the power exact, so one division gives the nearest `f64`,
/// as a correct reader of the text does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decimal {
    pub mantissa: i64,
    pub decimals: u8,
}

const POWERS: [u64; 10] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000];
pub const DECIMALS_MAX: u8 = 9;

impl Decimal {
    #[inline]
    pub fn to_f64(self) -> f64 {
        self.mantissa as f64 / POWERS[usize::from(self.decimals)] as f64
    }

    #[inline]
    pub fn write(self, out: &mut Vec<u8>) {
        let magnitude = self.mantissa.unsigned_abs();
        let power = POWERS[usize::from(self.decimals)];
        if self.mantissa < 0 {
            out.push(b'-');
        }
        out.extend_from_slice(itoa::Buffer::new().format(magnitude / power).as_bytes());
        if self.decimals > 0 {
            let mut text = [b'.'; 1 + DECIMALS_MAX as usize];
            let mut fraction = magnitude % power;
            for digit in text[1..=usize::from(self.decimals)].iter_mut().rev() {
                *digit = b'0' + (fraction % 10) as u8;
                fraction /= 10;
            }
            out.extend_from_slice(&text[..=usize::from(self.decimals)]);
        }
    }
}

#[derive(Clone, Debug)]
pub struct Values {
    kind: plan::Values,
    character: Stream,
    walk: Stream,
    drift: Stream,
    step: Stream,
    latency: Stream,
    latency_more: Stream,
}

impl Values {
    pub fn new(seed: u64, kind: plan::Values) -> Values {
        let stream = |purpose| Stream::new(seed, purpose);
        Values {
            kind,
            character: stream(Purpose::Character),
            walk: stream(Purpose::Walk),
            drift: stream(Purpose::Drift),
            step: stream(Purpose::Step),
            latency: stream(Purpose::Latency),
            latency_more: stream(Purpose::LatencyMore),
        }
    }

    /// The value of the `n`-th point of a slot; `series` counts the slots of all clients.
    #[inline]
    pub fn at(&self, series: u64, n: u64) -> Decimal {
        let character = self.character.at(series, 0);
        match self.kind {
            plan::Values::Gauge => self.gauge(character, series, n),
            plan::Values::Counter => self.counter(character, series, n),
            plan::Values::Latency => self.latency(character, series, n),
        }
    }

    fn gauge(&self, character: u64, series: u64, n: u64) -> Decimal {
        // The largest swing, the centre's range, and the decimals, by kind of series: of 16, two go below zero and two
        // are tiny.
        let (swing, centre, decimals) = match character & 15 {
            0 | 1 => (40_000, scale(character, 60_000) as i64 - 30_000, 3),
            2 => (900, 1_000 + scale(character, 9_000) as i64, 9),
            3 => (500_000, 0, 9),
            4..8 => (2_000, 2_000 + scale(character, 8_000) as i64, 2),
            _ => (20_000, 20_000 + scale(character, 60_000) as i64, 3),
        };
        let noise = 3 * smooth(self.drift, series, n, 5) + smooth(self.walk, series, n, 2);
        Decimal { mantissa: centre + ((swing * noise) >> 22), decimals }
    }

    fn counter(&self, character: u64, series: u64, n: u64) -> Decimal {
        let step = 1 + (character & 1023);
        let start = scale(character, 1_000_000);
        // Below 2^53 for 2^42 points of one series.
        let n = n & ((1 << 42) - 1);
        Decimal { mantissa: (start + n * step + self.step.below(series, n, step + 1)) as i64, decimals: 0 }
    }

    fn latency(&self, character: u64, series: u64, n: u64) -> Decimal {
        let median_us = 500 + scale(character, 49_500);
        let uniforms = |draw: u64| (draw & 0xFFFF) + (draw >> 16 & 0xFFFF) + (draw >> 32 & 0xFFFF) + (draw >> 48);
        let sum = uniforms(self.latency.at(series, n)) + uniforms(self.latency_more.at(series, n));
        // Eight uniforms of 0..65535: mean 4 * 65535, standard deviation 65536 * sqrt(8 / 12). In units of 2^-20 of an
        // octave, times sigma / ln 2 = 0.72 (sigma 0.5): 1 / (65536 * 0.8165) * 0.7213 * 2^20 = 14.134
        let octaves = ((sum as i64 - 4 * 65_535) * 14_134) / 1_000;
        let micros = power_of_two(median_us, octaves).max(1);
        Decimal { mantissa: micros as i64, decimals: 3 }
    }
}

/// Noise of ±2^20 that is smooth over 2^`shift` points: between drawn corners it goes in a line.
#[inline]
fn smooth(stream: Stream, series: u64, n: u64, shift: u32) -> i64 {
    let corner = |at: u64| (stream.at(series, at) >> 43) as i64 - (1 << 20);
    let (from, to) = (corner(n >> shift), corner((n >> shift) + 1));
    let part = (n & ((1 << shift) - 1)) as i64;
    from + (((to - from) * part) >> shift)
}

/// `base` * 2^(`octaves` / 2^20), in integers: the power of the fraction by a cubic that is off by at most 0.02 %.
#[inline]
fn power_of_two(base: u64, octaves: i64) -> u64 {
    const ONE: u64 = 1 << 20;
    let whole = octaves >> 20;
    let x = (octaves & (ONE as i64 - 1)) as u64;
    // 1 + 0.695976 x + 0.224940 x^2 + 0.079084 x^3 on 0..1, in units of 2^-20
    let cubic = 82_926 * x / ONE + 235_867;
    let square = cubic * x / ONE + 729_783;
    let power = ONE + square * x / ONE;
    let scaled = u128::from(base) * u128::from(power);
    (if whole >= 0 { (scaled << whole.min(20)) >> 20 } else { scaled >> (20 - whole).min(127) }) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_f64_are_the_same_number() {
        for (mantissa, decimals, text) in [
            (0, 0, "0"),
            (0, 3, "0.000"),
            (1, 9, "0.000000001"),
            (-1, 9, "-0.000000001"),
            (-30_500, 3, "-30.500"),
            (123_456, 2, "1234.56"),
            ((1 << 53) - 1, 0, "9007199254740991"),
            ((1 << 53) - 1, 9, "9007199.254740991"),
        ] {
            let value = Decimal { mantissa, decimals };
            let mut out = Vec::new();
            value.write(&mut out);
            assert_eq!(out, text.as_bytes());
            assert_eq!(value.to_f64().to_bits(), text.parse::<f64>().expect("a number").to_bits(), "{text}");
        }
        for kind in [plan::Values::Gauge, plan::Values::Counter, plan::Values::Latency] {
            let values = Values::new(3, kind);
            for series in 0..300 {
                for n in (0..300).chain([1 << 40, u64::MAX]) {
                    let value = values.at(series, n);
                    assert!(value.mantissa.unsigned_abs() < 1 << 53 && value.decimals <= DECIMALS_MAX);
                    let mut out = Vec::new();
                    value.write(&mut out);
                    let read: f64 = std::str::from_utf8(&out).expect("ascii").parse().expect("a number");
                    assert_eq!(read.to_bits(), value.to_f64().to_bits(), "{kind:?} {series} {n}");
                }
            }
        }
    }

    #[test]
    fn a_gauge_walks_in_small_steps_and_some_are_negative_and_some_tiny() {
        let values = Values::new(1, plan::Values::Gauge);
        let (mut negative, mut tiny) = (0, 0);
        for series in 0..400 {
            let walk: Vec<Decimal> = (0..500).map(|n| values.at(series, n)).collect();
            let (min, max) = (walk.iter().map(|v| v.mantissa).min(), walk.iter().map(|v| v.mantissa).max());
            let swing = max.expect("points") - min.expect("points");
            let step = walk.windows(2).map(|w| w[0].mantissa.abs_diff(w[1].mantissa)).max().expect("points");
            assert!(swing > 0 && (step as i64) <= swing / 3 + 1, "series {series}: a step of {step} in {swing}");
            negative += u32::from(walk.iter().any(|value| value.mantissa < 0));
            tiny += u32::from(walk.iter().all(|value| value.to_f64().abs() < 1e-3));
        }
        assert!(negative > 30 && tiny > 30, "{negative} negative and {tiny} tiny of 400");
    }

    #[test]
    fn a_counter_never_falls() {
        let values = Values::new(1, plan::Values::Counter);
        for series in 0..100 {
            assert!((0..2_000).all(|n| values.at(series, n).mantissa <= values.at(series, n + 1).mantissa));
        }
    }

    #[test]
    fn a_latency_is_log_normal() {
        let values = Values::new(1, plan::Values::Latency);
        for series in 0..5 {
            let mut logs: Vec<f64> = (0..40_000).map(|n| values.at(series, n).to_f64().ln()).collect();
            logs.sort_by(f64::total_cmp);
            let mean = logs.iter().sum::<f64>() / logs.len() as f64;
            let deviation = (logs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / logs.len() as f64).sqrt();
            assert!((deviation - 0.5).abs() < 0.01, "sigma {deviation}");
            // Quantiles of the normal, in standard deviations from the mean.
            for (q, z) in [(0.05, -1.645), (0.5, 0.0), (0.95, 1.645), (0.99, 2.326)] {
                let at = logs[(q * logs.len() as f64) as usize];
                assert!(((at - mean) / deviation - z).abs() < 0.06, "q{q}: {}", (at - mean) / deviation);
            }
        }
    }

    #[test]
    fn the_power_of_two_is_close() {
        for octaves in -4 * 1024..4 * 1024_i64 {
            let got = power_of_two(1 << 30, octaves << 10) as f64;
            let want = (1_u64 << 30) as f64 * 2_f64.powf(octaves as f64 / 1024.0);
            assert!((got / want - 1.0).abs() < 3e-4, "{octaves}: {got} for {want}");
        }
    }
}
