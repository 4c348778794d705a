//! One core's world: sockets, requests, log, windows, driven by completions.
//!
//! [`Shard::turn`] is the loop's body: one enter, then what came of it, stage by stage. What becomes of a request is on
//! one screen in [`request::Path::serve`]. A 2xx that stands for points leaves through one place only,
//! [`Core::acknowledge`], which runs when a flush has completed.

pub mod caller;
mod commits;
mod connection;
mod folding;
pub mod replies;
pub mod request;
pub mod settings;
mod wheel;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::counters::{Distributions, Shed};
use crate::decode::json::JsonDecoder;
use crate::decode::line::LineDecoder;
use crate::http::reply::{self, Fault, To};
use crate::http::{Assembler, Dialect, Expiry, Inflater, Refusal, Routed, Step};
use crate::limiter;
use crate::log::{LogEvent, LogState, LogWriter, OpKind};
use crate::point::{Batch, Rejections};
use crate::ring::{Completion, DiskIo, Io, Op, Payload, Token, TokenKind};
use crate::series::SeriesTable;
use crate::window::protocol::StampClock;

use caller::{Caller, Callers};
use commits::Commits;
use connection::{Connection, Key, Life, Table};
use folding::Folding;
use replies::{NOW, Replies};
use request::{Context, Now, Path, SeriesNames, Served};
use settings::{Listener, LogNotice, Ports, Settings, Shared};
use wheel::Wheel;

/// Housekeeping (limiter leases, idle series, gauges) this often.
const TICK_NS: u64 = 50_000_000;
const PUBLISH_EVERY_NS: u64 = 500_000_000;
/// The longest sleep: marks are due even when nothing happens.
const SLEEP_NS: u64 = 100_000_000;
/// A client that takes no byte of its answers for this long is cut off.
const SEND_TIMEOUT_NS: u64 = 30_000_000_000;
/// Accepts that failed (no descriptors left) are armed again after this.
const ACCEPT_PAUSE_NS: u64 = 100_000_000;
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

    /// The kernel did not find what was to end. Either it has ended, or it was just being queued anew (a multishot
    /// operation after many rounds in a row) and goes on: then it is asked again.
    fn cancel_missed(&mut self, key: Key, now: Now) {
        if let Some(mut connection) = self.connections.take(key) {
            connection.cancelling = false;
            connection.cancelling_send = false;
            self.settle(connection, now);
        } else if key.generation == 0
            && self.draining_since_ns.is_some()
            && self.accepting.get(key.index as usize) == Some(&Accepting::Armed)
        {
            let target = Token::new(TokenKind::Accept, 0, key.index);
            self.ops.push((Token::new(TokenKind::Cancel, 0, key.index), Op::Cancel { target }));
        }
    }

    // --- connections

    fn accepted(&mut self, io: &mut impl Io, listener: usize, result: i32, more: bool, now: Now) {
        if !more && self.accepting[listener] == Accepting::Armed {
            let pause_ns = if result < 0 { ACCEPT_PAUSE_NS } else { 0 };
            self.accepting[listener] = if self.draining_since_ns.is_some() {
                Accepting::Stopped
            } else {
                Accepting::Paused(now.monotonic_ns + pause_ns)
            };
            if result < 0 && result != -libc::ECANCELED {
                let error = std::io::Error::from_raw_os_error(-result);
                tracing::warn!(cause = "accept", %error, "connections cannot be accepted; trying again");
            }
        }
        if result < 0 {
            return;
        }
        let (socket, counters) = (result, &self.ports.counters);
        let admitted = io.peer(socket).filter(|&peer| {
            let room = self.shared.connect(peer, &self.settings);
            if !room {
                counters.connections_refused.add(1);
                counters.shed[Shed::Connections as usize].add(1);
            }
            room
        });
        let Some(peer) = admitted else {
            self.ops.push((Token::new(TokenKind::Close, 0, 0), Op::Close { socket }));
            return;
        };
        counters.connections_accepted.add(1);
        let key = self.connections.insert(|key| Connection {
            key,
            socket,
            listener: listener as u32,
            peer,
            assembler: Assembler::new(now.monotonic_ns),
            replies: Replies::default(),
            pending: Vec::new(),
            caller: Caller::new(peer),
            life: Life::Open,
            receiving: true,
            cancelling: false,
            cancelling_send: false,
            shutting_down: false,
            ended: false,
            starved: false,
            sending_bytes: 0,
            sending_since_ns: 0,
            spare: Vec::new(),
            timer_ns: u64::MAX,
            dirty: false,
        });
        self.ops.push((key.token(TokenKind::Receive), Op::Receive { socket }));
        if let Some(connection) = self.connections.take(key) {
            self.settle(connection, now);
        }
    }

    fn received(&mut self, io: &mut impl Io, key: Key, result: i32, more: bool, payload: Payload, now: Now) {
        let Some(mut connection) = self.connections.take(key) else {
            if let Payload::Buffer(id) = payload {
                io.release(id);
            }
            return;
        };
        connection.receiving = more;
        connection.cancelling &= more;
        if let Payload::Buffer(id) = payload {
            let bytes = io.buffer(id, result.max(0) as usize);
            self.ports.counters.received_bytes.add(bytes.len() as u64);
            self.feed(&mut connection, bytes, now);
            io.release(id);
        }
        if !more {
            if result == -libc::ENOBUFS {
                self.ports.counters.receive_buffers_exhausted.add(1);
                connection.starved = true;
                self.starved.push(key);
            } else if result == 0 {
                // The client has sent all it will; answers to what it sent still go out.
                connection.ended = true;
            } else if result < 0 && result != -libc::ECANCELED {
                connection.life = Life::Closing;
            }
        }
        self.settle(connection, now);
    }

    /// Bytes of a client become requests, requests are served. Stops while too many answers are unread: the rest
    /// waits in `pending`, and the receive is cancelled.
    fn feed(&mut self, connection: &mut Connection, mut input: &[u8], now: Now) {
        if connection.life == Life::Ending {
            // More than the client may send: it must still be able to read what it was answered.
            connection.assembler.refuse(now.monotonic_ns);
            connection.life = Life::Refusing;
        }
        if connection.life == Life::Closing {
            return;
        }
        if !connection.pending.is_empty() || connection.unread_bytes() > self.settings.unread_reply_bytes_max {
            connection.pending.extend_from_slice(input);
            return;
        }
        let settings = self.settings.clone();
        loop {
            let bounds = &settings.bounds;
            match connection.assembler.push(input, now.monotonic_ns, bounds) {
                Step::NeedMore { .. } => return,
                Step::Head { consumed, send_continue } => {
                    input = &input[consumed..];
                    let (path, cx, head, replies) = self.request_parts(connection, now);
                    if path.refuse_early(cx, head, replies) {
                        connection.assembler.refuse(now.monotonic_ns);
                        connection.life = Life::Refusing;
                    } else if send_continue {
                        connection.replies.push(NOW, |out| out.extend_from_slice(reply::CONTINUE));
                    }
                }
                Step::Request { consumed, body } => {
                    let Connection { assembler, replies, caller, listener, key, .. } = connection;
                    let cx = Context {
                        settings: &settings,
                        counters: &self.ports.counters,
                        listener: &self.listeners[*listener as usize],
                        caller,
                        now,
                        draining: self.draining_since_ns.is_some(),
                        up_s: (now.monotonic_ns - self.began_ns) / 1_000_000_000,
                    };
                    let head = assembler.head();
                    let served = self.path.serve(cx, head, assembler.body(&body, input), replies);
                    let ends = !head.keep_alive() || cx.draining;
                    if let Served::Appended { commit, waits, protocol, points } = served {
                        self.commits.appended(commit, now.stamp_ns, protocol, points, waits, now.monotonic_ns);
                        if waits {
                            self.commits.park(commit, *key, now.monotonic_ns);
                        }
                    }
                    input = &input[consumed..];
                    if ends {
                        // Closed with bytes unread, a socket resets, and the client may lose its answer.
                        connection.life = Life::Ending;
                        if !input.is_empty() {
                            connection.assembler.refuse(now.monotonic_ns);
                            connection.life = Life::Refusing;
                        }
                        return;
                    }
                    if connection.unread_bytes() > settings.unread_reply_bytes_max {
                        connection.pending.extend_from_slice(input);
                        return;
                    }
                }
                Step::Refuse(refusal) => {
                    self.refuse(connection, &refusal);
                    // What came with it is part of what is thrown away.
                    return;
                }
                Step::Close => {
                    // The answer first: while it is owed, what comes is thrown away without a bound but its time.
                    if connection.life != Life::Refusing {
                        connection.life = Life::Closing;
                    }
                    return;
                }
            }
        }
    }

    fn request_parts<'a>(
        &'a mut self,
        connection: &'a mut Connection,
        now: Now,
    ) -> (&'a mut Path, Context<'a>, &'a crate::http::Head, &'a mut Replies) {
        let Connection { assembler, replies, caller, listener, .. } = connection;
        let cx = Context {
            settings: &self.settings,
            counters: &self.ports.counters,
            listener: &self.listeners[*listener as usize],
            caller,
            now,
            draining: self.draining_since_ns.is_some(),
            up_s: (now.monotonic_ns - self.began_ns) / 1_000_000_000,
        };
        (&mut self.path, cx, assembler.head(), replies)
    }

    /// The assembler refused what came: answer in the dialect of the route, if there is one, then half-close.
    fn refuse(&mut self, connection: &mut Connection, refusal: &Refusal) {
        let router = &self.listeners[connection.listener as usize].router;
        let head = connection.assembler.refused_head();
        let (route, dialect) = match head.map(|head| router.route(head.method(), head.path())) {
            None => (None, Dialect::Native),
            Some(Routed::To(route) | Routed::WrongMethod(route)) => (Some(route), route.dialect()),
            Some(Routed::Unknown(dialect)) => (None, dialect),
        };
        let to = To { close: true, ..head.map(To::of).unwrap_or_default() };
        let fault = Fault::from(*refusal);
        connection.replies.push(NOW, |out| reply::error(out, to, dialect, &fault));
        self.ports.counters.count_request(route.map_or(crate::http::Route::ALL.len(), |r| r as usize), fault.status);
        if fault.status == 408 {
            self.ports.counters.connections_timed_out.add(1);
        }
        connection.life = Life::Refusing;
    }

    /// After anything happened to a connection: sends, arms, ends, and puts it back, or lets it go.
    fn settle(&mut self, mut connection: Box<Connection>, now: Now) {
        let c = &mut *connection;
        let key = c.key;
        if c.life == Life::Open && c.ended && !c.owes_replies() && c.pending.is_empty() {
            c.life = Life::Closing;
        }
        if matches!(c.life, Life::Ending | Life::Refusing) && !c.owes_replies() {
            if c.life == Life::Ending || c.ended {
                c.life = Life::Closing;
            } else {
                // Half-close, so that the client reads the answer and not a reset, and throw away what it still sends.
                self.ops.push((key.token(TokenKind::Shutdown), Op::Shutdown { socket: c.socket }));
                c.shutting_down = true;
                c.assembler.refuse(now.monotonic_ns);
                c.life = Life::Draining;
            }
        }
        if c.life == Life::Draining && c.ended {
            c.life = Life::Closing;
        }
        if c.life == Life::Closing {
            if c.receiving && !c.cancelling {
                c.cancelling = true;
                let target = key.token(TokenKind::Receive);
                self.ops.push((key.token(TokenKind::Cancel), Op::Cancel { target }));
            }
            if c.sending_bytes > 0 && !c.cancelling_send {
                c.cancelling_send = true;
                let target = key.token(TokenKind::Send);
                self.ops.push((key.token(TokenKind::Cancel), Op::Cancel { target }));
            }
            if c.is_quiet() {
                self.ops.push((key.token(TokenKind::Close), Op::Close { socket: c.socket }));
                self.shared.disconnect(c.peer);
                self.ports.counters.connections_closed.add(1);
                self.connections.free(connection);
                return;
            }
        } else {
            let paused = c.pending.len() > self.settings.pipelined_bytes_max
                || c.unread_bytes() > self.settings.unread_reply_bytes_max;
            if paused && c.receiving && !c.cancelling {
                c.cancelling = true;
                self.ports.counters.receive_paused.add(1);
                let target = key.token(TokenKind::Receive);
                self.ops.push((key.token(TokenKind::Cancel), Op::Cancel { target }));
            }
            if !paused && !c.receiving && !c.ended && !c.starved {
                c.receiving = true;
                self.ops.push((key.token(TokenKind::Receive), Op::Receive { socket: c.socket }));
            }
            if c.replies.can_send() && c.sending_bytes == 0 && !c.dirty {
                c.dirty = true;
                self.dirty.push(key);
            }
            self.set_timer(c);
        }
        self.connections.put(connection);
    }

    /// Hands what may leave to the ring: one send a connection a turn.
    fn send_turn(&mut self, now: Now) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for key in dirty.drain(..) {
            let Some(mut c) = self.connections.take(key) else { continue };
            c.dirty = false;
            if c.sending_bytes == 0 && c.replies.can_send() && c.life != Life::Closing {
                let mut bytes = std::mem::take(&mut c.spare);
                c.replies.take(&mut bytes);
                c.sending_bytes = bytes.len();
                c.sending_since_ns = now.monotonic_ns;
                self.ops.push((key.token(TokenKind::Send), Op::Send { socket: c.socket, bytes, from: 0 }));
                self.set_timer(&mut c);
            }
            self.connections.put(c);
        }
        self.dirty = dirty;
    }

    fn sent(&mut self, key: Key, result: i32, payload: Payload, now: Now) {
        let Some(mut connection) = self.connections.take(key) else { return };
        let c = &mut *connection;
        c.cancelling_send = false;
        if let Payload::Bytes(mut bytes) = payload {
            let sent = result.max(0) as usize;
            self.ports.counters.sent_bytes.add(sent as u64);
            if result <= 0 {
                c.life = Life::Closing;
            } else if sent < bytes.len() && c.life != Life::Closing {
                // A signal or a cancel cut it short: the rest goes first.
                bytes.drain(..sent);
                c.sending_bytes = bytes.len();
                c.sending_since_ns = now.monotonic_ns;
                self.ops.push((key.token(TokenKind::Send), Op::Send { socket: c.socket, bytes, from: 0 }));
                self.connections.put(connection);
                return;
            }
            c.sending_bytes = 0;
            bytes.clear();
            // A burst of answers must not stay as memory of an idle connection.
            c.spare = if bytes.capacity() <= 16 << 10 { bytes } else { Vec::new() };
        }
        if !c.owes_replies() {
            c.assembler.replied(now.monotonic_ns);
        }
        if !c.pending.is_empty() && c.unread_bytes() <= self.settings.unread_reply_bytes_max {
            let pending = std::mem::take(&mut c.pending);
            self.feed(&mut connection, &pending, now);
        }
        self.settle(connection, now);
    }

    // --- time

    fn connection_deadline_ns(&self, c: &Connection) -> u64 {
        if c.sending_bytes > 0 {
            return c.sending_since_ns + SEND_TIMEOUT_NS;
        }
        if c.owes_replies() {
            return u64::MAX;
        }
        c.assembler.deadline_ns(&self.settings.bounds)
    }

    /// Sees to it that the wheel brings this connection up no later than its deadline.
    fn set_timer(&mut self, c: &mut Connection) {
        let deadline_ns = self.connection_deadline_ns(c);
        if deadline_ns < c.timer_ns {
            c.timer_ns = deadline_ns;
            self.wheel.add(deadline_ns, c.key);
        }
    }

    fn expire(&mut self, key: Key, now: Now) {
        let Some(mut connection) = self.connections.take(key) else { return };
        let c = &mut *connection;
        // Another entry stands for it by now; renewed, this one would go round beside that one for ever.
        if c.timer_ns > now.monotonic_ns || c.life == Life::Closing {
            self.connections.put(connection);
            return;
        }
        c.timer_ns = u64::MAX;
        if c.sending_bytes > 0 {
            if now.monotonic_ns >= c.sending_since_ns + SEND_TIMEOUT_NS {
                self.ports.counters.connections_timed_out.add(1);
                c.life = Life::Closing;
            }
        } else if !c.owes_replies() {
            match c.assembler.expire(now.monotonic_ns, &self.settings.bounds) {
                Expiry::Until(_) => {}
                Expiry::Close => {
                    self.ports.counters.connections_timed_out.add(1);
                    c.life = Life::Closing;
                }
                Expiry::Refuse(refusal) => self.refuse(&mut connection, &refusal),
            }
        }
        self.settle(connection, now);
    }

    fn time_turn(&mut self, io: &mut impl Io, now: Now) {
        let now_ns = now.monotonic_ns;
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(now_ns, &mut due);
        for key in due.drain(..) {
            self.expire(key, now);
        }
        self.due = due;

        if !self.starved.is_empty() && io.buffers_free() > 0 {
            for key in std::mem::take(&mut self.starved) {
                if let Some(mut connection) = self.connections.take(key) {
                    connection.starved = false;
                    self.settle(connection, now);
                }
            }
        }
        for listener in 0..self.listeners.len() {
            if let Accepting::Paused(until_ns) = self.accepting[listener]
                && until_ns <= now_ns
                && self.draining_since_ns.is_none()
            {
                self.accepting[listener] = Accepting::Armed;
                let op = Op::Accept { listener: self.listeners[listener].socket.as_raw_fd() };
                self.ops.push((Token::new(TokenKind::Accept, 0, listener as u32), op));
            }
        }
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
            for (n, accepting) in self.accepting.iter_mut().enumerate() {
                match *accepting {
                    Accepting::Armed => {
                        let target = Token::new(TokenKind::Accept, 0, n as u32);
                        self.ops.push((Token::new(TokenKind::Cancel, 0, n as u32), Op::Cancel { target }));
                    }
                    _ => *accepting = Accepting::Stopped,
                }
            }
        }
        if now_ns > patience_ns && self.connections.live() > 0 {
            for key in self.connections.keys() {
                let Some(mut connection) = self.connections.take(key) else { continue };
                if connection.life == Life::Open && !connection.owes_replies() && connection.assembler.is_idle()
                    || overdue
                {
                    connection.life = Life::Closing;
                }
                self.settle(connection, now);
            }
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
