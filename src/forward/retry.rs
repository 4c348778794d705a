//! When a failed call is made again: exponential backoff with full jitter, what a server asked for in `Retry-After`, and
//! a budget that keeps retries a small share of all calls.
//!
//! Pure: time comes in as milliseconds of any steady clock, chance from a seed. Nothing here gives up; it only waits
//! longer. Jitter is full (Brooker, "Exponential Backoff And Jitter"): senders that failed together do not come
//! back together.

use std::time::{Duration, SystemTime};

/// What a server may ask for at most; beyond it somebody's clock or arithmetic is wrong, and nobody would notice a sink
/// that sleeps for a year.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// splitmix64 (Steele, Lea, Flood 2014): enough to spread waits, and replayable.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    pub const fn new(seed: u64) -> Jitter {
        Jitter(seed)
    }

    /// Uniform in `0..=max`, in ms.
    pub fn up_to_ms(&mut self, max: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((u128::from(z) * (u128::from(max) + 1)) >> 64) as u64
    }
}

/// Waits of one call that fails again and again.
#[derive(Clone, Debug)]
pub struct Backoff {
    first_ms: u64,
    most_ms: u64,
    failures: u32,
    jitter: Jitter,
}

impl Backoff {
    pub fn new(first: Duration, most: Duration, seed: u64) -> Backoff {
        let first_ms = (first.as_millis() as u64).max(1);
        Backoff { first_ms, most_ms: (most.as_millis() as u64).max(first_ms), failures: 0, jitter: Jitter::new(seed) }
    }

    /// How long to wait now, after one more failure: anything up to `first * 2^failures`, bounded by `most`. `asked`: what
    /// the other side asks for (Retry-After); then that long at least, and jitter on top, so that all who were told the
    /// same do not come at once.
    pub fn failed(&mut self, asked: Option<Duration>) -> Duration {
        let doubled = 1u64.checked_shl(self.failures).unwrap_or(u64::MAX);
        let bound = self.first_ms.saturating_mul(doubled).min(self.most_ms);
        self.failures = self.failures.saturating_add(1);
        Duration::from_millis(match asked {
            Some(asked) => {
                let asked = asked.min(RETRY_AFTER_MAX).as_millis() as u64;
                asked + self.jitter.up_to_ms(self.first_ms.max(asked / 10))
            }
            None => self.jitter.up_to_ms(bound),
        })
    }

    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row.
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

/// The header's value in either form: seconds, or an HTTP date. Bounded by [`RETRY_AFTER_MAX`]; a date that has passed
/// means now. `None` when it is neither: the header is then as good as absent.
pub fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let asked = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than a u64 takes is a very long time.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or(Duration::ZERO)
    };
    Some(asked.min(RETRY_AFTER_MAX))
}

/// A share of calls that may be retries. Every call that succeeded earns a tenth of a retry, and time earns a few a
/// second, so that a quiet sink still tries. A retry beyond the budget is not refused, it waits for its turn.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    thousandths: i64,
    filled_at_ms: u64,
    exhausted: u64,
}

/// Retries that may be made at once after good times.
pub const BUDGET_MAX: u32 = 50;
/// Retries a second that time alone earns.
pub const BUDGET_PER_S: u32 = 2;
/// Thousandths of a retry that one success earns.
const EARNED_BY_SUCCESS: i64 = 100;

impl RetryBudget {
    pub const fn new(now_ms: u64) -> RetryBudget {
        RetryBudget { thousandths: BUDGET_MAX as i64 * 1000, filled_at_ms: now_ms, exhausted: 0 }
    }

    pub fn fill(&mut self, now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(self.filled_at_ms);
        self.filled_at_ms = self.filled_at_ms.max(now_ms);
        // A retry is 1000 thousandths and a second 1000 ms: no division.
        let earned = i64::try_from(passed_ms.saturating_mul(u64::from(BUDGET_PER_S))).unwrap_or(i64::MAX);
        self.thousandths = self.thousandths.saturating_add(earned).min(i64::from(BUDGET_MAX) * 1000);
    }

    pub fn succeeded(&mut self, now_ms: u64) {
        self.fill(now_ms);
        self.thousandths = (self.thousandths + EARNED_BY_SUCCESS).min(i64::from(BUDGET_MAX) * 1000);
    }

    /// Takes one retry out and says how long it has to wait for the budget, 0 when there was one left. Those who wait
    /// wait one behind the other.
    pub fn take_ms(&mut self, now_ms: u64) -> u64 {
        self.fill(now_ms);
        self.thousandths -= 1000;
        if self.thousandths >= 0 {
            return 0;
        }
        self.exhausted += 1;
        (self.thousandths.unsigned_abs()).div_ceil(u64::from(BUDGET_PER_S))
    }

    /// Retries left, whole ones.
    pub fn left(&self) -> u32 {
        (self.thousandths.max(0) / 1000) as u32
    }

    /// Retries that had to wait for the budget.
    pub const fn exhausted(&self) -> u64 {
        self.exhausted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(30);

    #[test]
    fn waits_double_up_to_their_bound_and_use_all_of_it() {
        let mut greatest = [0; 12];
        let mut least = [u64::MAX; 12];
        for seed in 0..2000 {
            let mut backoff = Backoff::new(BASE, MAX, seed);
            for n in 0..12 {
                let wait = backoff.failed(None).as_millis() as u64;
                assert!(wait <= (100 << n).min(30_000), "seed {seed}, failure {n}: {wait} ms");
                greatest[n] = greatest[n].max(wait);
                least[n] = least[n].min(wait);
            }
        }
        for n in 0..12 {
            let bound = (100 << n).min(30_000);
            assert!(greatest[n] > bound * 9 / 10 && least[n] < bound / 10, "{n}: {}..{}", least[n], greatest[n]);
        }
    }

    #[test]
    fn a_success_begins_again_and_a_thousand_failures_do_not_overflow() {
        let mut backoff = Backoff::new(BASE, MAX, 7);
        for _ in 0..1000 {
            assert!(backoff.failed(None) <= MAX);
        }
        backoff.succeeded();
        assert!(backoff.failed(None) <= BASE);
    }

    #[test]
    fn the_same_seed_gives_the_same_waits() {
        let waits = |seed| {
            let mut backoff = Backoff::new(BASE, MAX, seed);
            (0..20).map(|_| backoff.failed(None)).collect::<Vec<_>>()
        };
        assert_eq!(waits(3), waits(3));
        assert_ne!(waits(3), waits(4));
    }

    #[test]
    fn what_the_server_asked_for_is_the_least_wait() {
        for seed in 0..500 {
            let mut backoff = Backoff::new(BASE, MAX, seed);
            let wait = backoff.failed(Some(Duration::from_secs(20))).as_millis();
            assert!((20_000..=22_000).contains(&wait), "seed {seed}: {wait} ms");
            // Nobody sleeps for a year.
            let wait = backoff.failed(Some(Duration::from_secs(365 * 86_400))).as_millis();
            assert!((600_000..=660_000).contains(&wait), "seed {seed}: {wait} ms");
        }
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777); // Sun, 06 Nov 1994 08:49:37 GMT
        for (value, expected_s) in [
            ("0", Some(0)),
            ("7", Some(7)),
            (" 120 ", Some(120)),
            ("99999", Some(600)),
            ("99999999999999999999999999", Some(600)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sunday, 06-Nov-94 08:49:42 GMT", Some(5)),
            ("Sun Nov  6 08:49:38 1994", Some(1)),
            ("Sun, 06 Nov 1994 08:49:36 GMT", Some(0)),
            ("Sun, 06 Nov 2044 08:49:37 GMT", Some(600)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            assert_eq!(parse_retry_after(value, now), expected_s.map(Duration::from_secs), "{value:?}");
        }
    }

    #[test]
    fn retries_beyond_the_budget_wait_one_behind_the_other() {
        let mut budget = RetryBudget::new(0);
        for _ in 0..BUDGET_MAX {
            assert_eq!(budget.take_ms(0), 0);
        }
        assert_eq!(budget.left(), 0);
        assert_eq!([budget.take_ms(0), budget.take_ms(0), budget.take_ms(0)], [500, 1000, 1500]);
        assert_eq!(budget.exhausted(), 3);
        // The debt is paid by time: 1.5 s for those three, then two a second.
        assert_eq!(budget.take_ms(2000), 0);
        assert_eq!(budget.take_ms(2000), 500);
    }

    #[test]
    fn ten_successes_earn_a_retry_and_the_budget_has_a_bound() {
        let mut budget = RetryBudget::new(0);
        while budget.take_ms(0) == 0 {}
        for _ in 0..10 {
            budget.succeeded(0); // pays the debt of one
        }
        assert_eq!(budget.left(), 0);
        for _ in 0..10 {
            budget.succeeded(0);
        }
        assert_eq!(budget.left(), 1);
        budget.succeeded(u64::MAX / 4);
        assert_eq!(budget.left(), BUDGET_MAX);
    }
}
