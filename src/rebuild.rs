//! After a start: the records that windows above the floor still need are folded again, by the code that folds live
//! ones, and handed to the reducer, which holds M until all logs are through.
//!
//! Logs of shards that no longer exist are folded like the others. A block that is damaged is passed over and counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metricstream_shards::log::{BatchDecoder, LogReader, ReadItem, ReadSpan, RecordKind};
use metricstream_shards::mailbox::Mailbox;
use metricstream_shards::point::{Batch, FoldInput, INLINE_BIT, SeriesRef};
use metricstream_shards::window::{Fold, FoldConfig, ShardMessage};

/// One log to fold again.
pub struct Log {
    pub log_id: u32,
    /// Up to where recovery found it: what comes later is live
    pub spans: Vec<ReadSpan>,
    pub mailbox: Arc<Mailbox<ShardMessage>>,
}

/// What a rebuild came to, for the log line at its end.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Rebuilt {
    pub blocks: u64,
    pub points: u64,
    pub damaged_points: u64,
}

const CELLS_A_MESSAGE: usize = 512;

/// Folds one log from the first record stamped at or after `from_ns`. Stops early, without a word, when `stop` is set:
/// the process ends, and the next start begins again.
pub fn rebuild(log: Log, config: FoldConfig, floor_ns: i64, from_ns: i64, stop: &AtomicBool) -> Rebuilt {
    let mut rebuilt = Rebuilt::default();
    // Numbers are not given twice here: with many short-lived series there are more than were ever live at once.
    let config = FoldConfig { series_max: INLINE_BIT, ..config };
    let mut fold = Fold::new(config, floor_ns);
    let mut decoder = BatchDecoder::default();
    let mut batch = Batch::default();
    let mut numbers: HashMap<Box<[u8]>, u32> = HashMap::new();
    let mut reader = LogReader::new(log.log_id, log.spans, None);
    let mut unreadable = 0u64;
    loop {
        // The item borrows the reader, whose names are wanted too: records are copied out of the block first.
        let records: Vec<Vec<u8>> = match reader.next_item() {
            None => break,
            Some(ReadItem::End { .. }) => continue,
            Some(ReadItem::Damage(damage)) => {
                rebuilt.damaged_points += damage.points;
                tracing::error!(
                    segment_id = damage.segment_id,
                    from = damage.from,
                    to = damage.to,
                    points = damage.points,
                    "a part of the log is damaged; what it held is missing from the windows"
                );
                continue;
            }
            Some(ReadItem::Block(block)) if block.header.last_stamp_ns < from_ns => continue,
            Some(ReadItem::Block(block)) => {
                rebuilt.blocks += 1;
                block.records().filter(|r| r.kind == RecordKind::Batch).map(|r| r.bytes.to_vec()).collect()
            }
        };
        if stop.load(Ordering::Relaxed) {
            return rebuilt;
        }
        let mut mark_ns = i64::MIN;
        for record in &records {
            let Ok((envelope, stored)) = decoder.decode(record) else {
                unreadable += 1;
                continue;
            };
            batch.clone_from(stored);
            let mut named = true;
            for series in &mut batch.series {
                if *series & INLINE_BIT != 0 {
                    continue;
                }
                let Some(key) = reader.names().get(*series) else {
                    named = false;
                    break;
                };
                *series = match numbers.get(key) {
                    Some(&number) => number,
                    None => {
                        let number = numbers.len() as u32;
                        numbers.insert(key.into(), number);
                        if !send(&log.mailbox, ShardMessage::NewSeries { id: number, key: key.into() }, stop) {
                            return rebuilt;
                        }
                        SeriesRef::from_bits(number).to_bits()
                    }
                };
            }
            if !named {
                unreadable += 1;
                rebuilt.damaged_points += batch.len() as u64;
                continue;
            }
            rebuilt.points += batch.len() as u64;
            fold.fold(&FoldInput {
                protocol: envelope.protocol,
                client: envelope.client,
                stamp_ns: envelope.stamp_ns,
                same_timestamp_all: envelope.same_timestamp_all,
                batch: &batch,
            });
            mark_ns = mark_ns.max(envelope.stamp_ns - config.lateness_ns);
        }
        while let Some(message) = fold.take_ready(mark_ns, CELLS_A_MESSAGE) {
            if !send(&log.mailbox, message, stop) {
                return rebuilt;
            }
        }
    }
    while let Some(message) = fold.take_ready(i64::MAX, CELLS_A_MESSAGE) {
        if !send(&log.mailbox, message, stop) {
            return rebuilt;
        }
    }
    send(&log.mailbox, ShardMessage::Drained, stop);
    if unreadable > 0 {
        tracing::error!(records = unreadable, "records in sound blocks could not be read or named");
    }
    rebuilt
}

/// Waits for room; the reducer empties its mailboxes all the time. False when it was told to stop: then nothing more may
/// be sent, `Drained` least of all, which would let windows be closed without what was left out.
fn send(mailbox: &Mailbox<ShardMessage>, mut message: ShardMessage, stop: &AtomicBool) -> bool {
    while let Err(back) = mailbox.send(message) {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        message = back;
        std::thread::sleep(Duration::from_micros(200));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use metricstream_shards::log::{BlockingLog, Envelope, LogStart, LogWriter, Names, Position, WriterConfig};
    use metricstream_shards::mailbox::Doorbell;
    use metricstream_shards::point::{Kind, Protocol, SeriesId, series_key};

    const S: i64 = 1_000_000_000;
    const START: i64 = 1_700_000_000 * S;

    struct Keys;
    impl Names for Keys {
        fn key(&self, id: u32) -> &[u8] {
            [&b"c\xffcpu\xffhost\xfea"[..], b"c\xffcpu\xffhost\xfeb"][id as usize]
        }
    }

    /// A log of one block for each entry: (stamp in s after `START`, series).
    fn written(dir: &std::path::Path, blocks: &[(i64, &[u32])]) -> Vec<ReadSpan> {
        let mut log = BlockingLog::new(
            dir,
            LogWriter::new(
                WriterConfig { segment_bytes: 1 << 20, block_bytes: 64 << 10, ..WriterConfig::new(3, 7, 9) },
                LogStart::empty(),
            ),
        );
        let envelope = Envelope::of("c", Protocol::Json);
        for &(at_s, series) in blocks {
            let mut batch = Batch::default();
            for &n in series {
                batch.push(SeriesRef::Known(SeriesId(n)), START + at_s * S, Kind::Float, 1f64.to_bits());
            }
            log.append_batch(&envelope, START + at_s * S, &batch, &Keys).expect("taken");
            log.flush(&Keys).expect("durable");
        }
        log.writer().read_plan(Position::default())
    }

    fn config() -> FoldConfig {
        FoldConfig { window_ns: 10 * S, ..FoldConfig::default() }
    }

    /// What a rebuild sends, through a mailbox that is nearly always full.
    fn run(spans: Vec<ReadSpan>, from_s: i64) -> (Rebuilt, Vec<ShardMessage>) {
        let mailbox = Mailbox::new(1, Doorbell::new());
        let log = Log { log_id: 3, spans, mailbox: mailbox.clone() };
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let rebuilding = scope.spawn(|| rebuild(log, config(), START - 600 * S, START + from_s * S, &stop));
            let mut messages = Vec::new();
            while !matches!(messages.last(), Some(ShardMessage::Drained)) {
                match mailbox.receive() {
                    Some(message) => messages.push(message),
                    None => std::thread::yield_now(),
                }
            }
            (rebuilding.join().expect("no panic"), messages)
        })
    }

    /// (window start in s, series numbers) of the partials; checks that every number was announced before.
    fn partials(messages: &[ShardMessage]) -> Vec<(i64, Vec<u32>)> {
        let mut announced = Vec::new();
        let mut partials = Vec::new();
        for message in messages {
            match message {
                ShardMessage::NewSeries { id, key } => {
                    assert!(series_key::parse(key).is_some_and(|parsed| parsed.name == "cpu"));
                    announced.push(*id);
                }
                ShardMessage::Partials(of) => {
                    let series: Vec<u32> = of.cells.iter().map(|(series, _)| *series).collect();
                    assert!(series.iter().all(|n| announced.contains(n)), "{series:?} of {announced:?}");
                    partials.push(((of.window_start_ns - START) / S, series));
                }
                _ => {}
            }
        }
        partials.sort();
        partials
    }

    #[test]
    fn every_record_comes_back_under_announced_numbers_however_full_the_mailbox_is() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let spans = written(dir.path(), &[(0, &[0, 1]), (1, &[1]), (60, &[1])]);
        let (rebuilt, messages) = run(spans, -3600);
        assert_eq!(rebuilt, Rebuilt { blocks: 3, points: 4, damaged_points: 0 });
        assert_eq!(partials(&messages), [(0, vec![0, 1]), (60, vec![1])]);
    }

    #[test]
    fn blocks_that_no_window_can_need_are_not_folded() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let spans = written(dir.path(), &[(0, &[0]), (100, &[0]), (200, &[1])]);
        let (rebuilt, messages) = run(spans, 100);
        assert_eq!((rebuilt.blocks, rebuilt.points), (2, 2));
        assert_eq!(partials(&messages), [(100, vec![0]), (200, vec![1])]);
    }

    #[test]
    fn a_damaged_block_costs_its_own_points_and_they_are_counted() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().expect("temporary directory");
        let spans = written(dir.path(), &[(0, &[0, 1]), (1, &[0, 1]), (2, &[0])]);
        let file = std::fs::OpenOptions::new().write(true).open(&spans[0].path).expect("there");
        // Blocks of one page each, behind the segment's first page: into the payload of the second.
        file.write_all_at(b"damage", 2 * 4096 + 200).expect("written");
        let (rebuilt, messages) = run(spans, -3600);
        assert_eq!(rebuilt, Rebuilt { blocks: 2, points: 3, damaged_points: 2 });
        assert_eq!(partials(&messages), [(0, vec![0, 1])]);
    }

    #[test]
    fn a_stop_ends_a_rebuild_that_nobody_listens_to() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let spans = written(dir.path(), &[(0, &[0, 1]), (60, &[0])]);
        let mailbox = Mailbox::new(1, Doorbell::new());
        let log = Log { log_id: 3, spans, mailbox: mailbox.clone() };
        rebuild(log, config(), START - 600 * S, START - 600 * S, &AtomicBool::new(true));
        assert!(
            !matches!(mailbox.receive(), Some(ShardMessage::Drained)),
            "what was not folded is not said to be done"
        );
    }
}
