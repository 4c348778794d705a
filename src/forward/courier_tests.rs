//! The courier between a real log, the real reader and a sink that follows a script.

use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::books::{SinkBooks, State};
use super::courier::{Courier, Parts, Place, Start};
use super::cursor::{self, Cursor};
use super::filter::Filter;
use super::reader::{self, ReaderPort};
use super::reader_tests::TestLog;
use super::sink::{Report, Settled, Sink, SinkFailed, UnitId};
use super::unit::{Item, Unit, Value};
use crate::backplane::executor;

/// What the sink does, and what it was given.
#[derive(Default)]
struct Script {
    /// Point numbers, in the order they were shown
    shown: Vec<u64>,
    /// `send` fails this many times
    send_failures: u32,
    /// `turn` fails this many times while something is in flight
    turn_failures: u32,
    /// Units are settled in reverse, once this many are in flight; 1: at once
    gather: usize,
    settled: BTreeSet<u64>,
    resets: u32,
    /// Never comes back from `turn`
    hangs: bool,
}

struct Scripted {
    script: Arc<Mutex<Script>>,
    in_flight: Vec<(UnitId, Vec<u64>)>,
}

impl Sink for Scripted {
    fn has_room(&self) -> bool {
        self.in_flight.len() < 8
    }

    fn send(&mut self, unit: &mut Unit<'_>, _: Instant) -> Result<(), SinkFailed> {
        let mut script = self.script.lock().expect("no panic");
        let mut numbers = Vec::new();
        unit.for_each(|item| {
            let Item::Point(point) = item else { panic!("no windows here") };
            assert_eq!(point.value, Value::UInt(point.number));
            numbers.push(point.number);
            Ok::<(), ()>(())
        })
        .expect("nothing fails");
        script.shown.extend(&numbers);
        if script.send_failures > 0 {
            script.send_failures -= 1;
            return Err(SinkFailed::retry("the script says so"));
        }
        if !numbers.is_empty() {
            self.in_flight.push((unit.id, numbers));
        }
        Ok(())
    }

    fn turn(&mut self, _: Instant, report: &mut Report) -> Result<(), SinkFailed> {
        let mut script = self.script.lock().expect("no panic");
        while script.hangs {
            drop(script);
            std::thread::sleep(Duration::from_millis(5));
            script = self.script.lock().expect("no panic");
        }
        if self.in_flight.is_empty() {
            return Ok(());
        }
        if script.turn_failures > 0 {
            script.turn_failures -= 1;
            return Err(SinkFailed { message: "held by the script".into(), held: true, retry_after: None });
        }
        if self.in_flight.len() >= script.gather {
            for (unit, numbers) in self.in_flight.drain(..).rev() {
                // One in ten is refused, one in seven of the others set aside.
                let refused = numbers.iter().filter(|n| *n % 10 == 0).count() as u64;
                let dead_lettered = numbers.iter().filter(|n| *n % 10 != 0 && *n % 7 == 0).count() as u64;
                let delivered = numbers.len() as u64 - refused - dead_lettered;
                for n in numbers {
                    assert!(script.settled.insert(n), "{n} is settled twice");
                }
                report.settled.push((unit, Settled { delivered, refused, dead_lettered }));
            }
        }
        Ok(())
    }

    fn next_turn(&self, _: Instant) -> Option<Instant> {
        None
    }

    fn finish(&mut self, now: Instant, report: &mut Report) -> Result<(), SinkFailed> {
        self.script.lock().expect("no panic").gather = 1;
        self.turn(now, report)
    }

    fn reset(&mut self) {
        self.in_flight.clear();
        self.script.lock().expect("no panic").resets += 1;
    }
}

struct Run {
    books: Arc<SinkBooks>,
    cursor: Cursor,
    script: Arc<Mutex<Script>>,
}

/// Runs a courier over `log` until `done`, and stops it.
fn run(
    log: &mut TestLog,
    data: &Path,
    script: Script,
    names: &[&str],
    start: Start,
    mut during: impl FnMut(&mut TestLog, &SinkBooks) -> bool,
) -> Run {
    let script = Arc::new(Mutex::new(script));
    let port = ReaderPort::new(1);
    let books = Arc::new(SinkBooks::new("s".into(), "scripted", vec![log.share.clone()]));
    let (stop, stop_reader) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let path = cursor::cursor_path(data, "s", "3");
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let courier = Courier::new(Parts {
        name: "s".into(),
        node_id: 7,
        sink: Box::new(Scripted { script: script.clone(), in_flight: Vec::new() }),
        filter: Filter::new(&names, []),
        logs: vec![Place {
            log: log.share.clone(),
            found: cursor::read(&path).expect("whole"),
            path: path.clone(),
            start,
            oldest_point: 0,
        }],
        books: books.clone(),
        reader: port.clone(),
        retry_most: Duration::from_millis(300),
        stop_within: Duration::from_secs(5),
        stop: stop.clone(),
    });
    std::thread::scope(|scope| {
        let stopped = stop_reader.clone();
        let reading = scope.spawn(move || {
            executor::run(None, |backplane| async move {
                let dir = tempfile::tempdir().expect("temporary directory");
                executor::learn_disk(dir.path()).await.expect("a disk");
                let stop = Rc::new(std::cell::Cell::new(false));
                backplane.spawn(executor::Queue::Disk, reader::run(port, stop.clone()));
                while !stopped.load(Ordering::Acquire) {
                    executor::sleep(Duration::from_millis(5)).await;
                }
                stop.set(true);
            })
            .expect("the executor starts");
        });
        let serving = scope.spawn(|| courier.run());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !during(log, &books) {
            assert!(Instant::now() < deadline, "not done: {:?}", books.logs[0].1.totals());
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Release);
        serving.join().expect("no panic");
        stop_reader.store(true, Ordering::Release);
        reading.join().expect("no panic");
    });
    let of = &books.logs[0].1;
    let waiting = of.read.get() - of.settled();
    assert_eq!(waiting, 0, "all that was read is in a book");
    let cursor = cursor::read(&path).expect("whole").expect("stored");
    assert_eq!(cursor.totals.sum(), cursor.next_point - cursor.first_point);
    Run { books, cursor, script }
}

fn all_settled(log: &mut TestLog, books: &SinkBooks) -> bool {
    books.logs[0].1.next_point.load(Ordering::Relaxed) == log.share.mark.get().next_point
}

#[test]
fn units_settled_in_any_order_move_the_cursor_and_every_point_is_in_one_book() {
    let (mut log, data) = (TestLog::new(&["s"]), tempfile::tempdir().expect("temporary directory"));
    let mut left = 100;
    let script = Script { gather: 3, ..Script::default() };
    let run = run(&mut log, data.path(), script, &[], Start::Oldest, |log, _| {
        log.block(&[0, 1, 2]);
        left -= 1;
        left == 0
    });
    assert_eq!((run.cursor.next_point, run.cursor.first_point), (300, 0));
    let t = run.cursor.totals;
    assert_eq!((t.refused, t.dead_lettered, t.delivered), (30, 38, 232));
    let script = run.script.lock().expect("no panic");
    assert_eq!(script.shown, (0..300).collect::<Vec<_>>(), "in order, each once");
    assert_eq!(run.books.state(), State::Stopped);
    assert_eq!(log.share.held_from(), log.share.mark.get().end.segment_id);
}

#[test]
fn a_sink_that_fails_gets_everything_again_from_the_cursor_and_the_books_count_it_once() {
    let (mut log, data) = (TestLog::new(&["s"]), tempfile::tempdir().expect("temporary directory"));
    for _ in 0..50 {
        log.block(&[0, 1]);
    }
    let script = Script { gather: 1, send_failures: 2, turn_failures: 2, ..Script::default() };
    let mut was_held = false;
    let run = run(&mut log, data.path(), script, &[], Start::Oldest, |log, books| {
        was_held |= books.state() == State::Held;
        all_settled(log, books)
    });
    let script = run.script.lock().expect("no panic");
    assert_eq!(run.books.errors.get(), 4);
    assert!(was_held && script.resets >= 4);
    assert_eq!(script.settled.len(), 100, "each settled once");
    assert!(script.shown.len() > 100, "and shown again after a failure");
    assert_eq!(run.cursor.totals.sum(), 100);
}

#[test]
fn a_restart_goes_on_at_the_cursor_and_now_means_from_now_on() {
    let (mut log, data) = (TestLog::new(&["s"]), tempfile::tempdir().expect("temporary directory"));
    for _ in 0..10 {
        log.block(&[0]);
    }
    let script = || Script { gather: 1, ..Script::default() };
    let first = run(&mut log, data.path(), script(), &[], Start::Now, |log, books| {
        if log.share.mark.get().next_point == 10 {
            log.block(&[0, 1]);
        }
        all_settled(log, books)
    });
    assert_eq!(first.script.lock().expect("no panic").shown, [10, 11]);
    assert_eq!(first.cursor.first_point, 10);
    log.block(&[2]);
    let second = run(&mut log, data.path(), script(), &[], Start::Now, all_settled);
    assert_eq!(second.script.lock().expect("no panic").shown, [12]);
    assert_eq!((second.cursor.first_point, second.cursor.totals.sum()), (10, 3));
}

#[test]
fn filtered_damaged_and_dropped_points_have_each_their_book() {
    let (mut log, data) = (TestLog::new(&["s"]), tempfile::tempdir().expect("temporary directory"));
    for _ in 0..40 {
        log.block(&[0, 2]);
    }
    // The first segment is dropped; a block in the second, and the last of all, are damaged.
    let first = super::share::list_segments(log.dir.path()).expect("listed")[0].clone();
    let dropped = 2 * log.marks.iter().filter(|mark| mark.end.segment_id == first.0).count() as u64;
    let damaged = [dropped as usize / 2 + 3, 39];
    for n in damaged {
        let mut at = log.marks[n].end;
        at.offset -= 4096;
        log.damage(at);
    }
    // A cursor that stands before all of it.
    let path = cursor::cursor_path(data.path(), "s", "3");
    let cursor = Cursor {
        node_id: 7,
        log_id: 3,
        sink: "s".into(),
        sequence: 1,
        at: metricstream_shards::log::Position { segment_id: first.0, offset: 4096 },
        next_point: 0,
        first_point: 0,
        settled_stamp_ns: i64::MIN,
        totals: cursor::Totals::default(),
    };
    cursor::CursorFile::new(path).store(&cursor).expect("stored");
    log.share.drop_below(first.0 + 1);
    std::fs::remove_file(&first.1).expect("removed");
    let script = Script { gather: 1, ..Script::default() };
    let run = run(&mut log, data.path(), script, &["mem"], Start::Oldest, all_settled);
    let t = run.cursor.totals;
    assert_eq!((t.dropped, t.lost_to_damage), (dropped, 4));
    assert_eq!(t.filtered, (80 - dropped - 4) / 2);
    assert_eq!(t.sum(), 80);
    let script = run.script.lock().expect("no panic");
    assert!(script.shown.iter().all(|number| number % 2 == 1), "only mem");
}

#[test]
fn a_sink_that_hangs_is_left_behind_when_its_time_is_over() {
    let script = Arc::new(Mutex::new(Script { hangs: true, ..Script::default() }));
    let mut sink = Scripted { script: script.clone(), in_flight: Vec::new() };
    let thread = std::thread::spawn(move || drop(sink.turn(Instant::now(), &mut Report::default())));
    let running =
        super::Running { stop: Arc::default(), threads: vec![("hung".into(), Duration::from_millis(200), thread)] };
    let begun = Instant::now();
    running.stop();
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(200) && took < Duration::from_millis(900), "{took:?}");
    script.lock().expect("no panic").hangs = false;
}
