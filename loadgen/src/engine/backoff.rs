//! How long to wait before a batch is sent again: what the server asked for, else exponentially longer with jitter.

use std::time::Duration;

use rand_xoshiro::Xoshiro256PlusPlus;

use super::random::unit;

/// Asked for by a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    Seconds(u32),
    /// Unix seconds
    At(i64),
}

const BASE_NS: u64 = 100_000_000;
const MAX_NS: u64 = 30_000_000_000;

impl RetryAfter {
    /// Seconds, or an HTTP date (RFC 9110, 5.6.7: IMF-fixdate and the two obsolete forms). Anything else is ignored.
    pub fn parse(value: &[u8]) -> Option<RetryAfter> {
        let text = std::str::from_utf8(value).ok()?.trim();
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some(RetryAfter::Seconds(text.parse().unwrap_or(u32::MAX)));
        }
        let at = httpdate::parse_http_date(text).ok()?;
        let unix = at.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(RetryAfter::At(i64::try_from(unix.as_secs()).ok()?))
    }

    pub fn wait(self, now_unix: Duration) -> Duration {
        match self {
            RetryAfter::Seconds(seconds) => Duration::from_secs(u64::from(seconds)),
            RetryAfter::At(at) => Duration::from_secs(u64::try_from(at).unwrap_or(0)).saturating_sub(now_unix),
        }
    }
}

/// Before attempt number `attempt` (the first is 0, so this begins with 1): 100 ms, doubled each time up to 30 s, of which
/// a random part between half and all.
pub fn backoff_ns(attempt: u32, random: &mut Xoshiro256PlusPlus) -> u64 {
    let full = (BASE_NS << attempt.saturating_sub(1).min(16)).min(MAX_NS);
    full / 2 + (unit(random) * (full / 2) as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_xoshiro::rand_core::SeedableRng;

    #[test]
    fn retry_after_comes_in_seconds_or_as_a_date() {
        let now = Duration::from_secs(784_111_770);
        let date = RetryAfter::parse(b"Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        assert_eq!(date, RetryAfter::At(784_111_777));
        assert_eq!(date.wait(now), Duration::from_secs(7));
        assert_eq!(date.wait(Duration::from_secs(784_111_999)), Duration::ZERO);
        let seconds = RetryAfter::parse(b" 12 ").expect("seconds");
        assert_eq!(seconds.wait(now), Duration::from_secs(12));
        for nonsense in [&b""[..], b"soon", b"-1", b"1.5", b"\xff"] {
            assert_eq!(RetryAfter::parse(nonsense), None, "{}", nonsense.escape_ascii());
        }
    }

    #[test]
    fn backoff_doubles_with_jitter_and_ends_at_thirty_seconds() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
        for (attempt, full_ms) in [(1, 100), (2, 200), (3, 400), (9, 25_600), (10, 30_000), (4_000_000, 30_000)] {
            for _ in 0..100 {
                let ms = backoff_ns(attempt, &mut random) / 1_000_000;
                assert!((full_ms / 2..=full_ms).contains(&ms), "{ms} ms before attempt {attempt}");
            }
        }
        let again: Vec<u64> = (1..5).map(|n| backoff_ns(n, &mut Xoshiro256PlusPlus::seed_from_u64(7))).collect();
        let same: Vec<u64> = (1..5).map(|n| backoff_ns(n, &mut Xoshiro256PlusPlus::seed_from_u64(7))).collect();
        assert_eq!(again, same);
    }
}
