//! The process while it serves, and how it stops: in which order, and within which bounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metricstream_shards::shard::settings::{Shared, Wake};
use signal_hook::iterator::Signals;

use crate::forward;
use crate::logging::LogLines;

/// What shards may take beyond `node.drain_within` to flush and to fold.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOK_EVERY_STOPPING: Duration = Duration::from_millis(5);

/// What tells each thread to end.
#[derive(Default)]
pub(super) struct Stops {
    pub rebuild: Arc<AtomicBool>,
    /// Set when the shards have ended
    pub reducer: Arc<AtomicBool>,
    /// Set when the sinks have ended, which read through it
    pub backplane: Arc<AtomicBool>,
}

pub(super) struct Running {
    pub shared: Arc<Shared>,
    /// One a shard
    pub wakes: Vec<Arc<Wake>>,
    pub stops: Stops,
    pub shards: Vec<JoinHandle<()>>,
    pub rebuilding: JoinHandle<()>,
    pub reducer: JoinHandle<()>,
    pub backplane: JoinHandle<()>,
    pub sinks: forward::Running,
}

impl Running {
    /// Serves until a signal comes, then stops in order. A thread that ends before ends the process, and so does a second
    /// signal, or a shard that does not end in time.
    pub fn serve(self, signals: &mut Signals, drain_within: Duration, lines: &LogLines) {
        let mut stopping_since: Option<Instant> = None;
        loop {
            for signal in signals.pending() {
                if stopping_since.is_some() {
                    tracing::warn!(signal, "a second signal: ending at once");
                    std::process::exit(1);
                }
                tracing::info!(signal, "stopping: no new connections, answering and flushing what was received");
                stopping_since = Some(Instant::now());
                self.drain();
            }
            lines.report_suppressed();
            match stopping_since {
                None if self.has_lost_a_thread() => {
                    // Serving on without a shard, without windows or without segments would look well and be none of it.
                    tracing::error!(
                        "a thread of this process has ended; ending the process, so that it is started again"
                    );
                    std::process::exit(1);
                }
                None => std::thread::sleep(LOOK_EVERY),
                Some(since) if self.shards.iter().all(JoinHandle::is_finished) => {
                    self.stop();
                    let ms = since.elapsed().as_millis() as u64;
                    tracing::info!(ms, "stopped; everything acknowledged is on disk");
                    lines.report_suppressed();
                    return;
                }
                Some(since) if since.elapsed() > drain_within + STOP_PATIENCE => {
                    tracing::error!("the shards do not end in time; what they had acknowledged from disk is safe");
                    std::process::exit(1);
                }
                Some(_) => std::thread::sleep(LOOK_EVERY_STOPPING),
            }
        }
    }

    fn has_lost_a_thread(&self) -> bool {
        self.shards.iter().any(JoinHandle::is_finished)
            || self.reducer.is_finished()
            || self.backplane.is_finished()
            || self.sinks.has_ended()
    }

    /// Tells the shards to take no more and to end when they have answered, flushed and folded.
    fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
        self.stops.rebuild.store(true, Ordering::Release);
        for wake in &self.wakes {
            wake.ring();
        }
    }

    /// When the shards have ended: the others, each after those that it serves.
    fn stop(self) {
        for shard in self.shards {
            let _ = shard.join();
        }
        let _ = self.rebuilding.join();
        self.stops.reducer.store(true, Ordering::Release);
        let _ = self.reducer.join();
        // The logs have got their last block: the sinks have their time to take what is left.
        self.sinks.stop();
        self.stops.backplane.store(true, Ordering::Release);
        let _ = self.backplane.join();
    }
}
