//! Randomness by position: the n-th draw of a stream costs one multiplication, whichever n, and is the same on every
//! machine. All that is random in a workload is drawn here, so that any point can be made again alone.

/// What a draw is for. Streams of one seed have nothing to do with one another.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub enum Purpose {
    Tags = 1,
    Churn,
    Character,
    Walk,
    Drift,
    Step,
    Latency,
    LatencyMore,
    Clock,
    Lateness,
    HowLate,
    Bad,
    BadKind,
}

#[derive(Clone, Copy, Debug)]
pub struct Stream(u64);

impl Stream {
    pub fn new(seed: u64, purpose: Purpose) -> Stream {
        Stream(fold(seed ^ 0xA076_1D64_78BD_642F, (purpose as u64).wrapping_mul(0xE703_7ED1_A0B4_28DB)))
    }

    /// The draw at place (`a`, `b`).
    #[inline]
    pub fn at(self, a: u64, b: u64) -> u64 {
        let spread = a.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ self.0;
        fold(spread ^ 0x8EBC_6AF0_9C88_C6E3, fold(b ^ 0x5899_65CC_7537_4CC3, spread | 1))
    }

    /// From 0 to `below` - 1; `below` is not 0.
    #[inline]
    pub fn below(self, a: u64, b: u64, below: u64) -> u64 {
        scale(self.at(a, b), below)
    }
}

/// Maps a draw to 0..`below`.
#[inline]
pub fn scale(draw: u64, below: u64) -> u64 {
    ((u128::from(draw) * u128::from(below)) >> 64) as u64
}

/// What a draw must be below to happen with this probability.
pub fn threshold(share: f64) -> u128 {
    // Exact: a share is at most 1, and 2^64 is a power of two.
    (share.clamp(0.0, 1.0) * 18_446_744_073_709_551_616.0) as u128
}

/// wyhash's mixing step: the 128-bit product, its halves xored.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x2D35_8DCC_AA6C_78A5) * u128::from(b ^ 0x8BB8_4B93_962E_ACC9);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn neighbouring_places_draw_evenly_and_never_the_same() {
        let stream = Stream::new(7, Purpose::Walk);
        let mut seen = HashSet::new();
        let mut buckets = [0_u32; 16];
        let mut ones = [0_u32; 64];
        for a in 0..200 {
            for b in 0..500 {
                let draw = stream.at(a, b);
                assert!(seen.insert(draw), "({a}, {b}) draws what another place drew");
                buckets[scale(draw, 16) as usize] += 1;
                for (bit, count) in ones.iter_mut().enumerate() {
                    *count += (draw >> bit & 1) as u32;
                }
            }
        }
        // 100,000 draws: a bucket has 6,250 and a bit 50,000 ones; five standard deviations
        assert!(buckets.iter().all(|&n| n.abs_diff(6_250) < 390), "{buckets:?}");
        assert!(ones.iter().all(|&n| n.abs_diff(50_000) < 800), "{ones:?}");
    }

    #[test]
    fn seeds_and_purposes_are_streams_of_their_own() {
        let draws: HashSet<u64> = (0..100)
            .flat_map(|seed| [Stream::new(seed, Purpose::Walk), Stream::new(seed, Purpose::Step)])
            .map(|stream| stream.at(0, 0))
            .collect();
        assert_eq!(draws.len(), 200);
    }

    #[test]
    fn a_share_of_nothing_never_happens_and_of_all_always() {
        assert_eq!(threshold(0.0), 0);
        assert!(u128::from(u64::MAX) < threshold(1.0));
        assert_eq!(threshold(0.5), 1 << 63);
    }
}
