//! Hands the pieces of all logs to one sink, in the order they were received, and keeps count of what became of them.
//!
//! What a courier does for ever, this does once and without a cursor: points are counted when the sink has settled them; after a
//! failure everything that is not settled comes again. Memory: one piece a log, what the sink holds, a few words a unit.
//!
//! A value must not replace a newer one at a sink that overwrites. So logs are merged by the time of receipt, and
//! what came in during a replay is read before it ends, until nothing of it is in the range.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use metricstream_shards::log::AGGREGATE_LOG_ID;

use super::pace::{Bucket, cut};
use super::selection::{Selection, time_ns};
use super::source::{Next, Source};
use super::summary::{Progress, Totals};
use crate::forward::calls::CallBooks;
use crate::forward::filter::Filter;
use crate::forward::in_flight::{self, InFlight};
use crate::forward::piece::Piece;
use crate::forward::retry::Backoff;
use crate::forward::sink::{Report, Settled, Sink, SinkFailed, UnitId};
use crate::forward::unit::{Choice, Item, Part, Scratch, Seen, Unit};
use crate::reducer::thread::wall_ns;

const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MOST: Duration = Duration::from_secs(10);
const WAIT_MOST: Duration = Duration::from_millis(50);
/// Sinks bound bytes, not units; with a rate units are small. (One that settles when a file is full is not bounded so.)
const UNITS_MAX: usize = 4096;
/// Where points in the range keep coming, looking for more of them has an end.
const ROUNDS_MAX: u32 = 10;

pub struct Parts {
    pub node_id: u128,
    pub sources: Vec<Source>,
    pub selection: Selection,
    /// What was certainly received outside of it is passed over; `None`: everything is read
    pub received_ns: Option<Range<i64>>,
    pub filter: Filter,
    /// `None`: counting only
    pub target: Option<Target>,
    pub rate: Option<u64>,
    pub give_up_after: Duration,
    pub stop: Arc<AtomicBool>,
}

pub struct Target {
    pub sink: Box<dyn Sink>,
    pub calls: Option<Arc<CallBooks>>,
    /// It settles when it is told to finish, or after long
    pub settles_at_end: bool,
    pub stop_within: Duration,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// By a signal
    Stopped,
    /// One sentence
    GaveUp(String),
}

pub struct Replay {
    node_id: u128,
    feeds: Vec<Feed>,
    selection: Selection,
    received_ns: Option<Range<i64>>,
    filter: Filter,
    target: Option<Target>,
    rate: Option<Bucket>,
    give_up_after: Duration,
    stop: Arc<AtomicBool>,
    totals: Totals,
    last_unit: UnitId,
    backoff: Backoff,
    /// Nothing is sent before
    retry_at: Option<Instant>,
    /// Since the first failure after which nothing was settled
    failing: Option<Failing>,
    /// The sink took or settled something
    moved_at: Instant,
}

struct Feed {
    source: Source,
    /// Where the replay of this log has begun
    begun_point: u64,
    /// Everything before it is in the totals
    settled_point: u64,
    next: Option<Next>,
    /// What is left of `next`, cut as it is to be sent
    slices: VecDeque<Range<u64>>,
    /// Of `next`, to be counted with its first slice
    aside: Totals,
    in_flight: InFlight<Stretch>,
    scratch: Scratch,
    is_at_end: bool,
}

/// Of a log: what a unit was made of.
struct Stretch {
    end_point: u64,
    totals: Totals,
}

struct Failing {
    since: Instant,
    /// The last failure
    why: String,
    /// Waiting does not help
    held: bool,
}

/// What one round of the loop came to.
enum Step {
    Busy,
    Wait(Duration),
    /// All that there was is settled
    Through,
}

impl Replay {
    pub fn new(parts: Parts) -> Replay {
        let now = Instant::now();
        let feed = |source: Source| Feed {
            begun_point: source.next_point(),
            settled_point: source.next_point(),
            source,
            next: None,
            slices: VecDeque::new(),
            aside: Totals::default(),
            in_flight: InFlight::default(),
            scratch: Scratch::default(),
            is_at_end: false,
        };
        Replay {
            node_id: parts.node_id,
            feeds: parts.sources.into_iter().map(feed).collect(),
            selection: parts.selection,
            received_ns: parts.received_ns,
            filter: parts.filter,
            rate: parts.rate.filter(|_| parts.target.is_some()).map(|rate| Bucket::new(rate, now)),
            target: parts.target,
            give_up_after: parts.give_up_after,
            stop: parts.stop,
            totals: Totals::default(),
            last_unit: 0,
            backoff: Backoff::new(RETRY_FIRST, RETRY_MOST, wall_ns() as u64),
            retry_at: None,
            failing: None,
            moved_at: now,
        }
    }

    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// From the logs' files.
    pub fn read_bytes(&self) -> u64 {
        self.feeds.iter().map(|feed| feed.source.read_bytes()).sum()
    }

    /// For each log, the number of the point to go on with.
    pub fn places(&self) -> Vec<(u32, u64)> {
        self.feeds.iter().map(|feed| (feed.source.log_id, feed.settled_point)).collect()
    }

    /// An error is a log that cannot be read.
    pub fn run(&mut self, progress: &mut Progress) -> io::Result<Outcome> {
        for feed in &mut self.feeds {
            feed.source.only_received(self.received_ns.clone());
        }
        self.learn_windows()?;
        for round in 0..ROUNDS_MAX {
            let before = self.totals.chosen();
            let outcome = self.run_to_end(progress)?;
            let nothing_more = round > 0 && self.totals.chosen() == before;
            if outcome != Outcome::Done || self.target.is_none() || nothing_more || !self.extend()? {
                return Ok(outcome);
            }
        }
        Ok(Outcome::Done)
    }

    fn run_to_end(&mut self, progress: &mut Progress) -> io::Result<Outcome> {
        loop {
            let now = Instant::now();
            progress.show(self.read(), self.of(), &self.totals, now);
            if self.stop.load(Ordering::Acquire) {
                self.end(now);
                return Ok(Outcome::Stopped);
            }
            if let Some(sentence) = self.hopeless(now) {
                // What is under way is given the time that a stop has.
                self.end(now);
                return Ok(Outcome::GaveUp(sentence));
            }
            match self.step(now)? {
                Step::Busy => {}
                Step::Wait(wait) => std::thread::sleep(wait.min(WAIT_MOST)),
                Step::Through => return Ok(Outcome::Done),
            }
        }
    }

    fn read(&self) -> u64 {
        self.feeds.iter().map(|feed| feed.settled_point - feed.begun_point).sum()
    }

    fn of(&self) -> u64 {
        self.feeds.iter().map(|feed| feed.source.end.point.saturating_sub(feed.begun_point)).sum()
    }

    /// Why waiting has no sense any more.
    fn hopeless(&self, now: Instant) -> Option<String> {
        let target = self.target.as_ref()?;
        if target.calls.as_ref().is_some_and(|calls| calls.held.load(Ordering::Relaxed) > 0) {
            return Some("the sink refuses until somebody acts; the line above says why".to_owned());
        }
        let patience = self.give_up_after;
        let for_s = patience.as_secs_f64();
        match &self.failing {
            Some(Failing { why, held: true, .. }) => Some(why.clone()),
            Some(Failing { since, why, .. }) if now.saturating_duration_since(*since) >= patience => {
                Some(format!("the sink has failed for {for_s:.0} s (--give-up-after): {why}"))
            }
            None if !target.settles_at_end
                && self.in_flight() > 0
                && now.saturating_duration_since(self.moved_at) >= patience =>
            {
                Some(format!("the sink has taken nothing for {for_s:.0} s (--give-up-after); is it there?"))
            }
            _ => None,
        }
    }

    fn in_flight(&self) -> usize {
        self.feeds.iter().map(|feed| feed.in_flight.len()).sum()
    }

    fn step(&mut self, now: Instant) -> io::Result<Step> {
        if let Some(at) = self.retry_at {
            if at > now {
                return Ok(Step::Wait(at - now));
            }
            self.retry_at = None;
        }
        match self.work(now) {
            Ok(step) => Ok(step),
            Err(Trouble::Log(error)) => Err(error),
            Err(Trouble::Sink(failed)) => {
                self.failed(failed, now)?;
                Ok(Step::Busy)
            }
        }
    }

    fn work(&mut self, now: Instant) -> Result<Step, Trouble> {
        self.turn(now)?;
        let Some(n) = self.next_feed()? else {
            if self.in_flight() == 0 {
                return Ok(Step::Through);
            }
            if let Some(target) = self.target.as_mut().filter(|target| target.settles_at_end) {
                let mut report = Report::default();
                let finished = target.sink.finish(now + self.give_up_after, &mut report);
                self.settle(report, now);
                finished?;
                return Ok(Step::Busy);
            }
            return Ok(Step::Wait(self.next_turn(now)));
        };
        let has_room = self
            .target
            .as_ref()
            .is_none_or(|target| target.sink.has_room() && (target.settles_at_end || self.in_flight() < UNITS_MAX));
        if !has_room {
            return Ok(Step::Wait(self.next_turn(now)));
        }
        if let Some(wait) = self.rate.as_mut().and_then(|bucket| bucket.wait(now)) {
            return Ok(Step::Wait(wait.min(self.next_turn(now))));
        }
        self.send(n, now)?;
        Ok(Step::Busy)
    }

    fn turn(&mut self, now: Instant) -> Result<(), SinkFailed> {
        let Some(target) = &mut self.target else { return Ok(()) };
        let mut report = Report::default();
        let turned = target.sink.turn(now, &mut report);
        self.settle(report, now);
        turned
    }

    fn next_turn(&self, now: Instant) -> Duration {
        let turn = self.target.as_ref().and_then(|target| target.sink.next_turn(now));
        turn.map_or(WAIT_MOST, |at| at.saturating_duration_since(now)).max(Duration::from_millis(1))
    }

    /// The log whose next points were received first; `None`: all are at their end.
    fn next_feed(&mut self) -> io::Result<Option<usize>> {
        for feed in self.feeds.iter_mut().filter(|feed| feed.next.is_none() && !feed.is_at_end) {
            let next = feed.source.next()?;
            feed.aside.missing.removed += next.missing.removed;
            feed.aside.missing.damaged += next.missing.damaged;
            feed.aside.passed_over += next.passed_over;
            if next.missing.removed > 0 {
                tracing::warn!(
                    log = crate::forward::share::log_name(feed.source.log_id),
                    points = next.missing.removed,
                    "retention has removed a part of the log before it was read; it cannot be sent again"
                );
            }
            if next.piece.is_some() {
                feed.next = Some(next);
            } else {
                feed.is_at_end = true;
                // What is missing at the very end.
                self.last_unit += 1;
                let stretch = Stretch { end_point: next.to, totals: std::mem::take(&mut feed.aside) };
                feed.in_flight.sent(self.last_unit, 0, stretch);
                feed.advance(&mut self.totals);
            }
        }
        let first = |feed: &Feed| feed.next.as_ref().map(|next| next.stamp_ns);
        let ready = self.feeds.iter().enumerate().filter_map(|(n, feed)| Some((first(feed)?, n)));
        Ok(ready.min().map(|(_, n)| n))
    }

    /// Sends a slice of what comes next of a log.
    fn send(&mut self, n: usize, now: Instant) -> Result<(), SinkFailed> {
        let Replay { feeds, selection, filter, target, rate, last_unit, .. } = self;
        let feed = &mut feeds[n];
        let next = feed.next.as_ref().expect("chosen because it is there");
        let piece = next.piece.clone().expect("only pieces are kept");
        let times: Cell<Option<(i64, i64)>> = Cell::new(None);
        let choose = |item: &Item<'_>| {
            let at = time_ns(item);
            times.set(Some(times.get().map_or((at, at), |(least, greatest)| (least.min(at), greatest.max(at)))));
            selection.choose(item)
        };
        if feed.slices.is_empty() {
            let whole = next.from..next.to;
            match rate {
                Some(bucket) => {
                    let mut passing = Vec::new();
                    look(&piece, &whole, filter, &choose, &mut feed.scratch, &mut passing);
                    feed.slices = cut(&passing, bucket.slice(), &whole);
                }
                None => feed.slices.push_back(whole),
            }
        }
        let slice = feed.slices.pop_front().expect("filled above");
        if feed.slices.is_empty() {
            feed.next = None;
        }
        *last_unit += 1;
        let unit = *last_unit;
        let is_counting = target.is_none();
        let mut sent = Ok(());
        let seen = match target {
            None => look(&piece, &slice, filter, &choose, &mut feed.scratch, &mut Vec::new()),
            Some(target) => {
                let mut unit = unit_of(unit, &piece, &slice, filter, &choose, &mut feed.scratch);
                sent = target.sink.send(&mut unit, now);
                unit.seen
            }
        };
        let mut totals = std::mem::take(&mut feed.aside);
        totals.add(&Totals { read: slice.end - slice.start, times_ns: times.get(), ..counts(&seen) });
        if let Some(bucket) = rate {
            bucket.take(seen.passed);
        }
        let stretch = Stretch { end_point: slice.end, totals };
        if is_counting {
            let settled = Settled { delivered: seen.passed, ..Settled::default() };
            feed.in_flight.sent_and_settled(unit, settled, stretch);
        } else {
            feed.in_flight.sent(unit, seen.passed, stretch);
        }
        sent?;
        feed.advance(&mut self.totals);
        if self.failing.is_none() {
            self.moved_at = now;
        }
        Ok(())
    }

    fn settle(&mut self, report: Report, now: Instant) {
        if report.settled.is_empty() {
            return;
        }
        in_flight::settle(report, &mut self.feeds, |feed| &mut feed.in_flight);
        for feed in &mut self.feeds {
            feed.advance(&mut self.totals);
        }
        self.backoff.succeeded();
        self.failing = None;
        self.moved_at = now;
    }

    /// Everything that is not settled comes again; what only an operator can mend is not waited for.
    fn failed(&mut self, failed: SinkFailed, now: Instant) -> io::Result<()> {
        let wait = self.backoff.failed(failed.retry_after);
        let since = self.failing.as_ref().map_or(now, |failing| failing.since);
        if !failed.held {
            tracing::warn!(cause = "sink_failed", again_in_ms = wait.as_millis() as u64, "{failed}; it is tried again");
        }
        self.failing = Some(Failing { since, why: failed.message, held: failed.held });
        self.retry_at = Some(now + wait);
        if let Some(target) = &mut self.target {
            target.sink.reset();
        }
        for feed in &mut self.feeds {
            feed.rewind(self.node_id)?;
        }
        Ok(())
    }

    /// No more is sent; what is under way may still be settled.
    fn end(&mut self, now: Instant) {
        let Some(target) = &mut self.target else { return };
        let mut report = Report::default();
        if self.retry_at.is_none() {
            // What it does not settle is not counted, and the place to go on with is before it.
            let _ = target.sink.finish(now + target.stop_within, &mut report);
        }
        self.settle(report, now);
        if let Some(target) = &mut self.target {
            target.sink.reset();
        }
    }

    /// Takes in what has come since the logs were looked at. False: nothing has.
    fn extend(&mut self) -> io::Result<bool> {
        let mut more = false;
        for feed in &mut self.feeds {
            feed.source.extend(self.node_id)?;
            if feed.settled_point < feed.source.end.point {
                feed.source.seek(feed.settled_point, self.node_id)?;
                feed.is_at_end = false;
                more = true;
            }
        }
        if more {
            self.learn_windows()?;
        }
        Ok(more)
    }

    /// Finds the latest revisions among the windows that are to be read. Whenever they were received: an older one must not
    /// go because the latest is passed over.
    fn learn_windows(&mut self) -> io::Result<()> {
        let Replay { feeds, selection, filter, node_id, received_ns, .. } = self;
        for feed in feeds.iter_mut().filter(|feed| feed.source.log_id == AGGREGATE_LOG_ID) {
            let from = feed.source.next_point();
            feed.source.only_received(None);
            // From its beginning: of what was sent before a resume, later revisions may follow.
            feed.source.seek(if from == feed.begun_point { feed.source.first_point } else { from }, *node_id)?;
            while let Next { piece: Some(piece), from, to, .. } = feed.source.next()? {
                let learned = std::cell::RefCell::new(&mut *selection);
                let choose = |item: &Item<'_>| {
                    if let Item::Window(window) = item {
                        learned.borrow_mut().learn(window);
                    }
                    Choice::Outside
                };
                look(&piece, &(from..to), filter, &choose, &mut feed.scratch, &mut Vec::new());
                if self.stop.load(Ordering::Acquire) {
                    break;
                }
            }
            feed.source.only_received(received_ns.clone());
            feed.source.seek(from, *node_id)?;
        }
        Ok(())
    }
}

enum Trouble {
    Log(io::Error),
    Sink(SinkFailed),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        Trouble::Log(error)
    }
}

impl From<SinkFailed> for Trouble {
    fn from(failed: SinkFailed) -> Trouble {
        Trouble::Sink(failed)
    }
}

impl Feed {
    fn rewind(&mut self, node_id: u128) -> io::Result<()> {
        self.next = None;
        self.slices.clear();
        self.aside = Totals::default();
        self.in_flight.forget();
        self.is_at_end = false;
        self.source.seek(self.settled_point, node_id)
    }

    /// Counts the longest run of settled units.
    fn advance(&mut self, totals: &mut Totals) {
        while let Some((first, settled)) = self.in_flight.take_settled() {
            totals.add(&first.totals);
            totals.sent += settled.delivered;
            totals.rejected += settled.refused;
            totals.dead_lettered += settled.dead_lettered;
            self.settled_point = self.settled_point.max(first.end_point);
        }
    }
}

fn unit_of<'a>(
    id: UnitId,
    piece: &'a Piece,
    numbers: &Range<u64>,
    filter: &'a Filter,
    choose: &'a dyn Fn(&Item<'_>) -> Choice,
    scratch: &'a mut Scratch,
) -> Unit<'a> {
    Unit {
        id,
        log_id: piece.log_id,
        segment_id: piece.segment_id,
        piece,
        from: 0,
        first_point: numbers.start,
        filter,
        part: Some(Part { numbers: numbers.clone(), choose }),
        scratch,
        seen: Seen::default(),
    }
}

/// Counts without sending. `passing`: the numbers of what would be sent.
fn look(
    piece: &Piece,
    numbers: &Range<u64>,
    filter: &Filter,
    choose: &dyn Fn(&Item<'_>) -> Choice,
    scratch: &mut Scratch,
    passing: &mut Vec<u64>,
) -> Seen {
    let mut unit = unit_of(0, piece, numbers, filter, choose, scratch);
    let shown = unit.for_each(|item| {
        passing.push(match item {
            Item::Point(point) => point.number,
            Item::Window(window) => window.number,
        });
        Ok::<(), std::convert::Infallible>(())
    });
    match shown {
        Ok(()) => unit.seen,
    }
}

fn counts(seen: &Seen) -> Totals {
    Totals {
        filtered: seen.filtered,
        outside: seen.outside,
        superseded: seen.superseded,
        unreadable: seen.unreadable,
        ..Totals::default()
    }
}
