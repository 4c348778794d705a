//! What a run comes to: one JSON document, from which every output and report is made.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::plan::Plan;

/// Latency histograms count µs, up to an hour, with three significant digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("constant bounds")
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunResult {
    /// Of this document
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
    /// Stretches of constant rate (steps, sweep); empty otherwise.
    pub steps: Vec<Stretch>,
    pub server: Option<ServerSide>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    pub host: String,
    pub cpu: String,
    pub cores: u32,
    pub memory_mib: u64,
    pub kernel: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Histograms {
    /// Intended moment to last byte of the answer (open loop); from the send (closed loop).
    pub latency_us: Recorded,
    /// Send to last byte of the answer.
    pub service_us: Recorded,
    /// Intended moment to the send, where the connection was free: the generator's own delay.
    pub lateness_us: Recorded,
}

/// A histogram as text: HdrHistogram's V2 encoding in base64.
#[derive(Clone, Debug)]
pub struct Recorded(pub Histogram<u64>);

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
    /// No answer, by cause: `timeout`, `reset`, `refused_connection`, `closed`, `bad_answer`.
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

impl Serialize for Recorded {
    fn serialize<S: serde::Serializer>(&self, _serializer: S) -> Result<S::Ok, S::Error> {
        unimplemented!()
    }
}

impl<'de> Deserialize<'de> for Recorded {
    fn deserialize<D: serde::Deserializer<'de>>(_deserializer: D) -> Result<Recorded, D::Error> {
        unimplemented!()
    }
}
