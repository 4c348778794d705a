//! What a sink that makes calls over the network has seen, for `/metrics`: answers by kind, the breaker, the budget, the
//! dead letters. Several threads of a sink write it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::breaker::{Admission, Breaker, Permit, State};
use super::retry::RetryBudget;

pub struct CallBooks {
    sink: String,
    /// Names of the kinds of answers, in the order of `answers`
    pub kinds: &'static [&'static str],
    answers: Vec<AtomicU64>,
    /// Calls made again
    pub retries: AtomicU64,
    /// Bytes of bodies sent, as they went over the wire
    pub sent_bytes: AtomicU64,
    /// Batches cut in two
    pub halvings: AtomicU64,
    /// Entries in files now, in bytes; and entries removed because the files reached their bound
    pub dead_letter_bytes: AtomicU64,
    pub dead_letters_dropped: AtomicU64,
    /// Calls that wait for an operator now
    pub held: AtomicU64,
    /// Calls that wait to be made again now
    pub waiting: AtomicU64,
    /// Whether the last append to the dead letters failed
    pub dead_letters_failing: AtomicBool,
    origin: Instant,
    gate: Mutex<(Breaker, RetryBudget)>,
}

/// For `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    pub state: State,
    pub opened: u64,
    pub budget_left: u32,
    pub budget_exhausted: u64,
}

impl CallBooks {
    pub fn new(sink: &str, kinds: &'static [&'static str], seed: u64) -> CallBooks {
        CallBooks {
            sink: sink.to_owned(),
            kinds,
            answers: kinds.iter().map(|_| AtomicU64::new(0)).collect(),
            retries: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            halvings: AtomicU64::new(0),
            dead_letter_bytes: AtomicU64::new(0),
            dead_letters_dropped: AtomicU64::new(0),
            held: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            dead_letters_failing: AtomicBool::new(false),
            origin: Instant::now(),
            gate: Mutex::new((Breaker::new(seed), RetryBudget::new(0))),
        }
    }

    fn now_ms(&self) -> u64 {
        self.origin.elapsed().as_millis() as u64
    }

    fn locked(&self) -> MutexGuard<'_, (Breaker, RetryBudget)> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count(&self, kind: usize) {
        self.answers[kind].fetch_add(1, Ordering::Relaxed);
    }

    pub fn answers(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.kinds.iter().copied().zip(self.answers.iter().map(|n| n.load(Ordering::Relaxed)))
    }

    pub fn admit(&self) -> Admission {
        let now_ms = self.now_ms();
        self.locked().0.admit(now_ms)
    }

    pub fn finished(&self, permit: Permit, healthy: bool, retry_after: Option<Duration>) {
        let now_ms = self.now_ms();
        let mut gate = self.locked();
        let before = gate.0.state();
        gate.0.finished(permit, healthy, retry_after, now_ms);
        if healthy {
            gate.1.succeeded(now_ms);
        }
        let after = gate.0.state();
        drop(gate);
        if before != after {
            tracing::info!(
                cause = "breaker",
                sink = self.sink,
                from = before.name(),
                to = after.name(),
                "the circuit breaker of a sink has changed"
            );
        }
    }

    pub fn abandoned(&self, permit: Permit) {
        let now_ms = self.now_ms();
        self.locked().0.abandoned(permit, now_ms);
    }

    /// How long a retry has to wait for the budget.
    pub fn retry(&self) -> Duration {
        self.retries.fetch_add(1, Ordering::Relaxed);
        let now_ms = self.now_ms();
        Duration::from_millis(self.locked().1.take_ms(now_ms))
    }

    pub fn gate(&self) -> Gate {
        let mut gate = self.locked();
        let now_ms = self.now_ms();
        gate.1.fill(now_ms);
        Gate {
            state: gate.0.state(),
            opened: gate.0.opened(),
            budget_left: gate.1.left(),
            budget_exhausted: gate.1.exhausted(),
        }
    }
}
