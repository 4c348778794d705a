//! The aggregate log in segments: the reducer's end of `metricstream_shards::log`, for writing, recovery and queries.

use super::{
    aggregate_log::{AggregateLog, Kind, LogRefused},
    encode::{self, MarkRecord, RecordView},
    recovery::{Recovered, Recovery},
};
use metricstream_shards::log::{AGGREGATE_LOG_ID, AppendError, BlockingLog, LogReader, ReadItem, ReadSpan, RecordKind};

impl Kind {
    fn stored(self) -> RecordKind {
        match self {
            Kind::Aggregates => RecordKind::Aggregates,
            Kind::Mark => RecordKind::Mark,
            Kind::Era => RecordKind::Era,
        }
    }

    fn of(stored: RecordKind) -> Option<Kind> {
        match stored {
            RecordKind::Aggregates => Some(Kind::Aggregates),
            RecordKind::Mark => Some(Kind::Mark),
            RecordKind::Era => Some(Kind::Era),
            RecordKind::Names | RecordKind::Batch => None,
        }
    }
}

/// Nobody folds this log: it needs no `durable_bytes_max`.
impl AggregateLog for BlockingLog {
    fn append(&mut self, kind: Kind, stamp_ns: i64, results: u32, bytes: &[u8]) -> Result<(), LogRefused> {
        let appended = match self.append_opaque(kind.stored(), stamp_ns, results, bytes) {
            // More in one round than may wait for the disk: it goes there now, the round goes on.
            Err(AppendError::Full) => {
                AggregateLog::flush(self)?;
                self.append_opaque(kind.stored(), stamp_ns, results, bytes)
            }
            other => other,
        };
        appended.map(|_| ()).map_err(|error| {
            tracing::warn!(%error, "the aggregate log refuses a record");
            LogRefused
        })
    }

    fn flush(&mut self) -> Result<(), LogRefused> {
        BlockingLog::flush(self, &()).map(|_| ()).map_err(|error| {
            tracing::warn!(%error, "the aggregate log does not reach its disk");
            LogRefused
        })
    }
}

/// What reading met that it could not use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unreadable {
    /// Results known to be lost with damaged blocks
    pub results: u64,
    pub damaged_spans: u64,
    pub malformed_records: u64,
}

/// M, F and the era alone, from the newest segment that tells: what has to be known before anything is served. The
/// results, which take longer, follow with [`recover`].
pub fn recover_place(spans: &[ReadSpan]) -> Recovered {
    for span in spans.iter().rev() {
        let (mut recovery, mut told) = (Recovery::default(), false);
        read(vec![span.clone()], &mut |kind, bytes| {
            if kind != Kind::Aggregates {
                told |= recovery.feed(kind, bytes).is_ok() && kind == Kind::Mark;
            }
            true
        });
        if told {
            return recovery.finish();
        }
    }
    Recovered::default()
}

/// Reads what a restart needs and no more: back to the first segment that begins with M at or below the last F, because
/// every result of a window above F was logged behind that mark.
pub fn recover(spans: &[ReadSpan]) -> (Recovered, Unreadable) {
    let mut last_floor_ns = None;
    let mut from = 0;
    for (n, span) in spans.iter().enumerate().rev() {
        let (mut first, mut last) = (None, None);
        read(vec![span.clone()], &mut |kind, bytes| {
            if kind == Kind::Mark
                && let Ok(mark) = MarkRecord::decode(bytes)
            {
                first.get_or_insert(mark);
                last = Some(mark);
            }
            // Of segments further back only the first mark matters.
            last_floor_ns.is_none() || first.is_none()
        });
        let floor_ns = *last_floor_ns.get_or_insert(match last {
            Some(mark) => mark.floor_ns,
            None => continue,
        });
        if first.is_some_and(|mark| mark.m_ns <= floor_ns) {
            from = n;
            break;
        }
    }
    let mut recovery = Recovery::default();
    let mut malformed_records = 0;
    let mut unreadable = read(spans[from..].to_vec(), &mut |kind, bytes| {
        malformed_records += u64::from(recovery.feed(kind, bytes).is_err());
        true
    });
    unreadable.malformed_records = malformed_records;
    (recovery.finish(), unreadable)
}

/// Every result in the spans, in log order, until `each` answers `false` at the end of a record.
pub fn for_each_result(spans: Vec<ReadSpan>, each: &mut impl FnMut(RecordView<'_>)) -> Unreadable {
    let mut malformed_records = 0;
    let mut unreadable = read(spans, &mut |kind, bytes| {
        if kind == Kind::Aggregates {
            malformed_records += u64::from(encode::decode_aggregates(bytes, each).is_err());
        }
        true
    });
    unreadable.malformed_records = malformed_records;
    unreadable
}

fn read(spans: Vec<ReadSpan>, each: &mut impl FnMut(Kind, &[u8]) -> bool) -> Unreadable {
    let mut unreadable = Unreadable::default();
    let mut reader = LogReader::new(AGGREGATE_LOG_ID, spans, None);
    while let Some(item) = reader.next_item() {
        match item {
            ReadItem::Block(block) => {
                for record in block.records() {
                    if let Some(kind) = Kind::of(record.kind)
                        && !each(kind, record.bytes)
                    {
                        return unreadable;
                    }
                }
            }
            ReadItem::Damage(damage) => {
                unreadable.damaged_spans += 1;
                unreadable.results += damage.points;
            }
            ReadItem::End { .. } => {}
        }
    }
    unreadable
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reducer::core::{Progress, ReducerCore, Settings, Source};
    use metricstream_shards::{
        log::{LogStart, LogWriter, WriterConfig, recover as recover_log},
        window::{
            partial::{Partials, ShardMessage},
            protocol::{SECOND_NS, Spans},
            set::{Cell, Identity},
            summary::Detail,
        },
    };

    fn settings(rebuilds: u16) -> Settings {
        Settings {
            spans: Spans::default(),
            base_s: 10,
            windows_s: vec![10, 60],
            per_series: true,
            rules: vec![],
            detail: Detail::Quantiles,
            keep_state: false,
            memory_bytes_max: usize::MAX,
            shards: 1,
            rebuilds,
            epoch: 1,
        }
    }

    fn config() -> WriterConfig {
        WriterConfig {
            segment_bytes: 1 << 20,
            block_bytes: 64 << 10,
            undurable_bytes_max: 256 << 10,
            durable_bytes_max: 0,
            ..WriterConfig::new(AGGREGATE_LOG_ID, 7, 1)
        }
    }

    #[test]
    fn m_f_and_the_results_above_f_come_back_from_the_last_segments() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = BlockingLog::new(dir.path(), LogWriter::new(config(), LogStart::empty()));
        let mut core = ReducerCore::new(settings(0), Recovered::default(), 0);
        for id in 0..500u32 {
            let key = format!("c\u{1}n{id}").into_bytes().iter().map(|&b| if b == 1 { 0xFF } else { b }).collect();
            core.apply(Source::Shard(0), ShardMessage::NewSeries { id, key }, 0, i64::MAX);
        }
        for window in 0..120 {
            let window_start_ns = window * 10 * SECOND_NS;
            let cell = |id: u32| {
                let mut cell = Cell::one(Identity::at_offset(5), f64::from(id) * 0.1);
                cell.insert(Identity::at_offset(6), 1.5, Detail::Quantiles);
                (id, cell)
            };
            let cells = (0..500).map(cell).collect();
            let partials = Partials { window_start_ns, cells };
            core.apply(Source::Shard(0), ShardMessage::Partials(partials), 0, i64::MAX);
            let mark_ns = window_start_ns + 10 * SECOND_NS;
            core.apply(Source::Shard(0), ShardMessage::Mark { mark_ns }, 0, i64::MAX);
            assert_eq!(core.advance(0, mark_ns, &mut log, usize::MAX), Progress::Idle);
        }
        let recovered = recover_log(dir.path(), AGGREGATE_LOG_ID, 7).expect("recovers");
        assert!(recovered.start.history.len() > 2, "several segments");
        let (back, unreadable) = recover(&recovered.start.history);
        assert_eq!(unreadable, Unreadable::default());
        let closed = core.closed();
        assert_eq!((back.m_ns, back.floor_ns), (closed.m_ns, closed.floor_ns));
        assert_eq!((closed.m_ns, closed.floor_ns), (1200 * SECOND_NS, 900 * SECOND_NS));
        assert_eq!(back.results.len(), 500 * (30 + 5));
        let mut all = 0;
        for_each_result(recovered.start.history, &mut |_| all += 1);
        assert_eq!(all, 500 * (120 + 20));
    }
}
