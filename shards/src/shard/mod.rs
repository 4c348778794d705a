//! One core's world: sockets, requests, log, windows, driven by completions.
//!
//! [`Shard::turn`] is the loop's body: one enter, then what came of it, stage by stage. What becomes of a request is on
//! one screen in [`request::Path::serve`]; what becomes of a connection, in `connections`. A 2xx
//! that stands for points leaves through one place only, [`Core::acknowledge`], which runs when a flush has completed.

pub mod caller;
mod commits;
mod connection;
mod connections;
mod folding;
pub mod replies;
pub mod request;
pub mod settings;
mod wheel;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::counters::Distributions;
use crate::decode::json::JsonDecoder;
use crate::decode::line::LineDecoder;
use crate::http::Inflater;
use crate::limiter;
use crate::log::{LogEvent, LogState, LogWriter, OpKind};
use crate::point::{Batch, Rejections};
use crate::ring::{Completion, DiskIo, Io, Op, Payload, Token, TokenKind};
use crate::series::SeriesTable;
use crate::window::protocol::StampClock;

use caller::Callers;
use commits::Commits;
use connection::{Key, Table};
use folding::Folding;
use request::{Now, Path, SeriesNames};
use settings::{Listener, LogNotice, Ports, Settings, Shared};
use wheel::Wheel;

/// Housekeeping (limiter leases, idle series, gauges) this often.
const TICK_NS: u64 = 50_000_000;
const PUBLISH_EVERY_NS: u64 = 500_000_000;
/// The longest sleep: marks are due even when nothing happens.
const SLEEP_NS: u64 = 100_000_000;
/// The wake operation keeps its buffer in the ring by this index, beside those of `ReceiveInto`, which nobody uses.
const WAKE_INDEX: u32 = 0;
/// A commit that waits for a segment for this long: the disk cannot give one, and clients are told to come again.
/// Making a segment takes less on any disk that works (64 MiB of zeros).
const SEGMENT_PATIENCE_NS: u64 = 1_000_000_000;
/// Clients whose leases a shard holds at a time; others take theirs a request at a time.
const LEASES_MAX: usize = 65_536;
/// Series looked at for idleness each tick.
const EVICT_BUDGET: usize = 2048;

/// Built with the planted fault `fault-without-flush` (Cargo.toml): acknowledges what was never flushed.
pub const FLUSHES_LEFT_OUT: bool = cfg!(feature = "fault-without-flush");

pub struct Shard<I: Io> {
    io: I,
    core: Core,
}

/// Everything but the world.
struct Core {
    settings: Arc<Settings>,
    shared: Arc<Shared>,
    ports: Ports,
    listeners: Vec<Listener>,
    accepting: Vec<Accepting>,
    connections: Table,
    path: Path,
    commits: Commits,
    folding: Folding,
    clock: StampClock,
    wheel: Wheel<Key>,
    distributions: Distributions,

    /// What the stages want of the world, pushed at the end of the turn
    ops: Vec<(Token, Op)>,
    /// Connections with something to send, each once
    dirty: Vec<Key>,
    /// Connections that wait for a free ring buffer
    starved: Vec<Key>,
    due: Vec<Key>,

    log_op: Option<LogOpUnderWay>,
    /// Since when a commit waits for a segment
    log_waits_since_ns: Option<u64>,
    commit_begun_ns: u64,
    opened_segment: u64,
    next_tick_ns: u64,
    next_publish_ns: u64,
    began_ns: u64,
    draining_since_ns: Option<u64>,
    fold_hurry: bool,
    log_sealed: bool,
    accepts_stopped: bool,
    drained: bool,
}

#[derive(Clone, Copy)]
struct LogOpUnderWay {
    id: u64,
    bytes: u32,
    since_ns: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Accepting {
    Armed,
    /// To be armed again then
    Paused(u64),
    Stopped,
}

impl<I: Io> Shard<I> {
    /// `log` is recovered; `floor_ns` is F, from the aggregate log or the horizon.
    pub fn new(
        io: I,
        settings: Arc<Settings>,
        shared: Arc<Shared>,
        ports: Ports,
        listeners: Vec<Listener>,
        log: LogWriter,
        floor_ns: i64,
    ) -> std::io::Result<Shard<I>> {
        let now_ns = io.now_ns();
        let static_tags: Vec<(&str, &str)> =
            settings.static_tags.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let mut series = SeriesTable::new(settings.seeds, settings.series, &static_tags);
        let callers = Callers::new(&settings, &mut series);
        let folding = Folding::new(&settings, ports.reducer.clone(), log.durable_end(), floor_ns);
        let core = Core {
            accepting: vec![Accepting::Paused(0); listeners.len()],
            path: Path {
                callers,
                limiter: limiter::Local::new(shared.limiter.clone(), LEASES_MAX),
                series,
                log,
                log_stalled: false,
                inflater: Inflater::new()?,
                lines: LineDecoder::default(),
                json: JsonDecoder::new(),
                batch: Batch::default(),
                rejected: Rejections::default(),
            },
            commits: Commits::default(),
            folding,
            clock: StampClock::default(),
            wheel: Wheel::new(now_ns),
            distributions: Distributions::new(),
            connections: Table::default(),
            ops: Vec::with_capacity(1024),
            dirty: Vec::new(),
            starved: Vec::new(),
            due: Vec::new(),
            log_op: None,
            log_waits_since_ns: None,
            commit_begun_ns: 0,
            opened_segment: 0,
            next_tick_ns: 0,
            next_publish_ns: 0,
            began_ns: now_ns,
            draining_since_ns: None,
            fold_hurry: false,
            log_sealed: false,
            accepts_stopped: false,
            drained: false,
            settings,
            shared,
            ports,
            listeners,
        };
        Ok(Shard { io, core })
    }

    /// Serves until the process drains and everything owed is done.
    pub fn run(&mut self) {
        let eventfd = self.core.ports.wake.fd();
        let token = Token::new(TokenKind::Wake, 0, WAKE_INDEX);
        self.io.push(token, Op::Wake { eventfd, bytes: Vec::with_capacity(8) });
        let mut completions = Vec::with_capacity(1024);
        while !self.core.drained {
            self.turn(&mut completions);
        }
        self.core.path.limiter.give_back_all();
        self.core.publish();
    }

    /// One round: wait, take in what completed, move each stage on, queue what they want next.
    fn turn(&mut self, completions: &mut Vec<Completion>) {
        let Shard { io, core } = self;
        io.turn(core.deadline_ns(io.now_ns()), completions);
        core.ports.counters.turns.add(1);
        let now = core.now(io.now_ns());
        core.take_segments();
        for completion in completions.drain(..) {
            core.complete(io, completion, now);
        }
        core.log_turn(now);
        core.acknowledge(now);
        core.fold_turn(io, now);
        core.send_turn(now);
        core.time_turn(io, now);
        for (token, op) in core.ops.drain(..) {
            io.push(token, op);
        }
    }
}

impl Core {
    fn deadline_ns(&self, now_ns: u64) -> u64 {
        // Timeouts render replies after the turn's sends.
        if self.fold_hurry || !self.dirty.is_empty() {
            return 0;
        }
        let wheel_ns = if self.connections.live() > 0 { self.wheel.next_ns() } else { u64::MAX };
        self.next_tick_ns.min(wheel_ns).min(now_ns + SLEEP_NS)
    }

    fn now(&mut self, monotonic_ns: u64) -> Now {
        let stamp_ns = self.clock.now(self.shared.clock.load(Ordering::Relaxed), monotonic_ns as i64);
        Now { monotonic_ns, stamp_ns }
    }

    fn complete(&mut self, io: &mut impl Io, completion: Completion, now: Now) {
        let Completion { token, result, more, payload } = completion;
        let key = Key { index: token.index, generation: token.generation };
        match token.kind {
            TokenKind::Accept => self.accepted(io, token.index as usize, result, more, now),
            TokenKind::Receive => self.received(io, key, result, more, payload, now),
            TokenKind::Send => self.sent(key, result, payload, now),
            TokenKind::LogWrite | TokenKind::LogFlush => self.log_done(token, result, now),
            TokenKind::LogRead => {
                let (folding, mut turn) = self.folding_turn(io, now);
                folding.read_done(result, &mut turn);
            }
            TokenKind::Wake => {
                if let Payload::Bytes(mut bytes) = payload {
                    bytes.clear();
                    self.ops.push((token, Op::Wake { eventfd: self.ports.wake.fd(), bytes }));
                }
            }
            TokenKind::Shutdown => {
                if let Some(mut connection) = self.connections.take(key) {
                    connection.shutting_down = false;
                    self.settle(connection, now);
                }
            }
            TokenKind::Cancel if result < 0 => self.cancel_missed(key, now),
            TokenKind::Close | TokenKind::Cancel | TokenKind::ReceiveInto => {}
        }
    }

    // --- time

    fn time_turn(&mut self, io: &mut impl Io, now: Now) {
        let now_ns = now.monotonic_ns;
        self.connections_turn(io, now);
        if let Some(op) = self.log_op
            && now_ns > op.since_ns + self.settings.io_deadline_ns
        {
            self.log_op = None;
            let event = self.path.log.abort_hung(op.id);
            self.log_event(event, now);
        }
        if now_ns >= self.next_tick_ns {
            self.next_tick_ns = now_ns + TICK_NS;
            self.tick(now);
        }
        self.drain(now);
    }

    fn tick(&mut self, now: Now) {
        let Core { path, folding, commits, settings, ports, .. } = self;
        path.limiter.tick(now.monotonic_ns);
        let now_s = now.second();
        // Series idle for this long: nothing that is still to be folded or named may mean them. (Not "everything is
        // folded": under load that is never so, and nothing would ever be evicted.)
        let oldest_s = commits.oldest_unfolded_ns().map_or(now_s, |ns| Now { stamp_ns: ns, ..now }.second());
        if now_s.saturating_sub(oldest_s) < settings.series_idle_after_s {
            let generation = u64::from(path.log.generation());
            path.series.segment_closed(u64::from(path.log.settled_generation()).saturating_sub(1));
            let mut evicted = Vec::new();
            let fold = folding.fold_ref();
            path.series.evict_idle(
                now_s,
                settings.series_idle_after_s,
                EVICT_BUDGET,
                generation,
                |id| !fold.has_open(id),
                |id, _| evicted.push(id),
            );
            for id in evicted {
                folding.forget(id);
            }
            path.callers.forget_idle(now_s, settings.series_idle_after_s, &path.series);
        }
        let counters = &ports.counters;
        counters.series_live.set(path.series.live() as u64);
        counters.series_created.set(path.series.counters().created);
        counters.series_evicted.set(path.series.counters().evicted);
        counters.clients_live.set(path.callers.live() as u64);
        counters.log_unflushed_bytes.set(path.log.undurable_bytes() as u64);
        counters.log_durable_block.set(path.log.durable_commit().0);
        counters.log_end_block.set(path.log.last_commit().0);
        counters.log_unavailable.set(u64::from(path.is_log_unavailable()));
        counters.open_points.set(self.folding.fold_ref().open_points());
        if now.monotonic_ns >= self.next_publish_ns {
            self.next_publish_ns = now.monotonic_ns + PUBLISH_EVERY_NS;
            self.publish();
        }
    }

    fn publish(&mut self) {
        self.ports.counters.open_cells.set(self.folding.fold_ref().open_cells() as u64);
        self.ports.counters.publish(&self.distributions);
    }

    // --- log

    fn take_segments(&mut self) {
        self.path.log.set_bounded(self.ports.no_more_segments.load(Ordering::Relaxed));
        while let Some(segment) = self.ports.segments.pop() {
            if let Err(refused) = self.path.log.offer_segment(segment) {
                tracing::error!(path = %refused.path.display(), "a prepared segment does not fit the log; it is left unused");
            }
        }
    }

    /// Queues the log's next operation, if it has one and none is under way.
    fn log_turn(&mut self, now: Now) {
        if self.log_op.is_some() || self.holds_commit(now) {
            return;
        }
        let Path { log, series, .. } = &mut self.path;
        let next = log.next_op(&SeriesNames(series));
        // The disk is not asked when there is no segment to write to, so its deadline cannot tell.
        let waits = next.is_none() && log.state() == LogState::WaitingForSegment && !log.is_idle();
        self.log_waits_since_ns = waits.then(|| self.log_waits_since_ns.unwrap_or(now.monotonic_ns));
        self.path.log_stalled =
            self.log_waits_since_ns.is_some_and(|since_ns| now.monotonic_ns >= since_ns + SEGMENT_PATIENCE_NS);
        let Some(op) = next else { return };
        let (kind, what, bytes) = match op.kind {
            #[cfg(feature = "fault-without-flush")]
            OpKind::Flush => {
                let event = self.path.log.complete(op.id, 0);
                self.log_event(event, now);
                return self.log_turn(now);
            }
            OpKind::Write { offset, ptr, len, dsync } => {
                let dsync = dsync && !FLUSHES_LEFT_OUT;
                self.commit_begun_ns = now.monotonic_ns;
                let pointer = ptr.cast_mut();
                let io = DiskIo { file: op.fd, offset_bytes: offset, pointer, len_bytes: len, dsync };
                (TokenKind::LogWrite, Op::Write(io), len)
            }
            #[cfg(not(feature = "fault-without-flush"))]
            OpKind::Flush => (TokenKind::LogFlush, Op::Flush { file: op.fd }, 0),
        };
        if op.segment_id != self.opened_segment {
            self.opened_segment = op.segment_id;
            self.ports.counters.log_segment.set(op.segment_id);
            let notice = LogNotice::Opened { segment_id: op.segment_id, stamp_ns: now.stamp_ns };
            // The queue is longer than segments can be opened between two looks at it.
            let _ = self.ports.notices.push(notice);
        }
        self.log_op = Some(LogOpUnderWay { id: op.id, bytes, since_ns: now.monotonic_ns });
        self.ops.push((Token::new(kind, (op.id >> 32) as u32, op.id as u32), what));
    }

    /// With every listener acknowledging from memory, commits are gathered for a moment: fewer, larger flushes.
    fn holds_commit(&self, now: Now) -> bool {
        if self.draining_since_ns.is_some() || !self.commits.is_parked_empty() {
            return false;
        }
        let gathering = self.settings.memory_flush_within_ns / 2;
        self.listeners.iter().all(|listener| listener.memory)
            && self.path.log.undurable_bytes() < self.settings.unflushed_bytes_max / 8
            && self.path.log.state() == LogState::Serving
            && self.commits.oldest_undurable_since_ns().is_some_and(|since| now.monotonic_ns < since + gathering)
    }

    fn log_done(&mut self, token: Token, result: i32, now: Now) {
        let id = (u64::from(token.generation) << 32) | u64::from(token.index);
        let ours = self.log_op.is_some_and(|op| op.id == id);
        if ours && let Some(op) = self.log_op.take() {
            if result > 0 {
                self.ports.counters.log_written_bytes.add(result as u64);
            }
            if op.bytes > 0 {
                self.distributions.commit_bytes.saturating_record(u64::from(op.bytes));
            }
        }
        let event = self.path.log.complete(id, result);
        self.log_event(event, now);
        // Straight on to the flush, or to the next commit: the disk does not wait for the rest of the turn.
        self.log_turn(now);
    }

    fn log_event(&mut self, event: LogEvent, now: Now) {
        match event {
            LogEvent::Nothing => {}
            LogEvent::Durable { upto } => {
                let counters = &self.ports.counters;
                let points = self.commits.durable(upto.0, counters);
                counters.commits.add(1);
                self.distributions.commit_points.saturating_record(points.max(1));
                let us = now.monotonic_ns.saturating_sub(self.commit_begun_ns) / 1000;
                self.distributions.flush_us.saturating_record(us.max(1));
            }
            LogEvent::Failed { segment_id, path, errno } => {
                self.ports.counters.commit_failures.add(1);
                let error = match errno {
                    0 => "a short write, or no answer within the deadline".to_string(),
                    errno => std::io::Error::from_raw_os_error(errno).to_string(),
                };
                tracing::error!(
                    cause = "log_failed",
                    segment_id,
                    path = %path.display(),
                    error,
                    "the log's disk failed: nothing is acknowledged until a new segment takes what was not flushed"
                );
            }
        }
    }

    /// The one place where a reply that stands for points may leave: its commit is on disk.
    fn acknowledge(&mut self, now: Now) {
        let durable = self.commits.durable_commit();
        while let Some((key, served_ns)) = self.commits.unpark() {
            let us = now.monotonic_ns.saturating_sub(served_ns) / 1000;
            self.distributions.acknowledge_us.saturating_record(us.max(1));
            let Some(mut connection) = self.connections.take(key) else { continue };
            connection.replies.release(durable);
            if connection.replies.can_send() && connection.sending_bytes == 0 && !connection.dirty {
                connection.dirty = true;
                self.dirty.push(key);
            }
            self.connections.put(connection);
        }
    }

    // --- windows

    fn folding_turn<'a, I: Io>(&'a mut self, io: &'a mut I, now: Now) -> (&'a mut Folding, folding::Turn<'a, I>) {
        let turn = folding::Turn {
            log: &mut self.path.log,
            series: &mut self.path.series,
            commits: &mut self.commits,
            io,
            ops: &mut self.ops,
            shared: &self.shared,
            counters: &self.ports.counters,
            notices: &self.ports.notices,
            clock_ns: now.stamp_ns,
            now_ns: now.monotonic_ns,
        };
        (&mut self.folding, turn)
    }

    fn fold_turn(&mut self, io: &mut impl Io, now: Now) {
        let (folding, mut turn) = self.folding_turn(io, now);
        self.fold_hurry = folding.turn(&mut turn);
    }

    // --- stopping

    /// The order of a stop: accept what already waits, serve no more points, answer what is parked, flush, fold, say
    /// so. Open windows stay in the log.
    fn drain(&mut self, now: Now) {
        let now_ns = now.monotonic_ns;
        let Some(since_ns) = self.draining_since_ns else {
            if self.shared.draining.load(Ordering::Relaxed) {
                self.draining_since_ns = Some(now_ns);
            }
            return;
        };
        let overdue = now_ns > since_ns + self.settings.drain_within_ns;
        // Clients have a moment to hear "503, come again" on the connection they have.
        let patience_ns = since_ns + 200_000_000;
        // New connections are taken until then, and told the same: what is left in the backlog at the end is reset.
        if now_ns > patience_ns && !self.accepts_stopped {
            self.accepts_stopped = true;
            self.stop_accepting();
        }
        if now_ns > patience_ns && self.connections.live() > 0 {
            self.end_connections(overdue, now);
        }
        let quiet = self.accepting.iter().all(|a| *a == Accepting::Stopped)
            && self.connections.live() == 0
            && self.path.log.is_idle()
            && self.commits.folded_commit() == self.path.log.last_commit().0;
        // Last of all, so that what it vouches for is complete. A log that fails now has nothing to vouch for.
        if quiet && !self.log_sealed {
            self.log_sealed = true;
            if self.path.log.append_seal(now.stamp_ns) {
                self.log_turn(now);
                return;
            }
        }
        let quiet = quiet || self.log_sealed && self.path.log.state() == LogState::Failed;
        // A disk that does not come back must not hold the process: what is not durable was not acknowledged.
        let said = (quiet || overdue) && self.folding.say_drained();
        if said || overdue {
            self.drained = true;
            let points = self.commits.lost(&self.ports.counters);
            if points > 0 {
                tracing::error!(points, "points acknowledged from memory are lost: their flush did not end in time");
            }
        }
    }
}
