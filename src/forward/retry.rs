//! How long to wait before a sink is tried again: twice as long each time, up to a bound, with jitter, so that many
//! appliances do not come back to a sink all at once. Time and randomness are arguments.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
    random: u64,
}

impl Backoff {
    /// `seed`: any number; another one waits other times.
    pub fn new(first: Duration, most: Duration, seed: u64) -> Backoff {
        Backoff { first, most: most.max(first), failures: 0, random: seed | 1 }
    }

    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// How long to wait now, after one more failure. `asked`: what the sink asks for (Retry-After); never less than that.
    pub fn failed(&mut self, asked: Option<Duration>) -> Duration {
        let doubled = self.first.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        // xorshift64: good enough to keep apart what fails together
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let share = 0.5 + (self.random >> 11) as f64 / (1u64 << 53) as f64 / 2.0;
        doubled.min(self.most).mul_f64(share).max(asked.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_stay_apart_and_begin_again_after_a_success() {
        let s = Duration::from_secs;
        let mut backoff = Backoff::new(s(1), s(30), 7);
        let waits: Vec<Duration> = (0..40).map(|_| backoff.failed(None)).collect();
        for (n, wait) in waits.iter().enumerate() {
            let whole = s(1 << n.min(5)).min(s(30));
            assert!(*wait >= whole / 2 && *wait <= whole, "{n}: {wait:?}");
        }
        assert_ne!(waits[30], waits[31]);
        assert_eq!(backoff.failed(Some(s(90))), s(90), "the sink's own word");
        backoff.succeeded();
        assert!(backoff.failed(None) <= s(1));
    }
}
