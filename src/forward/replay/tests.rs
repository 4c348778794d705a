//! Replays of small real logs to a sink that follows a script.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metricstream_shards::log::{
    AGGREGATE_LOG_ID, BlockingLog, Envelope, LogStart, LogWriter, Names, PAGE_BYTES, RecordKind, WriterConfig,
};
use metricstream_shards::point::{Batch, Kind, Protocol, SeriesId, SeriesRef};
use metricstream_shards::window::summary::{Aggregates, Detail};

use super::run::{Outcome, Parts, Replay, Target};
use super::selection::Selection;
use super::source::{Missing, Source};
use super::summary::{Progress, Totals};
use crate::forward::filter::Filter;
use crate::forward::share::list_segments;
use crate::forward::sink::{Report, Settled, Sink, SinkFailed, UnitId};
use crate::forward::unit::{Item, Unit, Value};
use crate::reducer::encode::AggregatesEncoder;
use crate::reducer::record::Flags;

const NODE: u128 = 7;
const SEGMENT_BYTES: u64 = 64 << 10;
const STAMP_NS: i64 = 1_700_000_000_000_000_000;

struct Keys;
impl Names for Keys {
    fn key(&self, id: u32) -> &[u8] {
        [&b"a\xffcpu\xffhost\xfex"[..], b"b\xffcpu", b"a\xffmem"][id as usize]
    }
}

struct TestLog {
    dir: tempfile::TempDir,
    log_id: u32,
    log: BlockingLog,
}

impl TestLog {
    fn new(log_id: u32) -> TestLog {
        TestLog::sized(log_id, SEGMENT_BYTES, 8 << 10)
    }

    fn sized(log_id: u32, segment_bytes: u64, block_bytes: usize) -> TestLog {
        let dir = tempfile::tempdir().expect("temporary directory");
        let config = WriterConfig { segment_bytes, block_bytes, ..WriterConfig::new(log_id, NODE, 9) };
        let log = BlockingLog::new(dir.path(), LogWriter::new(config, LogStart::empty()));
        TestLog { dir, log_id, log }
    }

    /// One block of points (series, time); values are the points' numbers. Received `received_s` after the first.
    fn block(&mut self, received_s: i64, points: &[(u32, i64)]) {
        let envelope = Envelope {
            client: "c",
            protocol: Protocol::Json,
            route: 0,
            request_id: "",
            traceparent: "",
            idempotency_key: &[],
            same_timestamp_all: false,
        };
        let mut batch = Batch::default();
        let first = self.log.writer().next_point();
        for (n, &(series, time_ns)) in points.iter().enumerate() {
            batch.push(SeriesRef::Known(SeriesId(series)), time_ns, Kind::UInt, first + n as u64);
        }
        let stamp_ns = STAMP_NS + received_s * 1_000_000_000;
        self.log.append_batch(&envelope, stamp_ns, &batch, &Keys).expect("taken");
        self.log.flush(&Keys).expect("durable");
    }

    /// One result of a window: its start and revision.
    fn window(&mut self, received_s: i64, start_s: i64, revision: u32) {
        let mut encoder = AggregatesEncoder::default();
        encoder.begin(None, 10, start_s * 1000, 0);
        let aggregates = Aggregates::of(&mut [f64::from(revision)], Detail::Quantiles).expect("a value");
        encoder.push(b"a\xffcpu", revision, Flags::default(), 1, &aggregates, &[]);
        let stamp_ns = STAMP_NS + received_s * 1_000_000_000;
        self.log.append_opaque(RecordKind::Aggregates, stamp_ns, 1, encoder.bytes()).expect("taken");
        self.log.flush(&Keys).expect("durable");
    }

    fn source(&self) -> Source {
        Source::open(self.dir.path(), self.log_id, NODE).expect("readable").expect("in use")
    }

    /// As retention does it: the oldest segment becomes the next spare one.
    fn recycle_oldest(&self) {
        recycle_oldest(self.dir.path());
    }
}

fn recycle_oldest(dir: &Path) {
    use std::os::unix::fs::FileExt;
    let segments = list_segments(dir).expect("listed");
    let (oldest, newest) = (&segments[0], &segments[segments.len() - 1]);
    let next = dir.join(metricstream_shards::log::segment_file_name(newest.0 + 1));
    std::fs::rename(&oldest.1, &next).expect("renamed");
    let file = std::fs::OpenOptions::new().write(true).open(&next).expect("opened");
    file.write_all_at(&[0; PAGE_BYTES], 0).expect("written");
}

#[derive(Default)]
struct Script {
    /// Log and number of each point, as they were settled; a window's revision stands for its number
    settled: Vec<(u32, u64)>,
    /// `send` fails at these calls
    send_fails: Vec<u32>,
    sends: u32,
    resets: u32,
    /// Called before each `send`
    before: Option<Box<dyn FnMut(u32) + Send>>,
    held: bool,
    /// Nothing is ever settled
    is_away: bool,
}

struct Scripted {
    script: Arc<Mutex<Script>>,
    in_flight: Vec<(UnitId, Vec<(u32, u64)>)>,
}

impl Sink for Scripted {
    fn has_room(&self) -> bool {
        self.in_flight.len() < 3
    }
    fn send(&mut self, unit: &mut Unit<'_>, _: Instant) -> Result<(), SinkFailed> {
        let mut script = self.script.lock().expect("no panic");
        script.sends += 1;
        let sends = script.sends;
        if let Some(before) = &mut script.before {
            before(sends);
        }
        let mut shown = Vec::new();
        let log_id = unit.log_id;
        unit.for_each(|item| {
            shown.push(match item {
                Item::Point(point) => {
                    assert_eq!(point.value, Value::UInt(point.number));
                    (log_id, point.number)
                }
                Item::Window(window) => (log_id, u64::from(window.view.revision)),
            });
            Ok::<(), ()>(())
        })
        .expect("nothing fails");
        if script.held {
            return Err(SinkFailed { message: "no such topic".into(), held: true, retry_after: None });
        }
        if script.send_fails.contains(&sends) {
            return Err(SinkFailed::retry("the script says so"));
        }
        if !shown.is_empty() {
            self.in_flight.push((unit.id, shown));
        }
        Ok(())
    }
    fn turn(&mut self, _: Instant, report: &mut Report) -> Result<(), SinkFailed> {
        let mut script = self.script.lock().expect("no panic");
        if !script.is_away {
            // Units are settled in any order.
            for (unit, shown) in self.in_flight.drain(..).rev() {
                let settled = Settled { delivered: shown.len() as u64, ..Settled::default() };
                report.settled.push((unit, settled));
                script.settled.extend(shown);
            }
        }
        Ok(())
    }
    fn next_turn(&self, _: Instant) -> Option<Instant> {
        None
    }
    fn finish(&mut self, now: Instant, report: &mut Report) -> Result<(), SinkFailed> {
        self.turn(now, report)
    }
    fn reset(&mut self) {
        self.in_flight.clear();
        self.script.lock().expect("no panic").resets += 1;
    }
}

/// A replay with everything by default.
struct Setup {
    sources: Vec<Source>,
    from_ns: i64,
    to_ns: i64,
    received_ns: Option<std::ops::Range<i64>>,
    clients: Vec<String>,
    names: Vec<String>,
    rate: Option<u64>,
    dry_run: bool,
    patience: Duration,
    stop: Arc<AtomicBool>,
    script: Arc<Mutex<Script>>,
}

impl Setup {
    fn of(logs: &[&TestLog]) -> Setup {
        Setup {
            sources: logs.iter().map(|log| log.source()).collect(),
            from_ns: 0,
            to_ns: i64::MAX,
            received_ns: None,
            clients: Vec::new(),
            names: Vec::new(),
            rate: None,
            dry_run: false,
            patience: Duration::from_secs(300),
            stop: Arc::default(),
            script: Arc::default(),
        }
    }

    fn before_send(&self, call: impl FnMut(u32) + Send + 'static) {
        self.script.lock().expect("no panic").before = Some(Box::new(call));
    }

    fn run(self) -> Ran {
        let sink = Scripted { script: self.script.clone(), in_flight: Vec::new() };
        let target =
            Target { sink: Box::new(sink), calls: None, settles_at_end: false, stop_within: Duration::from_secs(5) };
        let mut replay = Replay::new(Parts {
            node_id: NODE,
            sources: self.sources,
            selection: Selection::new(self.from_ns..self.to_ns),
            received_ns: self.received_ns,
            filter: Filter::new(&[], []).narrowed(&self.clients, &self.names),
            target: (!self.dry_run).then_some(target),
            rate: self.rate,
            give_up_after: self.patience,
            stop: self.stop,
        });
        let outcome = replay.run(&mut Progress::new()).expect("the logs can be read");
        let totals = *replay.totals();
        let parts = totals.outside + totals.filtered + totals.superseded + totals.chosen() + totals.unreadable;
        assert_eq!(parts, totals.read, "{totals:?}");
        let script = std::mem::take(&mut *self.script.lock().expect("no panic"));
        Ran { outcome, totals, read_bytes: replay.read_bytes(), places: replay.places(), script }
    }
}

struct Ran {
    outcome: Outcome,
    totals: Totals,
    read_bytes: u64,
    places: Vec<(u32, u64)>,
    script: Script,
}

impl Ran {
    fn numbers(&self, log_id: u32) -> Vec<u64> {
        self.script.settled.iter().filter(|(log, _)| *log == log_id).map(|(_, number)| *number).collect()
    }
    fn sorted(&self, log_id: u32) -> Vec<u64> {
        let mut numbers = self.numbers(log_id);
        numbers.sort_unstable();
        numbers
    }
}

/// Blocks of two points each, over several segments; the time of a point is its number.
fn log_of(log_id: u32, blocks: i64) -> TestLog {
    let mut log = TestLog::new(log_id);
    for n in 0..blocks {
        log.block(n, &[(0, 2 * n), (1, 2 * n + 1)]);
    }
    log
}

#[test]
fn the_points_of_the_range_and_the_filters_go_and_all_others_are_counted() {
    let mut log = TestLog::new(0);
    for n in 0..30 {
        // In no order of their times.
        log.block(n, &[(0, (7 * n) % 30), (1, (7 * n) % 30), (2, (7 * n) % 30)]);
    }
    for (clients, names, from_ns, to_ns, sent, outside, filtered) in [
        (&[][..], &[][..], 0, i64::MAX, 90, 0, 0),
        (&[], &[], 10, 20, 30, 60, 0),
        (&["a"], &[], 10, 20, 20, 40, 30),
        (&["a"], &["m*"], 10, 20, 10, 20, 60),
        (&[], &["cpu", "mem"], 29, 30, 3, 87, 0),
        (&["nobody"], &[], 0, i64::MAX, 0, 0, 90),
    ] {
        for (dry_run, rate) in [(false, None), (true, None), (false, Some(1_000_000))] {
            let owned = |of: &[&str]| of.iter().map(|word| (*word).to_owned()).collect();
            let ran = Setup {
                clients: owned(clients),
                names: owned(names),
                from_ns,
                to_ns,
                dry_run,
                rate,
                ..Setup::of(&[&log])
            }
            .run();
            let t = ran.totals;
            let found = (t.sent, t.outside, t.filtered, t.read);
            assert_eq!(found, (sent, outside, filtered, 90), "{clients:?} {names:?} {from_ns}..{to_ns}");
            assert_eq!(ran.numbers(0).len() as u64, if dry_run { 0 } else { sent });
            assert_eq!((ran.outcome, t.missing), (Outcome::Done, Missing::default()));
        }
    }
}

const BLOCKS: u64 = 120;
const BLOCK_POINTS: u64 = 5000;
const BLOCK_EVERY_S: i64 = 60;

/// Blocks of some pages each in several segments, received in two hours. The time of a point is its number: far from that of its receipt.
fn log_of_two_hours() -> TestLog {
    let mut log = TestLog::sized(0, 512 << 10, 128 << 10);
    for n in 0..BLOCKS {
        let points: Vec<_> =
            (0..BLOCK_POINTS).map(|point| (point as u32 % 3, (BLOCK_POINTS * n + point) as i64)).collect();
        log.block(BLOCK_EVERY_S * n as i64, &points);
    }
    log
}

#[test]
fn a_span_of_receipt_reads_less_and_sends_every_point_that_was_received_in_it() {
    let log = log_of_two_hours();
    let all = Setup::of(&[&log]).run();
    let points = BLOCKS * BLOCK_POINTS;
    assert_eq!((all.totals.sent, all.totals.passed_over), (points, 0));
    for (from_s, to_s) in [(0, 1), (3000, 3600), (3601, 3602), (7000, 9000), (-500, 200), (0, 9000), (9000, 9500)] {
        let received_ns = Some(STAMP_NS + from_s * 1_000_000_000..STAMP_NS + to_s * 1_000_000_000);
        let ran = Setup { received_ns: received_ns.clone(), ..Setup::of(&[&log]) }.run();
        let t = ran.totals;
        assert_eq!((t.read + t.passed_over, t.missing), (points, Missing::default()), "{from_s}..{to_s}");
        let sent = ran.sorted(0);
        let wanted = (0..BLOCKS).filter(|n| (from_s..to_s).contains(&(BLOCK_EVERY_S * *n as i64)));
        for number in wanted.flat_map(|n| BLOCK_POINTS * n..BLOCK_POINTS * (n + 1)) {
            assert!(sent.binary_search(&number).is_ok(), "{number} of {from_s}..{to_s}");
        }
        if to_s - from_s < 1000 {
            println!("{from_s}..{to_s} s: {} of {} bytes", ran.read_bytes, all.read_bytes);
            assert!(3 * ran.read_bytes < 2 * all.read_bytes, "{} of {} bytes", ran.read_bytes, all.read_bytes);
            let within_a_minute = ((to_s - from_s + 120) / BLOCK_EVERY_S + 2) as u64;
            assert!(sent.len() as u64 <= within_a_minute * BLOCK_POINTS, "{} points", sent.len());
        }
        // The range chooses among them as ever.
        let range = 50..points - 50;
        let (from_ns, to_ns) = (range.start as i64, range.end as i64);
        let narrowed = Setup { received_ns, from_ns, to_ns, ..Setup::of(&[&log]) }.run();
        assert_eq!(narrowed.sorted(0), sent.into_iter().filter(|number| range.contains(number)).collect::<Vec<_>>());
        assert_eq!(narrowed.read_bytes, ran.read_bytes);
    }
}

#[test]
fn what_is_passed_over_hides_no_damage_that_would_cost_a_point_and_no_later_revision() {
    use std::os::unix::fs::FileExt;
    let log = log_of_two_hours();
    let segments = list_segments(log.dir.path()).expect("listed");
    assert!(segments.len() > 3, "{} segments", segments.len());
    let file = std::fs::OpenOptions::new().write(true).open(&segments[0].1).expect("opened");
    // A header: what follows cannot be told from headers, and is read.
    file.write_all_at(b"damage", PAGE_BYTES as u64 + 40).expect("written");
    file.sync_all().expect("flushed");
    let received_ns = Some(STAMP_NS..STAMP_NS + 1_000_000_000);
    let t = Setup { received_ns: received_ns.clone(), ..Setup::of(&[&log]) }.run().totals;
    assert!(t.missing.damaged > 0 && t.passed_over > 0 && t.sent > 100, "{t:?}");
    assert_eq!(t.read + t.passed_over + t.missing.damaged, BLOCKS * BLOCK_POINTS);

    let mut log = TestLog::new(AGGREGATE_LOG_ID);
    log.window(0, 0, 0);
    log.window(0, 10, 0);
    log.window(9000, 0, 1);
    let ran = Setup { received_ns, ..Setup::of(&[&log]) }.run();
    let t = ran.totals;
    assert_eq!((t.sent, t.superseded, t.passed_over), (1, 1, 1), "the older revision must not replace the later one");
}

#[test]
fn logs_go_out_in_the_order_they_were_received() {
    let (mut first, mut second) = (TestLog::new(0), TestLog::new(1));
    for n in 0..40 {
        let log = if n % 2 == 0 { &mut first } else { &mut second };
        log.block(10 * n, &[(0, 5)]);
    }
    let setup = Setup::of(&[&second, &first]);
    let ran = Setup { rate: Some(1_000_000), ..setup }.run();
    let order: Vec<u64> = ran.script.settled.chunks(1).map(|of| 2 * of[0].1 + u64::from(of[0].0)).collect();
    // Units that were in flight together are settled in any order; there are three at most.
    for (n, place) in order.iter().enumerate() {
        assert!((n as u64).abs_diff(*place) < 3, "{order:?}");
    }
    assert_eq!((ran.totals.sent, order.len()), (40, 40));
}

#[test]
fn after_failures_everything_is_settled_and_counted_once() {
    let log = log_of(3, 200);
    let setup = Setup::of(&[&log]);
    setup.script.lock().expect("no panic").send_fails = vec![1, 4, 5, 40];
    let ran = setup.run();
    assert_eq!(ran.sorted(3), (0..400).collect::<Vec<_>>(), "each once");
    assert_eq!((ran.totals.sent, ran.totals.read, ran.script.resets), (400, 400, 4));
    assert_eq!(ran.outcome, Outcome::Done);
}

#[test]
fn what_only_an_operator_can_mend_ends_it_at_once_and_a_sink_that_is_away_in_its_time() {
    let log = log_of(0, 5);
    let setup = Setup::of(&[&log]);
    setup.script.lock().expect("no panic").held = true;
    let ran = setup.run();
    assert_eq!(ran.outcome, Outcome::GaveUp("no such topic".into()));
    assert_eq!((ran.totals.read, ran.places), (0, vec![(0, 0)]));

    let setup = Setup { patience: Duration::from_millis(50), ..Setup::of(&[&log]) };
    setup.script.lock().expect("no panic").is_away = true;
    let ran = setup.run();
    assert!(matches!(&ran.outcome, Outcome::GaveUp(why) if why.contains("--give-up-after")), "{:?}", ran.outcome);
    assert_eq!((ran.totals.read, ran.places), (0, vec![(0, 0)]));
}

#[test]
fn what_retention_removes_meanwhile_is_counted_and_the_rest_goes_on() {
    let log = log_of(0, 200);
    let segments = list_segments(log.dir.path()).expect("listed").len();
    assert!(segments > 8, "{segments} segments");
    let setup = Setup::of(&[&log]);
    let dir = log.dir.path().to_owned();
    setup.before_send(move |sends| {
        if sends == 1 {
            (0..4).for_each(|_| recycle_oldest(&dir));
        }
    });
    let ran = setup.run();
    let Missing { removed, damaged } = ran.totals.missing;
    assert!(removed > 0 && damaged == 0, "{:?}", ran.totals);
    assert_eq!(ran.totals.sent + removed, 400, "every number is accounted for");
    assert_eq!(ran.totals.sent as usize, ran.sorted(0).len());
    assert_eq!(ran.sorted(0).last(), Some(&399));
    assert_eq!(ran.outcome, Outcome::Done);
}

#[test]
fn a_segment_that_is_taken_away_while_it_is_opened_costs_only_itself() {
    let log = log_of(0, 200);
    let segments = list_segments(log.dir.path()).expect("listed");
    let setup = Setup::of(&[&log]);
    // It is listed, and not there any more.
    let (_, third) = &segments[2];
    std::fs::remove_file(third).expect("removed");
    std::os::unix::fs::symlink("nowhere", third).expect("linked");
    let ran = setup.run();
    let Missing { removed, damaged } = ran.totals.missing;
    assert!(removed > 0 && removed < 400 / 4 && damaged == 0, "{:?}", ran.totals);
    assert_eq!((ran.totals.sent + removed, ran.sorted(0).last()), (400, Some(&399)));
}

#[test]
fn a_replay_whose_first_segments_are_gone_before_it_begins_counts_nothing_as_missing() {
    let log = log_of(0, 100);
    log.recycle_oldest();
    let ran = Setup::of(&[&log]).run();
    assert_eq!((ran.totals.missing, ran.totals.sent), (Missing::default(), ran.totals.read));
    assert!(ran.totals.sent < 200 && ran.sorted(0).last() == Some(&199));
}

#[test]
fn damage_is_counted_and_passed_over() {
    use std::os::unix::fs::FileExt;
    let log = log_of(0, 40);
    let segments = list_segments(log.dir.path()).expect("listed");
    let file = std::fs::OpenOptions::new().write(true).open(&segments[1].1).expect("opened");
    file.write_all_at(b"damage", 2 * PAGE_BYTES as u64 + 200).expect("written");
    file.sync_all().expect("flushed");
    let ran = Setup::of(&[&log]).run();
    let lost = ran.totals.missing.damaged + ran.totals.unreadable;
    assert!(lost > 0 && ran.totals.missing.removed == 0, "{:?}", ran.totals);
    assert_eq!(ran.totals.sent + lost, 80);
}

#[test]
fn a_stop_tells_the_place_from_which_the_rest_is_sent() {
    let log = log_of(2, 300);
    // Half of the points are filtered; what is counted is what was reached.
    let setup = Setup { rate: Some(10), names: vec!["cpu".into()], clients: vec!["a".into()], ..Setup::of(&[&log]) };
    let stop = setup.stop.clone();
    setup.before_send(move |sends| {
        if sends == 5 {
            stop.store(true, Ordering::Release);
        }
    });
    let first = setup.run();
    assert_eq!(first.outcome, Outcome::Stopped);
    assert!(first.totals.sent > 0 && first.totals.sent < 300, "{:?}", first.totals);
    let [(2, place)] = first.places[..] else { panic!("{:?}", first.places) };
    let mut rest = Setup { clients: vec!["a".into()], ..Setup::of(&[&log]) };
    rest.sources[0].seek(place, NODE).expect("found");
    let rest = rest.run();
    let mut both = [first.numbers(2), rest.numbers(2)].concat();
    both.sort_unstable();
    let all: Vec<u64> = (0..300).map(|n| 2 * n).collect();
    assert_eq!(both, all, "each once, as all that was under way was settled");
    assert_eq!(first.totals.read + rest.totals.read, 600);
    assert_eq!(first.totals.filtered + rest.totals.filtered, 300);
}

#[test]
fn a_rate_cuts_units_and_loses_nothing() {
    let mut log = TestLog::new(0);
    let points: Vec<(u32, i64)> = (0..500).map(|n| (0, n)).collect();
    log.block(0, &points);
    let setup = Setup { rate: Some(2_000), from_ns: 100, to_ns: 400, ..Setup::of(&[&log]) };
    let ran = setup.run();
    assert_eq!(ran.sorted(0), (100..400).collect::<Vec<_>>());
    assert_eq!(
        (ran.totals.read, ran.totals.outside, ran.script.sends),
        (500, 200, 2),
        "200 at a time, within one block"
    );
}

#[test]
fn of_windows_only_the_latest_revisions_go_also_those_that_come_meanwhile() {
    let mut log = TestLog::new(AGGREGATE_LOG_ID);
    for (start_s, revision) in [(0, 0), (0, 1), (10, 0), (0, 2), (20, 0), (100, 0)] {
        log.window(start_s, start_s, revision);
    }
    let setup = Setup { to_ns: 50_000_000_000, ..Setup::of(&[&log]) };
    let ran = setup.run();
    assert_eq!(ran.sorted(AGGREGATE_LOG_ID), [0, 0, 2]);
    let t = ran.totals;
    assert_eq!((t.read, t.superseded, t.outside, t.sent), (6, 2, 1, 3));

    // A newer revision comes, and its sink gets it, while the older one is on its way.
    let setup = Setup { to_ns: 50_000_000_000, ..Setup::of(&[&log]) };
    let log = Arc::new(Mutex::new(log));
    let writer = log.clone();
    setup.before_send(move |sends| {
        if sends == 1 {
            let mut log = writer.lock().expect("no panic");
            log.window(200, 0, 3);
            log.window(200, 100, 1);
        }
    });
    let ran = setup.run();
    assert_eq!(ran.numbers(AGGREGATE_LOG_ID).last(), Some(&3), "the newest is the last that the sink hears");
    assert_eq!((ran.totals.sent, ran.totals.outside), (4, 2));
}

#[test]
fn a_newer_value_that_comes_meanwhile_is_the_last_to_go() {
    let log = log_of(0, 10);
    let setup = Setup::of(&[&log]);
    let log = Arc::new(Mutex::new(log));
    let writer = log.clone();
    setup.before_send(move |sends| {
        if sends == 1 {
            writer.lock().expect("no panic").block(100, &[(0, 4)]);
        }
    });
    let ran = setup.run();
    assert_eq!((ran.totals.sent, ran.numbers(0).last()), (21, Some(&20)));
}

#[test]
fn a_torn_end_is_not_sent() {
    use std::os::unix::fs::FileExt;
    let log = log_of(0, 3);
    let whole = log.source().end;
    let (_, path) = list_segments(log.dir.path()).expect("listed").pop().expect("there");
    // Half of a block, as its writer may have written it by now.
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("opened");
    let mut page = vec![0; PAGE_BYTES];
    file.read_exact_at(&mut page, whole.at.offset - PAGE_BYTES as u64).expect("read");
    page[100..].fill(0);
    file.write_all_at(&page, whole.at.offset).expect("written");
    assert_eq!(log.source().end, whole);
    assert_eq!(Setup::of(&[&log]).run().totals.sent, 6);
}
