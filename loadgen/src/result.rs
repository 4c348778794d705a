//! What a run comes to: one JSON document, from which every output and report is made.
//!
//! Documents come back from files: reading one never panics, never allocates in proportion to a number it has not
//! checked, and says in one sentence what is wrong.

mod merge;
mod read;
mod recorded;

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

pub use self::recorded::Recorded;
use crate::plan::{Plan, Shape};

/// Of the document. A reader refuses every other one.
pub const VERSION: u32 = 1;

/// The greatest latency that is told apart, an hour in µs.
pub const HIGHEST_US: u64 = 3_600_000_000;

/// Latency histograms count µs, up to an hour, with three significant digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, HIGHEST_US, 3).expect("constant bounds")
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunResult {
    /// [`VERSION`]
    pub version: u32,
    pub tool: String,
    pub command: String,
    pub machine: Machine,
    pub started_unix_ms: u64,
    pub target: String,
    pub plan: Plan,
    pub totals: Totals,
    pub histograms: Histograms,
    pub seconds: Vec<Second>,
    /// Stretches of constant rate (steps, sweep); empty otherwise. Of a sweep, totals and histograms are those of the
    /// highest rate that held; `seconds` are of all steps.
    pub steps: Vec<Stretch>,
    pub server: Option<ServerSide>,
    /// Sentences for people that belong to the figures, beside those that follow from them.
    #[serde(default)]
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    pub host: String,
    pub cpu: String,
    pub cores: u32,
    pub memory_mib: u64,
    pub kernel: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Histograms {
    /// Intended moment to last byte of the answer (open loop); from the send (closed loop).
    pub latency_us: Recorded,
    /// Send to last byte of the answer.
    pub service_us: Recorded,
    /// Intended moment to the send, where the connection was free: the generator's own delay.
    pub lateness_us: Recorded,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    pub duration_s: f64,
    /// Requests that became due within the run (closed loop: that were sent).
    pub due: u64,
    pub sent: u64,
    /// Answered 2xx, or as a partial write whose good points were kept.
    pub acknowledged: u64,
    /// By status.
    pub refused: BTreeMap<u16, u64>,
    /// No answer, by cause: `timeout`, `reset`, `refused_connection`, `closed`, `bad_answer`; `never_sent` when the run was
    /// over first.
    pub unknown: BTreeMap<String, u64>,
    /// Requests sent again.
    pub retries: u64,
    /// Batches given up after all their attempts.
    pub given_up: u64,
    pub points_sent: u64,
    pub points_acknowledged: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub connections_opened: u64,
    /// User and system time of the generator itself.
    pub generator_cpu_s: f64,
    /// Time that generating processes ran, added up. 0 stands for one process throughout.
    #[serde(default)]
    pub generator_wall_s: f64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Second {
    pub at_s: f64,
    pub due: u64,
    pub sent: u64,
    pub acknowledged: u64,
    pub refused: u64,
    pub unknown: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
    pub lateness_p99_us: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stretch {
    /// Requests a second
    pub rate: f64,
    pub from_s: f64,
    pub to_s: f64,
    pub due: u64,
    pub acknowledged: u64,
    pub errors: u64,
    pub latency_us: Recorded,
}

/// What the server says of itself, from its `/metrics` before and after.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerSide {
    /// Upper bounds in seconds and counts (not cumulative) of its acknowledgement histogram over the run.
    pub acknowledge: Vec<(f64, u64)>,
    /// User and system time over the run, when its process is known.
    pub cpu_s: Option<f64>,
    pub rss_bytes: Option<u64>,
}

impl RunResult {
    /// Whether latency counts from the send and not from an intended moment.
    pub fn is_closed_loop(&self) -> bool {
        matches!(self.plan.shape, Shape::Closed { .. })
    }

    /// Whether this is what a sweep gathered: steps, and the figures of one of them.
    pub fn is_sweep(&self) -> bool {
        !self.steps.is_empty() && matches!(self.plan.shape, Shape::Constant { .. })
    }

    /// As they came, and by rate those of a sweep, which tries them in an order of its own.
    pub fn steps_in_order(&self) -> Vec<&Stretch> {
        let mut steps: Vec<_> = self.steps.iter().collect();
        if self.is_sweep() {
            steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        }
        steps
    }

    /// The same, fit to be shown to others: without the token it was made with.
    pub fn without_secrets(&self) -> RunResult {
        let mut shown = self.clone();
        if let Some(token) = shown.plan.transport.token.replace("(hidden)".into()).filter(|token| !token.is_empty()) {
            shown.command = shown.command.replace(&token, "(hidden)");
        } else {
            shown.plan.transport.token = None;
        }
        shown
    }

    /// Requests that became due a second.
    pub fn due_rate(&self) -> f64 {
        per_second(self.totals.due, self.totals.duration_s)
    }

    /// Requests acknowledged a second.
    pub fn achieved_rate(&self) -> f64 {
        per_second(self.totals.acknowledged, self.totals.duration_s)
    }

    /// Points acknowledged a second.
    pub fn points_rate(&self) -> f64 {
        per_second(self.totals.points_acknowledged, self.totals.duration_s)
    }
}

impl Totals {
    pub fn refused_count(&self) -> u64 {
        self.refused.values().fold(0, |sum, n| sum.saturating_add(*n))
    }

    pub fn unknown_count(&self) -> u64 {
        self.unknown.values().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Due, but still waiting behind others when the run was over.
    pub fn never_sent(&self) -> u64 {
        self.unknown.get("never_sent").copied().unwrap_or(0)
    }

    /// What shares of errors are shares of: every attempt, and what never came to one.
    pub fn attempts(&self) -> u64 {
        self.sent.saturating_add(self.never_sent())
    }

    /// Refused, or without an answer.
    pub fn error_count(&self) -> u64 {
        self.refused_count().saturating_add(self.unknown_count())
    }

    /// Share of a core that a generating process used, 0 to 1 (above 1 with several threads).
    pub fn generator_cpu_share(&self) -> f64 {
        let wall_s = if self.generator_wall_s > 0.0 { self.generator_wall_s } else { self.duration_s };
        if wall_s > 0.0 { self.generator_cpu_s / wall_s } else { 0.0 }
    }
}

impl Stretch {
    /// Requests acknowledged a second.
    pub fn achieved_rate(&self) -> f64 {
        per_second(self.acknowledged, self.to_s - self.from_s)
    }
}

impl ServerSide {
    /// Upper bound in seconds of the bucket that holds the quantile (0 to 1); infinite beyond the last bound. None when
    /// nothing was counted.
    pub fn quantile_bound_s(&self, quantile: f64) -> Option<f64> {
        let total: f64 = self.acknowledge.iter().map(|(_, count)| *count as f64).sum();
        let mut below = 0.0;
        self.acknowledge
            .iter()
            .find(|(_, count)| {
                below += *count as f64;
                *count > 0 && below >= quantile * total
            })
            .map(|(bound, _)| *bound)
    }
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// Results as tests want them: as large as needed, the same each time.
#[cfg(test)]
pub mod fixture;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_shown() {
        let mut result = fixture::steady("a", 1);
        assert_eq!(result.without_secrets().to_json(), result.to_json());
        result.plan.transport.token = Some("s3cret".into());
        result.command = "metricstream-loadgen run --token s3cret".into();
        let shown = result.without_secrets();
        assert!(!shown.to_json().contains("s3cret"));
        assert_eq!(shown.command, "metricstream-loadgen run --token (hidden)");
    }

    #[test]
    fn the_servers_quantiles_are_bounds_of_its_buckets() {
        let server =
            |acknowledge: &[(f64, u64)]| ServerSide { acknowledge: acknowledge.to_vec(), cpu_s: None, rss_bytes: None };
        let known = server(&[(0.001, 90), (0.002, 9), (f64::INFINITY, 1)]);
        assert_eq!((known.quantile_bound_s(0.9), known.quantile_bound_s(0.99)), (Some(0.001), Some(0.002)));
        assert_eq!(known.quantile_bound_s(1.0), Some(f64::INFINITY));
        assert_eq!(server(&[(0.001, 0)]).quantile_bound_s(0.5), None);
    }
}
