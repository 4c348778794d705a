//! Who talks to whom: the bounded queues between threads, made before any of them runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_queue::ArrayQueue;
use metricstream_shards::counters::Counters;
use metricstream_shards::http::Route;
use metricstream_shards::log::{LogWriter, PAGE_BYTES, Recovered, WriterConfig};
use metricstream_shards::mailbox::{Doorbell, Mailbox};
use metricstream_shards::shard::settings::{Listener, Ports, Wake};
use metricstream_shards::window::ShardMessage;

use super::recovery::share_of;
use super::{RunError, Stage, random_seeds};
use crate::backplane::segments::{self, Gauges, Kept, counted_bytes};
use crate::config::WhenFull;
use crate::forward::share::LogShare;
use crate::rebuild;
use crate::reducer::Source;

const MAILBOX_MESSAGES: usize = 1024;
const NOTICES: usize = 256;

pub(super) struct Wiring {
    /// Wakes the reducer
    pub bell: Arc<Doorbell>,
    /// What the reducer empties
    pub sources: Vec<(Source, Arc<Mailbox<ShardMessage>>)>,
    pub rebuilds: Vec<rebuild::Log>,
    pub shards: Vec<ShardEnds>,
    /// One a log, also of shards that no longer exist
    pub keepers: Vec<Kept>,
    pub gauges: Vec<(u32, Arc<Gauges>)>,
}

/// What a shard is made from.
pub(super) struct ShardEnds {
    pub number: u32,
    pub writer: LogWriter,
    pub ports: Ports,
    pub listeners: Vec<Listener>,
}

impl Wiring {
    pub fn lay(
        stage: &Stage<'_>,
        logs: Vec<(u32, Recovered)>,
        shares: &[Arc<LogShare>],
        listeners: Vec<Vec<Listener>>,
        refold_from_ns: i64,
    ) -> Result<Wiring, RunError> {
        let bell = Doorbell::new();
        let (sources, rebuilds, shards, keepers, gauges) = Default::default();
        let mut wiring = Wiring { bell, sources, rebuilds, shards, keepers, gauges };
        for (number, log) in &logs {
            wiring.add_rebuild(*number, log, refold_from_ns);
        }
        let mut listeners = listeners.into_iter();
        for (number, log) in logs {
            let mut keeper = keeper(stage, number, &log, share_of(shares, number));
            wiring.gauges.push((number, keeper.gauges.clone()));
            // Numbers ascend: those of shards that exist come first.
            if let Some(listeners) = listeners.next() {
                let wake = Arc::new(Wake::new().map_err(|error| RunError::Io { what: "no eventfd", error })?);
                let ports = segments::Ports {
                    prepared: Arc::new(ArrayQueue::new(stage.config.log.spare_segments as usize)),
                    notices: Arc::new(ArrayQueue::new(NOTICES)),
                    no_more: Arc::new(AtomicBool::new(false)),
                    wake,
                };
                wiring.add_shard(number, writer(stage, number, log, &keeper.share), &ports, listeners);
                keeper.shard = Some(ports);
            }
            wiring.keepers.push(keeper);
        }
        Ok(wiring)
    }

    /// What open windows still need of this log is folded again.
    fn add_rebuild(&mut self, log_id: u32, log: &Recovered, from_ns: i64) {
        let needed = log.start.history.iter().filter(|span| {
            let info = log.segments.iter().find(|info| info.segment_id == span.segment_id);
            info.and_then(|info| info.last_stamp_ns).is_none_or(|last| last >= from_ns)
        });
        let spans: Vec<_> = needed.cloned().collect();
        if spans.is_empty() {
            return;
        }
        let mailbox = Mailbox::new(MAILBOX_MESSAGES, self.bell.clone());
        self.sources.push((Source::Rebuild(self.rebuilds.len() as u16), mailbox.clone()));
        self.rebuilds.push(rebuild::Log { log_id, spans, mailbox });
    }

    fn add_shard(&mut self, number: u32, writer: LogWriter, keeper: &segments::Ports, listeners: Vec<Listener>) {
        let mailbox = Mailbox::new(MAILBOX_MESSAGES, self.bell.clone());
        self.sources.push((Source::Shard(number as u16), mailbox.clone()));
        let ports = Ports {
            segments: keeper.prepared.clone(),
            notices: keeper.notices.clone(),
            no_more_segments: keeper.no_more.clone(),
            reducer: mailbox,
            wake: keeper.wake.clone(),
            counters: Arc::new(Counters::new(Route::ALL.len() + 1)),
        };
        self.shards.push(ShardEnds { number, writer, ports, listeners });
    }
}

fn keeper(stage: &Stage<'_>, number: u32, log: &Recovered, share: Arc<LogShare>) -> Kept {
    let settings = &stage.config.log;
    let segment_bytes = settings.segment_bytes.bytes();
    let gauges = Arc::new(Gauges::default());
    gauges.damaged_points.store(log.damage.iter().map(|damage| damage.points).sum(), Ordering::Relaxed);
    let found: VecDeque<_> = log
        .segments
        .iter()
        .map(|info| segments::Segment {
            id: info.segment_id,
            path: info.path.clone(),
            bytes: counted_bytes(info.disk_bytes, segment_bytes),
            last_stamp_ns: info.last_stamp_ns.unwrap_or(i64::MAX),
            // What its points reach is known only by folding them; no further than this.
            newest_ns: info
                .last_stamp_ns
                .map_or(i64::MAX, |last| last.saturating_add(stage.settings.fold.future_bound_ns)),
        })
        .collect();
    Kept {
        dir: stage.data.shard_log(number),
        segment_bytes,
        bytes_max: settings.bytes_max.bytes(),
        retention: settings.retention,
        drop_oldest: settings.when_full == WhenFull::DropOldest,
        next_segment_id: log.start.next_segment_id,
        segments: found,
        unused: log.unused.clone(),
        shard: None,
        gauges,
        share,
    }
}

fn writer(stage: &Stage<'_>, number: u32, log: Recovered, share: &LogShare) -> LogWriter {
    let settings = &stage.config.log;
    let segment_bytes = settings.segment_bytes.bytes();
    let config = WriterConfig {
        segment_bytes,
        block_bytes: ((segment_bytes / 16) as usize).clamp(PAGE_BYTES, 1 << 20),
        undurable_bytes_max: settings.unflushed_bytes_max.bytes() as usize,
        mode: stage.mode,
        ..WriterConfig::new(number, stage.data.node_id(), random_seeds()[0])
    };
    LogWriter::new(config, log.start).publish_to(share.mark.clone())
}
