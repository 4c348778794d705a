//! The reader over real segment files, with marks that the test moves.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use metricstream_shards::log::{
    BlockingLog, DurableMark, Envelope, LogStart, LogWriter, Mark, Names, PAGE_BYTES, Position, WriterConfig, recover,
};
use metricstream_shards::point::{Batch, Kind, Protocol, SeriesId, SeriesRef};

use super::reader::{Answer, Ask, ReaderPort, SegmentsReader};
use super::share::{LogShare, list_segments};
use crate::backplane::executor;

const SEGMENT_BYTES: u64 = 64 << 10;
const LOG: u32 = 3;

pub(super) struct Keys;
impl Names for Keys {
    fn key(&self, id: u32) -> &[u8] {
        [&b"c\xffcpu\xffhost\xfea"[..], b"c\xffcpu\xffhost\xfeb", b"c\xffmem"][id as usize]
    }
}

/// A log of 64 KiB segments, and its mark as a server would publish it.
pub(super) struct TestLog {
    pub dir: tempfile::TempDir,
    pub log: BlockingLog,
    pub share: Arc<LogShare>,
    /// Of every block flushed: where the log ended behind it
    pub marks: Vec<Mark>,
}

impl TestLog {
    pub fn new(sinks: &[&str]) -> TestLog {
        TestLog::over(tempfile::tempdir().expect("temporary directory"), LogStart::empty(), sinks, false)
    }

    pub fn over(dir: tempfile::TempDir, start: LogStart, sinks: &[&str], is_orphan: bool) -> TestLog {
        let mark = Arc::new(DurableMark::new(start.mark()));
        let config =
            WriterConfig { segment_bytes: SEGMENT_BYTES, block_bytes: 8 << 10, ..WriterConfig::new(LOG, 7, 9) };
        let log = BlockingLog::new(dir.path(), LogWriter::new(config, start).publish_to(mark.clone()));
        let sinks: Vec<Arc<str>> = sinks.iter().map(|name| (*name).into()).collect();
        let share = Arc::new(LogShare::new(LOG, dir.path(), SEGMENT_BYTES, mark, is_orphan, &sinks));
        TestLog { dir, log, share, marks: Vec::new() }
    }

    /// One block with a point for each of these series; the value is the point's number.
    pub fn block(&mut self, series: &[u32]) {
        let envelope = Envelope::of("c", Protocol::Json);
        let mut batch = Batch::default();
        let first = self.log.writer().next_point();
        for (n, &id) in series.iter().enumerate() {
            batch.push(SeriesRef::Known(SeriesId(id)), 1_000_000, Kind::UInt, first + n as u64);
        }
        let stamp_ns = 1_700_000_000_000_000_000 + first as i64;
        self.log.append_batch(&envelope, stamp_ns, &batch, &Keys).expect("taken");
        self.log.flush(&Keys).expect("durable");
        self.marks.push(self.share.mark.get());
    }

    pub fn damage(&self, position: Position) {
        use std::os::unix::fs::FileExt;
        let segments = list_segments(self.dir.path()).expect("listed");
        let (_, path) = segments.iter().find(|(id, _)| *id == position.segment_id).expect("there");
        let file = std::fs::OpenOptions::new().write(true).open(path).expect("opened");
        file.write_all_at(b"damage", position.offset + 200).expect("written");
        file.sync_all().expect("flushed");
    }
}

/// What reading from `from` to the mark comes to: (number of the point, its key), and how often it was asked.
async fn read_all(reader: &mut SegmentsReader, share: &Arc<LogShare>, mut from: Position) -> Vec<(u64, Vec<u8>)> {
    let (reply, _answers) = sync_channel(1);
    let mut found = Vec::new();
    let mut next = 0;
    for _ in 0..10_000 {
        let ask = Ask { log: share.clone(), from, bytes_max: 16 << 10, ticket: 1, reply: reply.clone() };
        match reader.answer(&ask).await {
            Answer::End => return found,
            Answer::Skip(to) => {
                assert!(to > from, "{from:?} -> {to:?}");
                from = to;
            }
            Answer::Dropped { to, .. } => from = to,
            Answer::Failed(message) => panic!("{message}"),
            Answer::Piece { piece, from: offset } => {
                for block in piece.blocks(offset) {
                    if block.header.end_point() <= next {
                        continue;
                    }
                    next = block.header.end_point();
                    for record in block.records() {
                        let mut decoder = metricstream_shards::log::BatchDecoder::default();
                        let Ok((_, batch)) = decoder.decode(record.bytes) else { continue };
                        for n in 0..batch.len() {
                            let key = piece.names.get(batch.series[n]).expect("a name");
                            found.push((batch.bits[n], key.to_vec()));
                        }
                    }
                }
                from = piece.end;
            }
        }
    }
    panic!("no end");
}

fn with_reader<T>(test: impl AsyncFnOnce(&mut SegmentsReader, &Arc<ReaderPort>) -> T) -> T {
    let port = ReaderPort::new(1);
    executor::run(None, |_| async move {
        let dir = tempfile::tempdir().expect("temporary directory");
        executor::learn_disk(dir.path()).await.expect("a disk");
        let mut reader = SegmentsReader::new(port.clone());
        let result = test(&mut reader, &port).await;
        reader.close().await;
        result
    })
    .expect("the executor starts")
}

fn numbers(found: &[(u64, Vec<u8>)]) -> Vec<u64> {
    found.iter().map(|(number, _)| *number).collect()
}

#[test]
fn every_point_below_the_mark_comes_in_order_and_none_at_or_behind_it() {
    let mut log = TestLog::new(&[]);
    for n in 0..60 {
        log.block(&[n % 3, (n + 1) % 3]);
    }
    assert!(list_segments(log.dir.path()).expect("listed").len() > 3, "several segments");
    with_reader(async |reader, _| {
        for upto in [0, 1, 14, 15, 16, 31, 59] {
            let mark = log.marks[upto];
            let marked = Arc::new(DurableMark::new(mark));
            let share = Arc::new(LogShare::new(LOG, log.dir.path(), SEGMENT_BYTES, marked, false, &[]));
            let found = read_all(reader, &share, Position::default()).await;
            assert_eq!(numbers(&found), (0..mark.next_point).collect::<Vec<_>>(), "mark {mark:?}");
            for (number, key) in &found {
                let (block, second) = (number / 2, number % 2);
                assert_eq!(key, Keys.key(((block + second) % 3) as u32), "point {number}");
            }
        }
    });
}

#[test]
fn names_are_found_wherever_in_a_segment_reading_begins() {
    let mut log = TestLog::new(&[]);
    for _ in 0..40 {
        log.block(&[2, 0]);
    }
    for from in [3, 8, 20, 38] {
        // A reader that has read nothing before.
        let found = with_reader(async |reader, _| read_all(reader, &log.share, log.marks[from].end).await);
        assert_eq!(numbers(&found), (2 * (from as u64 + 1)..80).collect::<Vec<_>>());
        assert!(found.iter().all(|(number, key)| key == Keys.key(if number % 2 == 0 { 2 } else { 0 })));
    }
}

#[test]
fn sinks_near_each_other_share_a_read() {
    let mut log = TestLog::new(&[]);
    for _ in 0..12 {
        log.block(&[0]);
    }
    with_reader(async |reader, port| {
        let reads = || port.counters.reads.load(std::sync::atomic::Ordering::Relaxed);
        let first = read_all(reader, &log.share, Position::default()).await;
        let before = reads();
        assert_eq!(read_all(reader, &log.share, Position::default()).await, first);
        assert_eq!(numbers(&read_all(reader, &log.share, log.marks[4].end).await), (5..12).collect::<Vec<_>>());
        assert_eq!(reads(), before, "all of it was there");
        assert!(port.counters.cached_bytes.load(std::sync::atomic::Ordering::Relaxed) > 0);
    });
}

#[test]
fn damage_costs_its_own_points_only_wherever_it_is() {
    let mut log = TestLog::new(&[]);
    for n in 0..60 {
        log.block(&[n % 3]);
    }
    // In the middle of a segment, the first of one with its names, and the very last.
    let first_of_a_segment =
        (1..60).find(|&n| log.marks[n].end.segment_id > log.marks[n - 1].end.segment_id).expect("one");
    let begins = |n: usize| Position {
        offset: log.marks[n].end.offset - PAGE_BYTES as u64,
        segment_id: log.marks[n].end.segment_id,
    };
    for n in [5, first_of_a_segment, 59] {
        log.damage(begins(n));
    }
    with_reader(async |reader, port| {
        let found = read_all(reader, &log.share, Position::default()).await;
        let lost = [5, first_of_a_segment as u64, 59];
        assert_eq!(numbers(&found), (0..60).filter(|n| !lost.contains(n)).collect::<Vec<_>>());
        assert!(found.iter().all(|(number, key)| key == Keys.key((number % 3) as u32)));
        assert_eq!(port.counters.damaged.load(std::sync::atomic::Ordering::Relaxed), 3);
    });
}

#[test]
fn a_segment_that_was_dropped_and_used_again_is_left_for_the_oldest_there_is() {
    let mut log = TestLog::new(&["slow"]);
    for _ in 0..30 {
        log.block(&[0]);
    }
    let segments = list_segments(log.dir.path()).expect("listed");
    let (oldest, path) = segments[0].clone();
    with_reader(async |reader, _| {
        let middle = log.marks[3].end;
        assert_eq!(numbers(&read_all(reader, &log.share, middle).await).len(), 26);
        // The keeper takes it and gives the file to a segment far ahead, while the reader has it open.
        log.share.drop_below(oldest + 1);
        std::fs::rename(&path, path.with_file_name("0000000000000099.seg")).expect("renamed");
        let (reply, _answers) = sync_channel(1);
        let ask = Ask { log: log.share.clone(), from: middle, bytes_max: 1 << 20, ticket: 1, reply };
        let Answer::Dropped { to, first_point } = reader.answer(&ask).await else { panic!("not said to be dropped") };
        assert_eq!((to.segment_id, first_point), (segments[1].0, Some(15)));
        let left = read_all(reader, &log.share, to).await;
        let first = (0..30).find(|&n| log.marks[n].end.segment_id == to.segment_id).expect("one") as u64;
        assert_eq!(numbers(&left), (first..30).collect::<Vec<_>>());
    });
}

/// A restart begins a new segment; what stands in the old one behind the recovered end counts for nothing.
#[test]
fn reading_goes_on_over_a_restart_and_passes_over_segments_that_hold_nothing() {
    let mut log = TestLog::new(&[]);
    for _ in 0..5 {
        log.block(&[0]);
    }
    let end = log.share.mark.get().end;
    let TestLog { dir, log: writer, .. } = log;
    drop(writer);
    // Prepared and never used.
    std::fs::write(dir.path().join("0000000000000007.seg"), vec![0; SEGMENT_BYTES as usize]).expect("written");
    let recovered = recover(dir.path(), LOG, 7).expect("recovers");
    assert_eq!((recovered.start.mark().end, recovered.start.mark().next_point), (end, 5));
    let mut log = TestLog::over(dir, recovered.start, &[], false);
    with_reader(async |reader, _| {
        assert!(matches!(read_all(reader, &log.share, end).await.as_slice(), []));
        for _ in 0..5 {
            log.block(&[1]);
        }
        assert!(log.share.mark.get().end.segment_id > 7);
        assert_eq!(numbers(&read_all(reader, &log.share, end).await), (5..10).collect::<Vec<_>>());
        assert_eq!(numbers(&read_all(reader, &log.share, Position::default()).await), (0..10).collect::<Vec<_>>());
    });
}
