//! Sends and times.
//!
//! One thread, one ring ([`worker`]). Requests become due by the [`crate::schedule`] (or, in a closed loop, when a
//! connection is free), are written into the ledger, leave, and end as acknowledged, refused or unknown. Latency counts
//! from the due moment, so that time spent waiting behind a busy connection is in it.

mod backoff;
mod connection;
mod live;
mod machine;
mod random;
mod render;
mod request;
pub mod response;
mod server_side;
mod stats;
#[cfg(test)]
pub mod testing;
mod worker;

pub use machine::{pin, watch};

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::commands::Failure;
use crate::ledger;
use crate::plan::Plan;
use crate::result::RunResult;

pub struct Options {
    pub target: SocketAddr,
    pub ledger: Option<ledger::Writer>,
    /// Base URL of the server's `/metrics`, scraped before and after.
    pub server_metrics: Option<String>,
    pub server_pid: Option<u32>,
    /// Show the live line on standard error.
    pub live: bool,
    pub core: Option<usize>,
}

/// Runs the plan to its end, or to the first SIGINT or SIGTERM: either way with a full result.
///
/// Fails when nothing can be reached at the start, when the server's own figures were asked for and cannot be had, and
/// when the ledger cannot be written: nothing is sent that it does not hold.
pub fn run(plan: &Plan, options: Options) -> Result<RunResult, Failure> {
    // Before this thread keeps to one of the cores it counts.
    let machine = machine::describe();
    machine::pin(options.core)?;
    machine::raise_descriptor_limit(u64::from(plan.transport.connections) + 64)?;
    machine::wake_on_time();
    let interrupted = Arc::new(AtomicBool::new(false));
    let signals: Vec<_> =
        [libc::SIGINT, libc::SIGTERM].into_iter().map(|signal| machine::watch(signal, &interrupted)).collect();
    let before = server_side::look(&options)?;
    let target = options.target;
    let (metrics, pid) = (options.server_metrics.clone(), options.server_pid);
    let mut worker = worker::Worker::new(plan, options, interrupted)?;
    worker.connect_all()?;
    let started_unix_ms = unix_ms();
    let outcome = worker.run();
    signals.into_iter().flatten().for_each(|id| {
        signal_hook::low_level::unregister(id);
    });
    let stats = outcome?;
    let server = server_side::since(before, metrics.as_deref(), pid)?;
    Ok(RunResult {
        version: 1,
        tool: concat!("metricstream-loadgen ", env!("CARGO_PKG_VERSION")).to_owned(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        machine,
        started_unix_ms,
        target: target.to_string(),
        plan: plan.clone(),
        totals: stats.totals,
        histograms: stats.histograms,
        seconds: stats.seconds,
        steps: stats.steps,
        server,
        notes: stats.notes,
    })
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
