//! Timestamps, and that no two points of a series have the same one.
//!
//! A timestamp is the point's moment cut to 2^20 ns (about 1 ms), plus the low 20 bits of how many points its series
//! had before. So equal ones need a million points of one series between them, within the spread of its moments: for
//! moments as they come, a thousand million points a second.

use super::hash::{Purpose, Stream, scale, threshold};
use crate::plan;

const COUNT_BITS: u32 = 20;
const COUNT_MASK: i64 = (1 << COUNT_BITS) - 1;

#[derive(Clone, Debug)]
pub struct Timestamps {
    kind: Kind,
    clock: Stream,
    lateness: Stream,
    how_late: Stream,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Now,
    Skewed { by_ns: u64 },
    Late { below: u128, by_ns: u64 },
    Shuffled { within_ns: u64 },
}

const NS_PER_MS: u64 = 1_000_000;

impl Timestamps {
    pub fn new(seed: u64, kind: plan::Timestamps) -> Timestamps {
        Timestamps {
            kind: match kind {
                plan::Timestamps::Now => Kind::Now,
                plan::Timestamps::Skewed { by_ms } => Kind::Skewed { by_ns: by_ms.saturating_mul(NS_PER_MS) },
                plan::Timestamps::Late { share, by_ms } => {
                    Kind::Late { below: threshold(share), by_ns: by_ms.saturating_mul(NS_PER_MS) }
                }
                plan::Timestamps::Shuffled { within_ms } => {
                    Kind::Shuffled { within_ns: within_ms.saturating_mul(NS_PER_MS) }
                }
            },
            clock: Stream::new(seed, Purpose::Clock),
            lateness: Stream::new(seed, Purpose::Lateness),
            how_late: Stream::new(seed, Purpose::HowLate),
        }
    }

    /// What the client's clock shows at `moment_ns`.
    #[inline]
    pub fn clock(&self, client: u32, moment_ns: i64) -> i64 {
        match self.kind {
            Kind::Skewed { by_ns } => {
                let offset = self.clock.below(u64::from(client), 0, by_ns.saturating_mul(2).saturating_add(1));
                moment_ns.saturating_add(offset as i64).saturating_sub(by_ns as i64)
            }
            _ => moment_ns,
        }
    }

    /// Of the client's point number `point`, the `nth` of its series, in a batch at `clock_ns`.
    #[inline]
    pub fn at(&self, client: u32, clock_ns: i64, point: u64, nth: u64) -> i64 {
        let client = u64::from(client);
        let older = match self.kind {
            Kind::Now | Kind::Skewed { .. } => 0,
            Kind::Late { below, by_ns } => {
                if u128::from(self.lateness.at(client, point)) < below {
                    1 + scale(self.how_late.at(client, point), by_ns)
                } else {
                    0
                }
            }
            Kind::Shuffled { within_ns } => scale(self.how_late.at(client, point), within_ns.saturating_add(1)),
        };
        (clock_ns.saturating_sub(older as i64) & !COUNT_MASK) | (nth as i64 & COUNT_MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: i64 = 1_767_225_600_123_456_789;

    fn all(kind: plan::Timestamps, points: u64) -> Vec<i64> {
        let timestamps = Timestamps::new(5, kind);
        let clock = timestamps.clock(9, MOMENT);
        (0..points).map(|n| timestamps.at(9, clock, n, 0)).collect()
    }

    #[test]
    fn now_is_within_a_millisecond_of_the_moment() {
        assert!(all(plan::Timestamps::Now, 10).iter().all(|&t| (MOMENT - t) >= 0 && (MOMENT - t) <= COUNT_MASK));
    }

    #[test]
    fn a_skewed_client_keeps_its_offset_and_clients_differ() {
        let timestamps = Timestamps::new(5, plan::Timestamps::Skewed { by_ms: 30_000 });
        let offsets: Vec<i64> = (0..1_000).map(|client| timestamps.clock(client, MOMENT) - MOMENT).collect();
        assert!(offsets.iter().all(|offset| offset.abs() <= 30_000_000_000));
        assert!(offsets.iter().any(|&o| o < -15_000_000_000) && offsets.iter().any(|&o| o > 15_000_000_000));
        for (client, offset) in offsets.iter().enumerate() {
            assert_eq!(timestamps.clock(client as u32, MOMENT + 77) - MOMENT - 77, *offset);
        }
    }

    #[test]
    fn the_asked_share_is_late_and_by_no_more_than_asked() {
        let late = all(plan::Timestamps::Late { share: 0.2, by_ms: 60_000 }, 20_000);
        assert!(late.iter().all(|&t| (0..=60_000_000_000 + COUNT_MASK).contains(&(MOMENT - t))));
        let count = late.iter().filter(|&&t| MOMENT - t > COUNT_MASK).count();
        assert!(count.abs_diff(4_000) < 300, "{count} of 20,000");
        assert!(late.iter().any(|&t| MOMENT - t > 55_000_000_000));
    }

    #[test]
    fn shuffled_points_come_out_of_order_within_their_span() {
        let shuffled = all(plan::Timestamps::Shuffled { within_ms: 500 }, 1_000);
        assert!(shuffled.iter().all(|&t| (0..=500_000_000 + COUNT_MASK).contains(&(MOMENT - t))));
        let falls = shuffled.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!((400..600).contains(&falls), "{falls} of 999 are followed by an older one");
    }
}
