//! The aggregate log as the reducer gets it, and what others see of it until the reducer has spoken.

use std::sync::{Arc, Mutex};

use metricstream_shards::log::{
    AGGREGATE_LOG_ID, BlockingLog, LogWriter, PAGE_BYTES, Recovered, WriteMode, WriterConfig,
};

use super::random_seeds;
use crate::backplane::segments::counted_bytes;
use crate::config::{Config, WhenFull};
use crate::data_dir::DataDir;
use crate::forward::share::LogShare;
use crate::reducer::core::Closed;
use crate::reducer::thread::{Retention, Segment, SharedView, Store, View};
use crate::reducer::{self, Books};

/// It is written by one thread, in larger blocks than a shard's.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;

pub(super) fn segment_bytes(config: &Config) -> u64 {
    (config.log.aggregate_bytes_max.bytes() / 4).min(SEGMENT_BYTES_MAX) / (64 << 10) * (64 << 10)
}

pub(super) fn first_view(log: &Recovered, closed: &reducer::Recovered, floor_ns: i64, rebuilding: bool) -> SharedView {
    let spans = log.start.history.iter().map(|span| {
        let info = log.segments.iter().find(|info| info.segment_id == span.segment_id);
        (span.clone(), info.and_then(|info| info.last_stamp_ns).unwrap_or(i64::MAX))
    });
    Arc::new(Mutex::new(View {
        books: Books::default(),
        closed: Closed { era: closed.era, m_ns: closed.m_ns, floor_ns },
        series: 0,
        windows: 0,
        bytes: 0,
        rebuilding,
        log_end_block: 0,
        log_segments: 0,
        log_bytes: 0,
        log_unavailable: false,
        spans: spans.collect(),
        newest: "".into(),
    }))
}

pub(super) fn store(config: &Config, data: &DataDir, log: Recovered, share: Arc<LogShare>) -> Store {
    let segment_bytes = segment_bytes(config);
    let writer_config = WriterConfig {
        segment_bytes,
        block_bytes: ((segment_bytes / 16) as usize).clamp(PAGE_BYTES, 1 << 20),
        durable_bytes_max: 0,
        mode: WriteMode::WriteThenFlush,
        ..WriterConfig::new(AGGREGATE_LOG_ID, data.node_id(), random_seeds()[0])
    };
    let old = log.segments.iter().map(|info| Segment {
        id: info.segment_id,
        path: info.path.clone(),
        last_stamp_ns: info.last_stamp_ns.unwrap_or(i64::MAX),
        bytes: counted_bytes(info.disk_bytes, segment_bytes),
    });
    Store {
        retention: Retention {
            bytes_max: config.log.aggregate_bytes_max.bytes(),
            age_max: config.log.aggregate_retention,
        },
        unused: log.unused,
        old: old.collect(),
        log: BlockingLog::new(
            &data.aggregate_log(),
            LogWriter::new(writer_config, log.start).publish_to(share.mark.clone()),
        ),
        share,
        drop_oldest: config.log.when_full == WhenFull::DropOldest,
    }
}
