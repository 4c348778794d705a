//! The life of connections: accepted, fed, answered, timed out, let go.
//!
//! Everything that happens to a connection ends in [`Core::settle`], which decides what is asked of the ring next.

use std::os::fd::AsRawFd;

use crate::counters::Shed;
use crate::http::reply::{self, Fault, To};
use crate::http::{Assembler, Dialect, Expiry, Refusal, Routed, Step};
use crate::ring::{Io, Op, Payload, Token, TokenKind};

use super::caller::Caller;
use super::connection::{Connection, Key, Life};
use super::replies::{NOW, Replies};
use super::request::{Context, Now, Path, Served};
use super::{Accepting, Core};

/// A client that takes no byte of its answers for this long is cut off.
const SEND_TIMEOUT_NS: u64 = 30_000_000_000;
/// Accepts that failed (no descriptors left) are armed again after this.
const ACCEPT_PAUSE_NS: u64 = 100_000_000;

impl Core {
    pub(super) fn accepted(&mut self, io: &mut impl Io, listener: usize, result: i32, more: bool, now: Now) {
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

    pub(super) fn received(&mut self, io: &mut impl Io, key: Key, result: i32, more: bool, payload: Payload, now: Now) {
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
    pub(super) fn settle(&mut self, mut connection: Box<Connection>, now: Now) {
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
    pub(super) fn send_turn(&mut self, now: Now) {
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

    pub(super) fn sent(&mut self, key: Key, result: i32, payload: Payload, now: Now) {
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

    /// The kernel did not find what was to end. Either it has ended, or it was just being queued anew (a multishot
    /// operation after many rounds in a row) and goes on: then it is asked again.
    pub(super) fn cancel_missed(&mut self, key: Key, now: Now) {
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

    /// What time brings: deadlines, receives that waited for a buffer, listeners to be armed.
    pub(super) fn connections_turn(&mut self, io: &mut impl Io, now: Now) {
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
    }

    /// Draining: no more are taken from now on.
    pub(super) fn stop_accepting(&mut self) {
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

    /// Draining: ends those that are owed nothing; all of them when time is up.
    pub(super) fn end_connections(&mut self, overdue: bool, now: Now) {
        for key in self.connections.keys() {
            let Some(mut connection) = self.connections.take(key) else { continue };
            if connection.life == Life::Open && !connection.owes_replies() && connection.assembler.is_idle() || overdue
            {
                connection.life = Life::Closing;
            }
            self.settle(connection, now);
        }
    }
}
