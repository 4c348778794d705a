//! The circuit breaker of a sink: when half of the last calls failed, nobody calls for a while; then one call probes.
//!
//! Pure: time comes in as milliseconds of any steady clock, chance from a seed. A *failure* is a call that says
//! something about the server's health: a network error, a hang, 408, 429, 5xx. An answer that refuses what was sent, or who
//! sent it, is a healthy server's and counts as a success here.
//!
//! ```text
//!            half of the last 100 failed            wait over
//!   Closed ------------------------------> Open --------------> HalfOpen (one probe)
//!      ^                                     ^                       |   |
//!      |                                     +-- probe failed -------+   |   (the wait doubles, to 60 s)
//!      +------------------------------------------ probe succeeded ------+   (the last calls are forgotten)
//! ```

use super::retry::Jitter;
use std::collections::VecDeque;
use std::time::Duration;

/// Calls that are remembered.
pub const CALLS: usize = 100;
/// Fewer calls than this say nothing yet.
pub const CALLS_MIN: usize = 10;
const WAIT_FIRST_MS: u64 = 1_000;
pub const WAIT_MAX_MS: u64 = 60_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Closed,
    Open,
    HalfOpen,
}

impl State {
    pub const ALL: [State; 3] = [State::Closed, State::Open, State::HalfOpen];
    /// As it stands in the metrics.
    pub const fn name(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half_open",
        }
    }
}

/// Permission for one call. It must come back through [`Breaker::finished`] or [`Breaker::abandoned`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Permit {
    /// How often the breaker had opened when it was given: an answer to a call from before says nothing about now.
    opened: u64,
    probe: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    Go(Permit),
    /// Not now; ask again then. (`u64::MAX` does not occur: a probe under way ends with an answer or a timeout.)
    WaitMs(u64),
}

#[derive(Debug)]
pub struct Breaker {
    state: State,
    last: VecDeque<bool>,
    failures: usize,
    open_until_ms: u64,
    wait_ms: u64,
    opened: u64,
    jitter: Jitter,
}

/// How often to look again while somebody else's probe is under way.
const PROBE_LOOK_MS: u64 = 50;

impl Breaker {
    pub fn new(seed: u64) -> Breaker {
        Breaker {
            state: State::Closed,
            last: VecDeque::with_capacity(CALLS),
            failures: 0,
            open_until_ms: 0,
            wait_ms: WAIT_FIRST_MS,
            opened: 0,
            jitter: Jitter::new(seed),
        }
    }

    pub const fn state(&self) -> State {
        self.state
    }

    /// How often it has opened, reopenings after a failed probe included.
    pub const fn opened(&self) -> u64 {
        self.opened
    }

    /// Failures among the remembered calls.
    pub const fn failures(&self) -> usize {
        self.failures
    }

    pub fn admit(&mut self, now_ms: u64) -> Admission {
        match self.state {
            State::Closed => Admission::Go(Permit { opened: self.opened, probe: false }),
            State::Open if now_ms < self.open_until_ms => Admission::WaitMs(self.open_until_ms - now_ms),
            State::Open => {
                self.state = State::HalfOpen;
                Admission::Go(Permit { opened: self.opened, probe: true })
            }
            State::HalfOpen => Admission::WaitMs(PROBE_LOOK_MS),
        }
    }

    /// `retry_after`: what a failing answer asked for; an opening breaker stays open that long at least.
    pub fn finished(&mut self, permit: Permit, success: bool, retry_after: Option<Duration>, now_ms: u64) {
        if permit.opened != self.opened {
            return;
        }
        if permit.probe {
            if success {
                self.state = State::Closed;
                self.wait_ms = WAIT_FIRST_MS;
                self.last.clear();
                self.failures = 0;
            } else {
                self.wait_ms = (self.wait_ms * 2).min(WAIT_MAX_MS);
                self.open(retry_after, now_ms);
            }
            return;
        }
        if self.last.len() == CALLS && !self.last.pop_front().expect("it is full") {
            self.failures -= 1;
        }
        self.last.push_back(success);
        self.failures += usize::from(!success);
        if !success && self.last.len() >= CALLS_MIN && self.failures * 2 >= self.last.len() {
            self.open(retry_after, now_ms);
        }
    }

    /// The call was not made, or its end will not be known (a stop).
    pub fn abandoned(&mut self, permit: Permit, now_ms: u64) {
        if permit.opened == self.opened && permit.probe {
            self.state = State::Open;
            self.open_until_ms = now_ms;
        }
    }

    fn open(&mut self, retry_after: Option<Duration>, now_ms: u64) {
        // Half of it for sure, so that the server rests; half by chance, so that senders do not march in step.
        let wait = self.wait_ms / 2 + self.jitter.up_to_ms(self.wait_ms / 2);
        let asked = retry_after.map_or(0, |asked| asked.min(super::retry::RETRY_AFTER_MAX).as_millis() as u64);
        self.state = State::Open;
        self.opened += 1;
        self.open_until_ms = now_ms + wait.max(asked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permit(breaker: &mut Breaker, now_ms: u64) -> Permit {
        match breaker.admit(now_ms) {
            Admission::Go(permit) => permit,
            Admission::WaitMs(ms) => panic!("{:?}: wait {ms} ms", breaker.state()),
        }
    }
    fn call(breaker: &mut Breaker, success: bool, now_ms: u64) {
        let permit = permit(breaker, now_ms);
        breaker.finished(permit, success, None, now_ms);
    }
    fn opened() -> Breaker {
        let mut breaker = Breaker::new(1);
        for _ in 0..CALLS_MIN {
            call(&mut breaker, false, 0);
        }
        assert_eq!(breaker.state(), State::Open);
        breaker
    }
    fn wait_ms(breaker: &mut Breaker, now_ms: u64) -> u64 {
        match breaker.admit(now_ms) {
            Admission::WaitMs(ms) => ms,
            Admission::Go(_) => panic!("it lets a call through"),
        }
    }

    #[test]
    fn it_opens_when_half_of_the_last_hundred_failed_and_not_before() {
        let mut breaker = Breaker::new(1);
        for _ in 0..CALLS {
            call(&mut breaker, true, 0);
        }
        for n in 1..CALLS / 2 {
            call(&mut breaker, false, 0);
            assert_eq!((breaker.state(), breaker.failures()), (State::Closed, n));
        }
        call(&mut breaker, false, 0);
        assert_eq!((breaker.state(), breaker.opened()), (State::Open, 1));
    }

    #[test]
    fn failures_older_than_a_hundred_calls_are_forgotten() {
        let mut breaker = Breaker::new(1);
        for round in 0..50 {
            for n in 0..CALLS {
                call(&mut breaker, n < 51, 0);
                assert_eq!(breaker.state(), State::Closed, "round {round}, call {n}");
            }
        }
    }

    #[test]
    fn a_few_calls_say_nothing_yet() {
        let mut breaker = Breaker::new(1);
        for _ in 0..CALLS_MIN - 1 {
            call(&mut breaker, false, 0);
        }
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn one_probe_decides_and_the_others_wait_for_it() {
        let mut breaker = opened();
        let wait = wait_ms(&mut breaker, 0);
        assert!((500..=1000).contains(&wait), "{wait}");
        let probe = permit(&mut breaker, wait);
        assert_eq!(breaker.state(), State::HalfOpen);
        assert_eq!(wait_ms(&mut breaker, wait), PROBE_LOOK_MS);
        breaker.finished(probe, true, None, wait + 5);
        assert_eq!((breaker.state(), breaker.failures()), (State::Closed, 0));
        call(&mut breaker, true, wait + 6);
    }

    #[test]
    fn failed_probes_double_the_wait_up_to_a_minute() {
        let mut breaker = opened();
        let mut now = 0;
        for n in 0..12 {
            let wait = wait_ms(&mut breaker, now);
            let bound = (WAIT_FIRST_MS << n).min(WAIT_MAX_MS);
            assert!((bound / 2..=bound).contains(&wait), "probe {n}: {wait} ms");
            now += wait;
            call(&mut breaker, false, now);
            assert_eq!((breaker.state(), breaker.opened()), (State::Open, n + 2));
        }
        // A success begins again at the first wait.
        now += wait_ms(&mut breaker, now);
        call(&mut breaker, true, now);
        for _ in 0..CALLS_MIN {
            call(&mut breaker, false, now);
        }
        assert!(wait_ms(&mut breaker, now) <= WAIT_FIRST_MS);
    }

    #[test]
    fn an_answer_to_a_call_from_before_it_opened_changes_nothing() {
        let mut breaker = Breaker::new(1);
        let (early_good, early_bad) = (permit(&mut breaker, 0), permit(&mut breaker, 0));
        for _ in 0..CALLS_MIN {
            call(&mut breaker, false, 0);
        }
        let wait = wait_ms(&mut breaker, 0);
        breaker.finished(early_good, true, None, 1);
        breaker.finished(early_bad, false, None, 1);
        assert_eq!((breaker.state(), breaker.opened(), wait_ms(&mut breaker, 1)), (State::Open, 1, wait - 1));
    }

    #[test]
    fn retry_after_keeps_it_open_that_long() {
        let mut breaker = opened();
        let wait = wait_ms(&mut breaker, 0);
        let probe = permit(&mut breaker, wait);
        breaker.finished(probe, false, Some(Duration::from_secs(30)), wait);
        assert_eq!(wait_ms(&mut breaker, wait), 30_000);
    }

    #[test]
    fn an_abandoned_probe_lets_the_next_one_probe() {
        let mut breaker = opened();
        let wait = wait_ms(&mut breaker, 0);
        let probe = permit(&mut breaker, wait);
        breaker.abandoned(probe, wait);
        call(&mut breaker, true, wait);
        assert_eq!(breaker.state(), State::Closed);
    }
}
