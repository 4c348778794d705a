//! Between the logs and one sink: asks the reader, hands units to the sink, moves the cursors, keeps the books. One thread
//! a sink, so that a sink which hangs stops nobody else.
//!
//! The order of things, for each log: read -> sent -> settled by the sink -> cursor in memory -> cursor on disk -> segment
//! free. A failure anywhere before "cursor on disk" leads back to the cursor, and points come again under the same
//! numbers. Memory: at most two pieces a log, what the sink holds, and a few words a unit in flight.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use metricstream_shards::log::Position;

use super::books::{LogBooks, SinkBooks, State};
use super::cursor::{Cursor, CursorFile, Totals};
use super::filter::Filter;
use super::in_flight::{self, InFlight};
use super::piece::{Piece, SegmentNames};
use super::reader::{Answer, Ask, ReaderPort};
use super::retry::Backoff;
use super::share::LogShare;
use super::sink::{Report, Sink, SinkFailed, UnitId};
use super::unit::{Scratch, Seen, Unit};
use crate::reducer::thread::wall_ns;

/// One ask: what a unit is made of, and what a crash sends again at most, besides what is in flight.
const READ_BYTES: usize = 256 << 10;
/// How long points at the end of a log gather before they are read.
const GATHER: Duration = Duration::from_millis(25);
const STORE_EVERY: Duration = Duration::from_millis(200);
const AFTER_STORE_FAILURE: Duration = Duration::from_secs(1);
const AFTER_READ_FAILURE: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(250);

/// Where a sink begins that has no cursor yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Oldest,
    Now,
}

pub struct Courier {
    name: Arc<str>,
    node_id: u128,
    sink: Box<dyn Sink>,
    filter: Filter,
    feeds: Vec<Feed>,
    books: Arc<SinkBooks>,
    reader: Arc<ReaderPort>,
    answers: Receiver<(u64, Answer)>,
    reply: SyncSender<(u64, Answer)>,
    backoff: Backoff,
    /// Nothing is sent before
    retry_at: Option<Instant>,
    /// The sink has not answered for long, and has not failed either
    stalled: bool,
    last_unit: UnitId,
    last_ticket: u64,
    next_store: Instant,
    stop_within: Duration,
    /// Set when the logs have got their last block. The time of the stop then bounds what is left to do.
    stop: Arc<AtomicBool>,
}

/// One log on its way to the sink.
struct Feed {
    log: Arc<LogShare>,
    books: Arc<LogBooks>,
    /// Settled in memory
    cursor: Cursor,
    /// The cursor says where the sink stands; not so before the first block of a log that is read from its oldest
    placed: bool,
    file: CursorFile,
    unstored: bool,
    /// Where the next ask reads
    at: Position,
    /// Number of the next point
    next_point: u64,
    /// Points below were counted as read
    counted_below: u64,
    /// The ask under way; there is never a second
    ticket: Option<u64>,
    /// Its answer is for a place that the feed has left since
    unwanted: bool,
    answer: Option<Answer>,
    /// The place asked from was dropped, and how much that was only the next gap can tell
    after_drop: bool,
    not_before: Instant,
    in_flight: InFlight<Stretch>,
    scratch: Scratch,
    /// Kept while the feed is in this segment, so that names are not read again
    names: Option<Arc<SegmentNames>>,
}

/// Of a log: what a unit was made of, or nothing for the sink.
struct Stretch {
    end: Position,
    end_point: u64,
    first_stamp_ns: i64,
    last_stamp_ns: i64,
    /// Filtered, dropped and lost
    aside: Totals,
}

/// Where a sink stands in a log when the process starts.
pub struct Place {
    pub log: Arc<LogShare>,
    /// The cursor
    pub found: Option<Cursor>,
    /// Where it is kept
    pub path: PathBuf,
    pub start: Start,
    /// Number of the oldest point there is, as far as headers tell: only for showing how far there is to go
    pub oldest_point: u64,
}

pub struct Parts {
    pub name: Arc<str>,
    pub node_id: u128,
    pub sink: Box<dyn Sink>,
    pub filter: Filter,
    pub logs: Vec<Place>,
    pub books: Arc<SinkBooks>,
    pub reader: Arc<ReaderPort>,
    pub retry_most: Duration,
    pub stop_within: Duration,
    pub stop: Arc<AtomicBool>,
}

impl Courier {
    /// Says at once which segments the sink holds.
    pub fn new(parts: Parts) -> Courier {
        let (reply, answers) = sync_channel(2 * parts.logs.len().max(1));
        let now = Instant::now();
        let feeds = parts
            .logs
            .into_iter()
            .zip(&parts.books.logs)
            .map(|(place, (_, books))| Feed::new(place, books.clone(), &parts.name, parts.node_id, now))
            .collect();
        Courier {
            backoff: Backoff::new(RETRY_FIRST, parts.retry_most, wall_ns() as u64),
            name: parts.name,
            node_id: parts.node_id,
            sink: parts.sink,
            filter: parts.filter,
            feeds,
            books: parts.books,
            reader: parts.reader,
            answers,
            reply,
            retry_at: None,
            stalled: false,
            last_unit: 0,
            last_ticket: 0,
            next_store: now,
            stop_within: parts.stop_within,
            stop: parts.stop,
        }
    }

    /// Until the stop.
    pub fn run(mut self) {
        tracing::debug!(sink = &*self.name, node_id = format!("{:032x}", self.node_id), "a sink begins");
        let mut deadline: Option<Instant> = None;
        loop {
            let now = Instant::now();
            if deadline.is_none() && self.stop.load(Ordering::Acquire) {
                deadline = Some(now + self.stop_within);
            }
            let busy = self.step(now, deadline.is_some());
            if let Some(deadline) = deadline {
                // A quarter of the time is for what was begun.
                let late = now + self.stop_within / 4 >= deadline;
                if late || self.retry_at.is_some() || self.is_through() {
                    return self.end(deadline);
                }
            }
            if !busy {
                self.wait(now);
            }
        }
    }

    /// One round. Answers whether there is more to do at once.
    fn step(&mut self, now: Instant, stopping: bool) -> bool {
        self.take_answers();
        let mut busy = false;
        if self.retry_at.is_none_or(|at| at <= now) {
            self.retry_at = None;
            match self.work(now, stopping) {
                Ok(more) => busy = more,
                Err(failed) => self.failed(failed, now),
            }
        }
        self.watch(now);
        self.store(now, false);
        self.publish();
        busy
    }

    /// A sink that waits in silence is not running well.
    fn watch(&mut self, now: Instant) {
        let stalled = self.retry_at.is_none() && self.sink.is_stalled(now);
        if std::mem::replace(&mut self.stalled, stalled) == stalled || self.retry_at.is_some() {
            return;
        }
        if stalled {
            self.books.set_state(State::Retrying);
            tracing::warn!(
                cause = "sink_stalled",
                sink = &*self.name,
                "the sink does not answer; nothing is lost, what is on its way is repeated until it does"
            );
        } else {
            self.books.set_state(State::Running);
            tracing::info!(sink = &*self.name, "the sink answers again");
        }
    }

    fn work(&mut self, now: Instant, stopping: bool) -> Result<bool, SinkFailed> {
        let mut report = Report::default();
        let turned = self.sink.turn(now, &mut report);
        self.settle(report);
        turned?;
        let mut busy = false;
        for n in 0..self.feeds.len() {
            if let Some(answer) = self.feeds[n].answer.take() {
                if matches!(answer, Answer::Piece { .. }) && !self.sink.has_room() {
                    self.feeds[n].answer = Some(answer);
                    continue;
                }
                self.take(n, answer, now)?;
                busy = true;
            }
            self.ask(n, now, stopping);
        }
        Ok(busy)
    }

    /// Asks for what comes next in a log, unless an ask is under way or nothing has come.
    fn ask(&mut self, n: usize, now: Instant, stopping: bool) {
        let feed = &mut self.feeds[n];
        let waits = feed.ticket.is_some() || feed.answer.is_some() || (now < feed.not_before && !stopping);
        if waits || feed.at >= feed.log.mark.get().end {
            feed.at_the_end();
            return;
        }
        self.last_ticket += 1;
        let ask = Ask {
            log: feed.log.clone(),
            from: feed.at,
            bytes_max: READ_BYTES,
            ticket: self.last_ticket,
            reply: self.reply.clone(),
        };
        if self.reader.ask(ask) {
            feed.ticket = Some(self.last_ticket);
        } else {
            feed.not_before = now + AFTER_READ_FAILURE;
        }
    }

    fn take_answers(&mut self) {
        while let Ok(answer) = self.answers.try_recv() {
            self.took(answer);
        }
    }

    fn took(&mut self, (ticket, answer): (u64, Answer)) {
        let asked = self.feeds.iter_mut().find(|feed| feed.ticket == Some(ticket));
        let feed = asked.expect("every ask under way is a feed's");
        feed.ticket = None;
        if !std::mem::take(&mut feed.unwanted) {
            feed.answer = Some(answer);
        }
    }

    fn take(&mut self, n: usize, answer: Answer, now: Instant) -> Result<(), SinkFailed> {
        match answer {
            Answer::Piece { piece, from } => return self.send(n, &piece, from, now),
            Answer::Skip(to) => self.pass_over(n, to, None),
            Answer::Dropped { to, first_point } => {
                self.feeds[n].after_drop = first_point.is_none();
                self.pass_over(n, to, first_point);
            }
            Answer::End => self.feeds[n].not_before = now + GATHER,
            Answer::Failed(message) => {
                self.feeds[n].not_before = now + AFTER_READ_FAILURE;
                tracing::warn!(cause = "forward_read", sink = &*self.name, "{message}; trying again");
            }
        }
        Ok(())
    }

    /// Nothing for the sink up to there; points below `dropped_below` are gone.
    fn pass_over(&mut self, n: usize, to: Position, dropped_below: Option<u64>) {
        self.last_unit += 1;
        let feed = &mut self.feeds[n];
        feed.at = to;
        if feed.placed {
            let dropped = dropped_below.map_or(0, |below| below.saturating_sub(feed.next_point));
            feed.next_point += dropped;
            feed.counted(feed.next_point);
            let stretch = Stretch {
                end: to,
                end_point: feed.next_point,
                first_stamp_ns: feed.cursor.settled_stamp_ns,
                last_stamp_ns: feed.cursor.settled_stamp_ns,
                aside: Totals { dropped, ..Totals::default() },
            };
            feed.in_flight.sent(self.last_unit, 0, stretch);
            feed.advance();
        }
    }

    fn send(&mut self, n: usize, piece: &Arc<Piece>, from: u64, now: Instant) -> Result<(), SinkFailed> {
        let tail_before = self.feeds[n].log.mark.get().end;
        let feed = &mut self.feeds[n];
        if !feed.placed {
            // The first block of all that is left of this log: here the sink begins.
            let Some(first) = piece.blocks(from).next() else { return Ok(()) };
            let begin = Position { segment_id: piece.segment_id, offset: first.header.offset };
            feed.place(begin, first.header.first_point);
        }
        feed.names = Some(piece.names.clone());
        let first_point = feed.next_point;
        let (mut expected, mut gap) = (first_point, 0);
        let (mut first_stamp_ns, mut last_stamp_ns) = (i64::MAX, feed.cursor.settled_stamp_ns);
        for block in piece.blocks(from) {
            if block.header.end_point() <= expected {
                continue;
            }
            gap += block.header.first_point.saturating_sub(expected);
            expected = block.header.end_point();
            first_stamp_ns = first_stamp_ns.min(block.header.first_stamp_ns);
            last_stamp_ns = block.header.last_stamp_ns;
        }
        if expected == first_point {
            self.pass_over(n, piece.end, None);
            return Ok(());
        }
        feed.at = piece.end;
        feed.next_point = expected;
        feed.counted(expected);
        if feed.at >= tail_before {
            feed.not_before = now + GATHER;
        }
        let mut aside = Totals::default();
        if std::mem::take(&mut feed.after_drop) {
            aside.dropped = gap
        } else {
            aside.lost_to_damage = gap
        }
        self.last_unit += 1;
        let mut unit = Unit {
            id: self.last_unit,
            log_id: piece.log_id,
            segment_id: piece.segment_id,
            piece,
            from,
            first_point,
            filter: &self.filter,
            part: None,
            scratch: &mut feed.scratch,
            seen: Seen::default(),
        };
        let sent = self.sink.send(&mut unit, now);
        let seen = unit.seen;
        aside.filtered += seen.filtered;
        aside.lost_to_damage += seen.unreadable;
        let stretch = Stretch { end: piece.end, end_point: expected, first_stamp_ns, last_stamp_ns, aside };
        feed.in_flight.sent(self.last_unit, seen.passed, stretch);
        sent?;
        feed.advance();
        Ok(())
    }

    fn settle(&mut self, report: Report) {
        if report.settled.is_empty() {
            return;
        }
        in_flight::settle(report, &mut self.feeds, |feed| &mut feed.in_flight);
        for feed in &mut self.feeds {
            feed.advance();
        }
        if self.backoff.failures() > 0 || (self.books.state() != State::Running && !self.stalled) {
            tracing::info!(sink = &*self.name, "the sink takes points again");
        }
        self.backoff.succeeded();
        if !self.stalled {
            self.books.set_state(State::Running);
        }
    }

    /// Back to the cursors.
    fn failed(&mut self, failed: SinkFailed, now: Instant) {
        self.books.errors.add(1);
        self.books.set_state(if failed.held { State::Held } else { State::Retrying });
        let wait = self.backoff.failed(failed.retry_after);
        tracing::warn!(
            cause = "sink_failed",
            sink = &*self.name,
            again_in_ms = wait.as_millis() as u64,
            "{failed}; nothing is lost, it is tried again from the cursor"
        );
        self.retry_at = Some(now + wait);
        self.sink.reset();
        for feed in &mut self.feeds {
            feed.rewind(now);
        }
    }

    /// Stores the cursors that have moved; only then what is behind them may go.
    fn store(&mut self, now: Instant, at_once: bool) {
        if now < self.next_store && !at_once {
            return;
        }
        self.next_store = now + STORE_EVERY;
        for feed in self.feeds.iter_mut().filter(|feed| feed.unstored) {
            feed.cursor.sequence += 1;
            match feed.file.store(&feed.cursor) {
                Ok(()) => {
                    feed.unstored = false;
                    self.books.cursor_stores.add(1);
                    feed.hold();
                }
                Err(error) => {
                    self.books.cursor_failures.add(1);
                    self.next_store = now + AFTER_STORE_FAILURE;
                    tracing::error!(
                        cause = "cursor",
                        path = %feed.file.path().display(),
                        %error,
                        "a cursor cannot be stored; the log is kept, and a crash now sends points again"
                    );
                }
            }
        }
    }

    fn publish(&self) {
        for feed in &self.feeds {
            feed.publish();
        }
    }

    /// Everything durable was handed to the sink.
    fn is_through(&self) -> bool {
        self.feeds.iter().all(|feed| feed.answer.is_none() && feed.at >= feed.log.mark.get().end)
    }

    fn wait(&mut self, now: Instant) {
        let mut until = now + GATHER;
        if let Some(turn) = self.sink.next_turn(now) {
            until = until.min(turn);
        }
        match self.answers.recv_timeout(until.saturating_duration_since(now)) {
            Ok(answer) => self.took(answer),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => unreachable!("this thread holds a sender"),
        }
    }

    fn end(mut self, deadline: Instant) {
        if self.retry_at.is_none() {
            let mut report = Report::default();
            if let Err(failed) = self.sink.finish(deadline, &mut report) {
                tracing::warn!(sink = &*self.name, "{failed}; the next start sends it again from the cursor");
            }
            self.settle(report);
        }
        self.sink.reset();
        self.store(Instant::now(), true);
        self.publish();
        self.books.set_state(State::Stopped);
        let waiting: u64 =
            self.feeds.iter().map(|f| f.log.mark.get().next_point.saturating_sub(f.cursor.next_point)).sum();
        tracing::info!(
            sink = &*self.name,
            waiting_points = waiting,
            "the sink is stopped; what waits stays in the log"
        );
    }
}

impl Feed {
    fn new(place: Place, books: Arc<LogBooks>, sink: &str, node_id: u128, now: Instant) -> Feed {
        let Place { log, found, path, start, oldest_point } = place;
        let mark = log.mark.get();
        let fresh = Cursor {
            node_id,
            log_id: log.log_id,
            sink: sink.to_owned(),
            sequence: 0,
            at: Position::default(),
            next_point: oldest_point,
            first_point: oldest_point,
            settled_stamp_ns: i64::MIN,
            totals: Totals::default(),
        };
        let is_known = found.is_some();
        let mut feed = Feed {
            books,
            cursor: found.unwrap_or(fresh),
            placed: false,
            file: CursorFile::new(path),
            unstored: false,
            at: Position::default(),
            next_point: 0,
            counted_below: 0,
            ticket: None,
            unwanted: false,
            answer: None,
            after_drop: false,
            not_before: now,
            in_flight: InFlight::default(),
            scratch: Scratch::default(),
            names: None,
            log,
        };
        if is_known {
            feed.placed = true;
            feed.counted_below = feed.cursor.next_point;
            feed.rewind(now);
            feed.hold();
        } else if start == Start::Now {
            feed.place(mark.end, mark.next_point);
            feed.at = mark.end;
            feed.cursor.settled_stamp_ns = mark.last_stamp_ns;
        }
        feed.publish();
        feed
    }

    /// The sink begins here.
    fn place(&mut self, at: Position, point: u64) {
        self.placed = true;
        (self.cursor.at, self.cursor.next_point, self.cursor.first_point) = (at, point, point);
        (self.next_point, self.counted_below) = (point, point);
        self.unstored = true;
    }

    fn rewind(&mut self, now: Instant) {
        self.at = self.cursor.at;
        self.next_point = self.cursor.next_point;
        self.in_flight.forget();
        (self.answer, self.after_drop) = (None, false);
        self.unwanted = self.ticket.is_some();
        self.not_before = now;
    }

    fn counted(&mut self, below: u64) {
        self.books.read.add(below.saturating_sub(self.counted_below));
        self.counted_below = self.counted_below.max(below);
    }

    /// At the very end of the log. Points may be missing there: the last blocks are damaged, or were dropped with their segment.
    fn at_the_end(&mut self) {
        let mark = self.log.mark.get();
        if self.log.is_orphan && !self.placed && self.at >= mark.end {
            // It has no points, and will get none.
            self.log.hold_from(&self.cursor.sink, u64::MAX);
        }
        let idle = self.ticket.is_none() && self.answer.is_none() && self.in_flight.is_empty();
        if !idle || !self.placed || self.at != mark.end || self.next_point >= mark.next_point {
            return;
        }
        let missing = mark.next_point - self.next_point;
        let mut aside = Totals::default();
        if std::mem::take(&mut self.after_drop) {
            aside.dropped = missing
        } else {
            aside.lost_to_damage = missing
        }
        self.next_point = mark.next_point;
        self.counted(mark.next_point);
        self.cursor.next_point = mark.next_point;
        self.cursor.totals.add(&aside);
        self.books.add(&aside);
        self.unstored = true;
    }

    /// The cursor moves behind the longest run of settled units.
    fn advance(&mut self) {
        while let Some((first, settled)) = self.in_flight.take_settled() {
            let mut totals = first.aside;
            totals.delivered = settled.delivered;
            totals.refused = settled.refused;
            totals.dead_lettered = settled.dead_lettered;
            assert_eq!(totals.sum(), first.end_point - self.cursor.next_point, "every point is in one book");
            self.cursor.at = first.end;
            self.cursor.next_point = first.end_point;
            self.cursor.settled_stamp_ns = self.cursor.settled_stamp_ns.max(first.last_stamp_ns);
            self.cursor.totals.add(&totals);
            self.books.add(&totals);
            self.unstored = true;
        }
    }

    /// What is before the durable cursor may go; of a log that gets no more points, everything, once it is read.
    fn hold(&self) {
        let through = self.log.is_orphan && self.cursor.at >= self.log.mark.get().end;
        let segment = if through { u64::MAX } else { self.cursor.at.segment_id };
        self.log.hold_from(&self.cursor.sink, segment);
    }

    fn publish(&self) {
        let (books, cursor) = (&self.books, &self.cursor);
        let oldest_ns = self.in_flight.oldest().map_or(cursor.settled_stamp_ns, |first| first.first_stamp_ns);
        books.oldest_stamp_ns.store(oldest_ns, Ordering::Relaxed);
        books.segment_id.store(cursor.at.segment_id, Ordering::Relaxed);
        books.offset.store(cursor.at.offset, Ordering::Relaxed);
        books.next_point.store(cursor.next_point, Ordering::Relaxed);
    }
}
