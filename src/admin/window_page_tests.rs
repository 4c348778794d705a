//! Pages of windows out of a real log of several segments, each against all that the log says at that moment, computed apart
//! from what a page reads.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use metricstream_shards::log::{
    AGGREGATE_LOG_ID, BlockingLog, LogStart, LogWriter, Position, ReadSpan, RecordKind, WriterConfig, recover,
    segment_file_name,
};
use metricstream_shards::point::series_key;
use metricstream_shards::window::summary::{Aggregates, Detail};

use super::window_page::read;
use crate::backplane::executor;
use crate::reducer::WindowRecord;
use crate::reducer::encode::AggregatesEncoder;
use crate::reducer::query::{Cursor, Filter, WindowQuery};
use crate::reducer::record::Flags;
use crate::reducer::segment_log::for_each_result;
use crate::reducer::zones::Zones;

const SERIES: usize = 60;
const SEGMENT_BYTES: u64 = 256 << 10;

/// A log that gets a round every 10 s: each series' window, each sixth time its minute too, and revisions of some earlier ones.
struct Rounds {
    log: BlockingLog,
    done: i64,
}

impl Rounds {
    fn new(dir: &Path, start: LogStart, done: i64) -> Rounds {
        let config = WriterConfig {
            segment_bytes: SEGMENT_BYTES,
            block_bytes: 64 << 10,
            undurable_bytes_max: 256 << 10,
            durable_bytes_max: 0,
            ..WriterConfig::new(AGGREGATE_LOG_ID, 7, 1)
        };
        Rounds { log: BlockingLog::new(dir, LogWriter::new(config, start)), done }
    }

    fn append(&mut self, window_s: u32, start_ms: i64, revision: u32, every: usize) {
        let mut encoder = AggregatesEncoder::default();
        encoder.begin(None, window_s, start_ms, 0);
        for n in (0..SERIES).step_by(every) {
            let mut key = Vec::new();
            series_key::write(&mut key, b"c", b"cpu", &[(b"host", format!("{n:04}").as_bytes())]);
            let mut values = [n as f64, self.done as f64];
            let aggregates = Aggregates::of(&mut values, Detail::Quantiles).expect("two values");
            encoder.push(&key, revision, Flags::default(), 1, &aggregates, &[]);
        }
        let appended = self.log.append_opaque(RecordKind::Aggregates, self.done, encoder.entries(), encoder.bytes());
        appended.expect("room");
    }

    fn run(&mut self, rounds: i64) {
        for _ in 0..rounds {
            let start_ms = self.done * 10_000;
            self.append(10, start_ms, 0, 1);
            if self.done % 6 == 5 {
                self.append(60, start_ms - 50_000, 0, 1);
            }
            if self.done >= 3 {
                self.append(10, start_ms - 30_000, 1, 7);
            }
            self.done += 1;
            if self.done % 5 == 0 {
                self.log.flush(&()).expect("flushed");
            }
        }
        self.log.flush(&()).expect("flushed");
    }

    fn spans(&self) -> Vec<(ReadSpan, i64)> {
        let spans = self.log.writer().read_plan(Position::default());
        spans.into_iter().map(|span| (span, i64::MAX)).collect()
    }

    /// Retention takes the oldest segment; its file becomes the next one.
    fn drop_oldest(&mut self) {
        let oldest = self.spans().remove(0).0;
        self.log.writer_mut().forget_segments_below(oldest.segment_id + 1);
        self.log.recycle(oldest.path);
    }
}

/// The latest of every window in the order of pages, from each result in the log.
fn all(spans: &[(ReadSpan, i64)]) -> BTreeMap<Cursor, WindowRecord> {
    let mut latest: BTreeMap<Cursor, WindowRecord> = BTreeMap::new();
    for_each_result(spans.iter().map(|(span, _)| span.clone()).collect(), &mut |view| {
        let record = view.to_record();
        let place = Cursor::of(&record);
        if latest.get(&place).is_none_or(|old| old.revision <= record.revision) {
            latest.insert(place, record);
        }
    });
    latest
}

fn log_bytes(spans: &[(ReadSpan, i64)]) -> u64 {
    spans.iter().map(|(span, _)| span.to - span.from).sum()
}

/// Runs on the backplane's executor, in a directory on a disk.
fn on_executor<F: std::future::Future<Output = ()>>(test: impl FnOnce(std::path::PathBuf) -> F) {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory on a disk");
    let path = dir.path().to_path_buf();
    executor::run(None, |_| async move {
        executor::learn_disk(&path).await.expect("a disk");
        test(path).await;
    })
    .expect("the executor starts");
}

/// A page, checked against the whole as it is now.
async fn checked_page(
    spans: &[(ReadSpan, i64)],
    cursor: Option<Cursor>,
    limit: usize,
    zones: &RefCell<Zones>,
) -> (Vec<WindowRecord>, Option<Cursor>) {
    let filter = Filter { cursor: cursor.clone(), ..Filter::default() };
    let (page, _) = read(spans, WindowQuery::new(filter, limit), zones).await;
    let behind = all(spans).into_iter().filter(|(place, _)| cursor.as_ref().is_none_or(|cursor| place > cursor));
    let mut expected: Vec<WindowRecord> = behind.map(|(_, record)| record).take(limit + 1).collect();
    assert_eq!(page.next.is_some(), expected.len() > limit, "after {cursor:?}");
    expected.truncate(limit);
    assert!(page.windows == expected, "{} windows of {} after {cursor:?}", page.windows.len(), expected.len());
    (page.windows, page.next.map(|next| Cursor::parse(&next).expect("ours")))
}

#[test]
fn all_pages_together_are_the_whole_and_do_not_read_the_log_once_each() {
    on_executor(async |dir| {
        let mut rounds = Rounds::new(&dir, LogStart::empty(), 0);
        rounds.run(400);
        let spans = rounds.spans();
        assert!(spans.len() >= 5, "{} segments", spans.len());
        let whole: Vec<WindowRecord> = all(&spans).into_values().collect();
        assert!(whole.iter().any(|window| window.revision == 1) && whole.iter().any(|window| window.window_s == 60));
        for filter in [
            Filter::default(),
            Filter { window_s: Some(60), ..Filter::default() },
            Filter { since_ms: Some(3_000_000), ..Filter::default() },
        ] {
            let zones = RefCell::default();
            let (mut gathered, mut cursor, mut read_bytes) = (Vec::new(), None, Vec::new());
            loop {
                let filter = Filter { cursor, ..filter.clone() };
                let (page, bytes) = read(&spans, WindowQuery::new(filter, 500), &zones).await;
                gathered.extend(page.windows);
                read_bytes.push(bytes);
                let Some(next) = page.next else { break };
                cursor = Cursor::parse(&next);
            }
            let wanted = |window: &&WindowRecord| {
                filter.window_s.is_none_or(|window_s| window_s == window.window_s)
                    && filter.since_ms.is_none_or(|since_ms| window.start_ms >= since_ms)
            };
            assert!(gathered.iter().eq(whole.iter().filter(wanted)), "{filter:?}");
            let (pages, log) = (read_bytes.len() as u64, log_bytes(&spans));
            assert_eq!(read_bytes[0], log, "the first reads all: nothing is known");
            let later: u64 = read_bytes[1..].iter().sum();
            // A zone some times, for it holds several pages. Were it read anew it would be the log for each page.
            assert!(pages < 20 || later <= 5 * log, "{later} of {log} bytes, {pages} pages");
            assert!(pages < 5 || later <= (pages - 1) * log / 2, "{later} of {log} bytes, {pages} pages");
        }
    });
}

#[test]
fn pages_go_on_while_windows_come_are_revised_and_segments_go() {
    on_executor(async |dir| {
        let mut rounds = Rounds::new(&dir, LogStart::empty(), 0);
        rounds.run(300);
        let zones = RefCell::default();
        let begun = all(&rounds.spans());
        let mut gathered: Vec<WindowRecord> = Vec::new();
        let mut gone: Vec<WindowRecord> = Vec::new();
        let mut stale = None;
        let mut cursor = None;
        for page in 0.. {
            // A view is some moments old: here it may know a segment whose file has another name already.
            let spans = stale.take().unwrap_or_else(|| rounds.spans());
            let (windows, next) = checked_page(&spans, cursor, 1_300, &zones).await;
            gathered.extend(windows);
            cursor = next;
            let Some(cursor) = &cursor else { break };
            rounds.run(2);
            let before = all(&rounds.spans());
            match page {
                // One that was read already, and later three of which some were not.
                3 | 9 => (0..page / 3).for_each(|_| rounds.drop_oldest()),
                6 => {
                    stale = Some(rounds.spans());
                    rounds.drop_oldest();
                    // Long enough for the file to be written again.
                    rounds.run(90);
                    assert!(!dir.join(segment_file_name(stale.as_ref().expect("set")[0].0.segment_id)).exists());
                }
                // Killed and started again; what the old process knew is lost.
                11 => {
                    let recovered = recover(&dir, AGGREGATE_LOG_ID, 7).expect("recovers");
                    rounds = Rounds::new(&dir, recovered.start, rounds.done);
                    zones.take();
                }
                _ => {}
            }
            let kept = all(&rounds.spans());
            gone.extend(
                before.into_iter().filter(|(p, _)| p > cursor && !kept.contains_key(p)).map(|(_, window)| window),
            );
        }
        assert!(gathered.is_sorted_by(|a, b| Cursor::of(a) < Cursor::of(b)), "none twice");
        assert!(!gone.is_empty(), "no window went before it was read");
        let had: BTreeMap<Cursor, &WindowRecord> = gathered.iter().map(|window| (Cursor::of(window), window)).collect();
        for (place, window) in begun {
            let lost = gone.iter().any(|gone| Cursor::of(gone) == place);
            assert!(had.contains_key(&place) || lost, "{window:?} was skipped");
        }
        let last = all(&rounds.spans()).into_values().last().expect("windows");
        assert_eq!(gathered.last(), Some(&last), "what came meanwhile is there, too");
    });
}
