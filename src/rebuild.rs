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
                        send(&log.mailbox, ShardMessage::NewSeries { id: number, key: key.into() }, stop);
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
            send(&log.mailbox, message, stop);
        }
    }
    while let Some(message) = fold.take_ready(i64::MAX, CELLS_A_MESSAGE) {
        send(&log.mailbox, message, stop);
    }
    send(&log.mailbox, ShardMessage::Drained, stop);
    if unreadable > 0 {
        tracing::error!(records = unreadable, "records in sound blocks could not be read or named");
    }
    rebuilt
}

/// Waits for room; the reducer empties its mailboxes all the time.
fn send(mailbox: &Mailbox<ShardMessage>, mut message: ShardMessage, stop: &AtomicBool) {
    while let Err(back) = mailbox.send(message) {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        message = back;
        std::thread::sleep(Duration::from_micros(200));
    }
}
