//! Connections: opening, filling, reading, closing.

use super::super::connection::{self, State};
use super::super::request::{NOT_SENT, Request, What};
use super::super::stats::Loss;
use super::*;
use crate::plan::Identity;
use crate::ring::{Completion, Kind, Token};
use crate::workload;

/// Connections opened at a time before the run: a listener's queue may be short.
const OPENING_MAX: usize = 64;
/// Of a closed loop, between two attempts to connect.
const CONNECT_PAUSE_NS: u64 = 100 * MS_NS;

impl Worker {
    /// Opens all connections before the run, so that opening them is no part of anybody's latency.
    pub fn connect_all(&mut self) -> Result<(), Failure> {
        let all = self.connections.len();
        let (mut begun, mut open) = (0, 0);
        self.zero_ns = 0;
        let began_ns = self.read_clock();
        // An open loop's first requests may not meet a half-open slot: `pump` finds nothing to send before time 0.
        while open < all {
            while begun < all && begun - open < OPENING_MAX {
                self.connect(begun as u32)?;
                begun += 1;
            }
            let mut completions = std::mem::take(&mut self.completions);
            self.ring.turn(100 * MS_NS, &mut completions);
            self.read_clock();
            for completion in completions.drain(..) {
                if completion.token.kind == Kind::Connect {
                    if completion.result < 0 {
                        let error = std::io::Error::from_raw_os_error(-completion.result);
                        return Err(self.unreachable(open, &error.to_string()));
                    }
                    self.connected(completion.token.slot);
                    open += 1;
                } else {
                    self.complete(completion)?;
                }
            }
            self.completions = completions;
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Failure("interrupted before the run began".to_owned()));
            }
            if open < all && self.now_ns - began_ns > self.timeout_ns.max(1000 * MS_NS) * (1 + all as u64 / 1000) {
                return Err(self.unreachable(open, "no answer in time"));
            }
        }
        Ok(())
    }

    fn unreachable(&self, open: usize, why: &str) -> Failure {
        let target = self.target;
        Failure(match open {
            0 => format!("cannot connect to {target}: {why}; is the server running, and --target right?"),
            _ => format!(
                "only {open} of {} connections to {target} could be opened: {why}; use fewer --connections or raise \
                 the server's limit",
                self.connections.len()
            ),
        })
    }

    pub(super) fn connect(&mut self, slot: u32) -> Result<(), Failure> {
        let source = (self.plan.transport.identity == Identity::Address)
            .then(|| workload::client::address(self.lanes.client(slot)));
        let socket = connection::socket(self.target, source).map_err(|error| {
            Failure(format!("no socket for another connection: {error}; use fewer --connections or raise `ulimit -n`"))
        })?;
        let connection = &mut self.connections[slot as usize];
        connection.socket = socket;
        connection.state = State::Connecting;
        connection.connecting_since_ns = self.now_ns;
        connection.retired = false;
        connection.reader.reset();
        self.ring.connect(Token::new(Kind::Connect, connection.generation, slot), socket);
        Ok(())
    }

    fn connected(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        connection.state = State::Open;
        connection.receiving = true;
        self.stats.totals.connections_opened += 1;
        self.ring.receive(Token::new(Kind::Receive, connection.generation, slot), connection.socket);
    }

    /// Puts to work whatever the slot can do now: connect, or send.
    pub(super) fn pump(&mut self, slot: u32) -> Result<(), Failure> {
        if self.ring.queued() >= SENDS_A_SUBMIT {
            self.submit()?;
        }
        let wants_more = self.is_closed_loop && !self.is_draining;
        let connection = &self.connections[slot as usize];
        match connection.state {
            State::Down if !connection.paused && (wants_more || !connection.waiting.is_empty()) => self.connect(slot),
            State::Open if !connection.sending && !connection.retired => self.fill(slot, wants_more),
            _ => Ok(()),
        }
    }

    /// Sends as many requests as the connection may have under way, in one piece.
    fn fill(&mut self, slot: u32, wants_more: bool) -> Result<(), Failure> {
        let mut out = self.buffers.pop().unwrap_or_default();
        loop {
            let connection = &mut self.connections[slot as usize];
            if connection.under_way.len() >= self.depth {
                break;
            }
            let request = match connection.waiting.pop_front() {
                Some(request) => {
                    self.waiting -= 1;
                    request
                }
                None if wants_more && connection.under_way.len() + (connection.retrying as usize) < self.depth => {
                    Request::new(self.next_of_closed_loop(slot), slot)
                }
                None => break,
            };
            let request = self.write(request, &mut out);
            self.connections[slot as usize].under_way.push_back(request);
        }
        if out.is_empty() {
            self.buffers.push(out);
            return Ok(());
        }
        let connection = &mut self.connections[slot as usize];
        connection.sending = true;
        self.ring.send(Token::new(Kind::Send, connection.generation, slot), connection.socket, out);
        self.unsent.push(slot);
        Ok(())
    }

    /// Notes a request in the ledger and renders it behind `out`.
    fn write(&mut self, mut request: Request, out: &mut Vec<u8>) -> Request {
        self.note(&mut request);
        let before = out.len();
        let rendered = self.renderer.request(out, &self.batches);
        request.good_points = rendered.points - rendered.bad;
        self.stats.sent(rendered.points, out.len() - before, request.attempt > 0);
        request
    }

    /// A new attempt: leaves its batches in `self.batches`, and tells the ledger of those it does not know.
    fn note(&mut self, request: &mut Request) {
        request.id = self.next_id;
        self.next_id += 1;
        request.sent_ns = NOT_SENT;
        self.batches.clear();
        self.batches.extend(request.batches().map(|pending| pending.batch));
        if let Some(ledger) = &mut self.ledger {
            self.batches[request.noted..].iter().for_each(|batch| ledger.batch(*batch));
            let oldest = self.batches[0];
            ledger.sent(request.id, oldest.client, oldest.number, self.batches.len() as u32);
        }
        request.noted = self.batches.len();
    }

    /// It could not leave, for there was no connection. It counts as an attempt, and the ledger's books close on it.
    fn lost_unsent(&mut self, mut request: Request, cause: NoAnswer) {
        self.note(&mut request);
        self.stats.sent(0, 0, request.attempt > 0);
        self.lost(request, cause);
    }

    pub(super) fn complete(&mut self, completion: Completion) -> Result<(), Failure> {
        let Completion { token, result, more, buffer } = completion;
        let slot = token.slot;
        let connection = &mut self.connections[slot as usize];
        let is_stale = token.generation != connection.generation & Token::GENERATION_MASK;
        match token.kind {
            Kind::Connect if is_stale => Ok(()),
            Kind::Connect if result >= 0 => {
                self.connected(slot);
                self.pump(slot)
            }
            Kind::Connect => {
                let is_cancelled = result == -libc::ECANCELED;
                self.not_connected(slot, if is_cancelled { NoAnswer::Timeout } else { NoAnswer::RefusedConnection })
            }
            Kind::Receive => {
                if let Some(id) = buffer {
                    if !is_stale && result > 0 {
                        self.read(slot, id, result as usize)?;
                    }
                    self.ring.release(id);
                }
                if is_stale { Ok(()) } else { self.received(slot, result, more) }
            }
            Kind::Send => {
                let mut bytes = self.ring.sent(slot);
                let is_whole = result >= 0 && result as usize == bytes.len();
                bytes.clear();
                self.buffers.push(bytes);
                let connection = &mut self.connections[slot as usize];
                connection.sending = false;
                // A server may answer and close before it has read all: its answer is still to be read.
                connection.retired |= !is_whole;
                if connection.state == State::Closing { self.finish_closing(slot) } else { self.go_on(slot) }
            }
            Kind::Accept | Kind::Close | Kind::Cancel => Ok(()),
        }
    }

    /// After an answer or a send: closes the connection if it has done its part, else gives it more to do.
    fn go_on(&mut self, slot: u32) -> Result<(), Failure> {
        let connection = &self.connections[slot as usize];
        if connection.state == State::Open
            && connection.retired
            && connection.under_way.is_empty()
            && !connection.sending
        {
            return self.close(slot);
        }
        self.pump(slot)
    }

    /// Reads answers from a buffer of the ring.
    fn read(&mut self, slot: u32, buffer: u16, len: usize) -> Result<(), Failure> {
        self.stats.totals.received_bytes += len as u64;
        if self.connections[slot as usize].state != State::Open {
            return Ok(());
        }
        let mut from = 0;
        while from < len {
            let connection = &mut self.connections[slot as usize];
            let mut rest = &self.ring.buffer(buffer, len)[from..];
            let read = connection.reader.feed(&mut rest);
            from = len - rest.len();
            match read {
                Ok(None) => {}
                // An answer that nothing was asked for.
                Ok(Some(_)) if connection.under_way.is_empty() => return self.broken(slot, NoAnswer::BadAnswer),
                Ok(Some(answer)) => {
                    let request = connection.under_way.pop_front().expect("just seen");
                    let is_reconnect = self.plan.transport.connection == plan::Connection::Reconnect;
                    connection.retired |= answer.close || is_reconnect;
                    self.answered(slot, request, answer);
                    if answer.close {
                        // What else was sent on it will not be read.
                        return self.broken(slot, NoAnswer::Closed);
                    }
                }
                Err(_) => return self.broken(slot, NoAnswer::BadAnswer),
            }
        }
        self.go_on(slot)
    }

    /// After the bytes, if any: the end of the stream, an error, or a receive that has to be armed again.
    fn received(&mut self, slot: u32, result: i32, more: bool) -> Result<(), Failure> {
        if more {
            return Ok(());
        }
        let connection = &mut self.connections[slot as usize];
        let is_open = connection.state == State::Open;
        if (result > 0 || result == -libc::ENOBUFS) && is_open {
            self.ring.receive(Token::new(Kind::Receive, connection.generation, slot), connection.socket);
            return Ok(());
        }
        connection.receiving = false;
        if connection.state == State::Closing {
            return self.finish_closing(slot);
        }
        if !is_open {
            return Ok(());
        }
        if result == 0
            && let Some(answer) = connection.reader.end()
            && let Some(request) = connection.under_way.pop_front()
        {
            self.answered(slot, request, answer);
        }
        self.broken(slot, if result == 0 { NoAnswer::Closed } else { NoAnswer::Reset })
    }

    /// The connection ends here; what is under way on it is lost.
    pub(super) fn broken(&mut self, slot: u32, cause: NoAnswer) -> Result<(), Failure> {
        while let Some(request) = self.connections[slot as usize].under_way.pop_front() {
            self.lost(request, cause);
        }
        self.close(slot)
    }

    fn close(&mut self, slot: u32) -> Result<(), Failure> {
        let connection = &mut self.connections[slot as usize];
        if connection.state != State::Open {
            return Ok(());
        }
        connection.state = State::Closing;
        if connection.receiving || connection.sending {
            // The descriptor alone would leave the socket open under the operations on it.
            self.ring.shutdown(connection.socket);
            return Ok(());
        }
        self.finish_closing(slot)
    }

    fn finish_closing(&mut self, slot: u32) -> Result<(), Failure> {
        let connection = &mut self.connections[slot as usize];
        if connection.receiving || connection.sending {
            return Ok(());
        }
        self.ring.close(Token::new(Kind::Close, connection.generation, slot), connection.socket);
        connection.socket = -1;
        connection.generation = connection.generation.wrapping_add(1);
        connection.state = State::Down;
        self.pump(slot)
    }

    /// All that waited for this connection fails with it; so does the request a closed loop would have sent.
    fn not_connected(&mut self, slot: u32, cause: NoAnswer) -> Result<(), Failure> {
        let wants_more = self.is_closed_loop && !self.is_draining;
        let connection = &mut self.connections[slot as usize];
        self.ring.close(Token::new(Kind::Close, connection.generation, slot), connection.socket);
        connection.socket = -1;
        connection.generation = connection.generation.wrapping_add(1);
        connection.state = State::Down;
        let failed = std::mem::take(&mut connection.waiting);
        if failed.is_empty() && wants_more && connection.retrying == 0 {
            let request = Request::new(self.next_of_closed_loop(slot), slot);
            self.lost_unsent(request, cause);
        }
        self.waiting -= failed.len() as u64;
        for request in failed {
            self.lost_unsent(request, cause);
        }
        if wants_more {
            self.connections[slot as usize].paused = true;
            self.push_later(self.now_ns + CONNECT_PAUSE_NS, What::Connect(slot));
        }
        Ok(())
    }

    pub(super) fn check_timeouts(&mut self) -> Result<(), Failure> {
        let oldest_ns = self.now_ns.saturating_sub(self.timeout_ns);
        for slot in 0..self.connections.len() as u32 {
            let connection = &self.connections[slot as usize];
            match connection.state {
                State::Open => {
                    let is_over = connection.under_way.front().is_some_and(|request| request.sent_ns < oldest_ns);
                    if is_over {
                        self.broken(slot, NoAnswer::Timeout)?;
                    }
                }
                State::Connecting if connection.connecting_since_ns < oldest_ns => {
                    let target = Token::new(Kind::Connect, connection.generation, slot);
                    self.ring.cancel(Token::new(Kind::Cancel, connection.generation, slot), target);
                }
                _ => {}
            }
            if self.ring.queued() >= SENDS_A_SUBMIT {
                self.submit()?;
            }
        }
        Ok(())
    }

    /// Marks a lost request final, at the end of the run.
    pub(super) fn lost_for_good(&mut self, request: Request, loss: Loss) {
        if let (Loss::Unanswered(cause), Some(ledger)) = (loss, &mut self.ledger) {
            ledger.unknown(request.id, cause);
        }
        self.stats.lost(loss);
        self.give_up(request, false);
    }
}
