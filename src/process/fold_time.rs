//! Where the fold clock and the floor stand when a process starts.

use std::time::Instant;

use metricstream_shards::window::protocol::{ClockEvent, FoldClock};

use super::recovery::Logs;
use crate::config::Config;
use crate::reducer::thread::wall_ns;
use crate::translate;

pub(super) struct FoldTime {
    pub clock: FoldClock,
    /// What the clock's start came to
    pub event: ClockEvent,
    pub floor_ns: i64,
    /// Records stamped earlier have no points above the floor
    pub refold_from_ns: i64,
}

impl FoldTime {
    pub fn begin(config: &Config, origin: Instant, logs: &Logs) -> FoldTime {
        let spans = translate::spans(config);
        let monotonic_ns = || origin.elapsed().as_nanos() as i64;
        let (clock, event) = FoldClock::start(monotonic_ns(), wall_ns(), logs.last_stamp_ns(), logs.closed.era, spans);
        // The floor: from the log, else what the horizon reaches back from now.
        let from_now_ns = clock.now(monotonic_ns()) - spans.lateness_ns - spans.horizon_ns;
        let from_now_ns = from_now_ns - from_now_ns.rem_euclid(3_600_000_000_000.min(longest_window_ns(config)));
        let floor_ns = match logs.closed.floor_ns {
            i64::MIN => from_now_ns,
            // The floor of an era whose clock was ahead would call everything late until that time has come.
            logged if matches!(event, ClockEvent::EraStarted { .. }) => logged.min(from_now_ns),
            logged => logged,
        };
        let refold_from_ns = floor_ns.saturating_sub(translate::fold(config, 1).future_bound_ns);
        FoldTime { clock, event, floor_ns, refold_from_ns }
    }
}

fn longest_window_ns(config: &Config) -> i64 {
    config.windows.windows.iter().map(|window| window.as_nanos() as i64).max().unwrap_or(60_000_000_000)
}
