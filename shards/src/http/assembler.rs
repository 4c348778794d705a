//! One connection's bytes become requests.
//!
//! [`Assembler::push`] takes what was received and says what it came to. A request that lies whole in the input is
//! not copied (its head is, some hundred bytes): [`Body::InInput`] names its place. Otherwise the body gathers in a
//! buffer of the connection that is reused; for a large body with a length the shard may receive straight into it
//! ([`Assembler::body_spare`], [`Assembler::commit`]).
//!
//! Promises: what comes out does not depend on how the input was split; no state but Refused follows a refusal; memory
//! grows with bytes received, never with a length that was only announced.
//!
//! ```text
//! Idle -> Head -> Fixed | Chunked -> (request) -> Idle, or Closed when the reply ends the connection
//!   any of them -> Refused: the rest is drained, up to a bound
//! ```

use super::chunked::{Chunked, Piece, single_chunk};
use super::head::{Framing, Head, HeadEnd};
use super::{Bounds, HEAD_BYTES_MAX, Refusal};
use std::ops::Range;

pub(crate) const BODY_TOO_LARGE: Refusal =
    Refusal::with(413, "body_too_large", "the request body is longer than this server takes; send smaller batches");
const TIMEOUT: Refusal =
    Refusal::with(408, "request_timeout", "the request did not arrive in time, or arrived too slowly");

/// At least this much room is offered by [`Assembler::body_spare`] while the body lasts.
const SPARE_BYTES_MIN: usize = 64 * 1024;
/// Empty lines before a request line (some old clients end a POST body with one).
const EMPTY_LINES_MAX: u8 = 4;

/// Per-connection state. About 400 bytes, plus a head and, while one is needed, a body buffer.
#[derive(Debug)]
pub struct Assembler {
    state: State,
    head: Head,
    /// A head whose end has not come
    partial: Vec<u8>,
    head_end: HeadEnd,
    empty_lines: u8,
    /// Initialised to its length, so that it can be received into; only `filled` bytes are the body's
    body: Vec<u8>,
    filled: usize,
    /// `head` is that of the request under way, or of the last one told of
    head_read: bool,
    /// Since when the state lasts: what its deadline counts from
    since_ns: u64,
    /// When a byte of the body under way last came
    progress_ns: u64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Idle,
    Head,
    Fixed {
        length: usize,
    },
    Chunked(Chunked),
    /// The last request of this connection is with the shard
    Closed,
    Refused {
        drained: usize,
    },
}

/// What a push came to. `consumed` bytes of the input are done with; the shard pushes the rest again, until a push
/// consumes all and needs more.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// All input was taken; more is needed.
    NeedMore { consumed: usize },
    /// The head is whole, its body is not: a moment to refuse by [`Assembler::head`] (then call
    /// [`Assembler::refuse`]). Otherwise push the rest; with `send_continue`, send `100 Continue` first.
    Head { consumed: usize, send_continue: bool },
    /// A whole request: see [`Assembler::head`] and [`Assembler::body`], valid until the next push.
    Request { consumed: usize, body: Body },
    /// Answer with this, half-close, and go on pushing what comes (it is thrown away) until [`Step::Close`].
    Refuse(Refusal),
    /// Enough was drained after the last reply: close now.
    Close,
}

/// Where a request's body lies: still encoded, contiguous.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    InInput(Range<usize>),
    Held,
}

/// What a passed deadline came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Not yet; ask again then. `u64::MAX`: nothing is awaited from the client.
    Until(u64),
    /// Nothing is owed: close.
    Close,
    /// Answer with this (408), then as [`Step::Refuse`].
    Refuse(Refusal),
}

impl Assembler {
    pub fn new(now_ns: u64) -> Assembler {
        Assembler {
            state: State::Idle,
            head: Head::default(),
            partial: Vec::new(),
            head_end: HeadEnd::default(),
            empty_lines: 0,
            body: Vec::new(),
            filled: 0,
            since_ns: now_ns,
            progress_ns: now_ns,
            head_read: false,
        }
    }

    /// The head of the request that [`Step::Head`] or [`Step::Request`] last told of.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The head that a refusal or a timeout concerns, when it got that far: tells the route, and so the reply's dialect.
    pub fn refused_head(&self) -> Option<&Head> {
        self.head_read.then_some(&self.head)
    }

    /// The raw body that [`Step::Request`] told of; `input` is what was pushed for it.
    pub fn body<'a>(&'a self, body: &Body, input: &'a [u8]) -> &'a [u8] {
        match body {
            Body::InInput(range) => &input[range.clone()],
            Body::Held => &self.body[..self.filled],
        }
    }

    /// Takes newly received bytes, or what an earlier push left of them.
    pub fn push(&mut self, input: &[u8], now_ns: u64, bounds: &Bounds) -> Step {
        match self.advance(input, now_ns, bounds) {
            Ok(step) => step,
            Err(refusal) => {
                self.refuse(now_ns);
                Step::Refuse(refusal)
            }
        }
    }

    fn advance(&mut self, input: &[u8], now_ns: u64, bounds: &Bounds) -> Result<Step, Refusal> {
        match self.state {
            State::Idle | State::Head => self.take_head(input, now_ns, bounds),
            State::Fixed { length } => {
                self.progress_ns = now_ns;
                Ok(self.take_fixed(0, input, length, now_ns))
            }
            State::Chunked(chunked) => {
                self.progress_ns = now_ns;
                self.take_chunked(0, input, chunked, now_ns, bounds)
            }
            State::Closed => Ok(Step::NeedMore { consumed: input.len() }),
            State::Refused { drained } => {
                let drained = drained.saturating_add(input.len());
                self.state = State::Refused { drained };
                if drained > bounds.drain_bytes_max {
                    return Ok(Step::Close);
                }
                Ok(Step::NeedMore { consumed: input.len() })
            }
        }
    }

    fn take_head(&mut self, input: &[u8], now_ns: u64, bounds: &Bounds) -> Result<Step, Refusal> {
        self.head_read = false;
        if self.partial.is_empty() {
            let start = self.skip_empty_lines(input)?;
            if start == input.len() {
                return Ok(Step::NeedMore { consumed: start });
            }
            // What the last request left behind goes when the next one begins.
            self.filled = 0;
            self.head_end = HeadEnd::default();
            self.give_back(bounds.body_keep_bytes);
            if matches!(self.state, State::Idle) {
                self.state = State::Head;
                self.since_ns = now_ns;
            }
            if let Some(length) = self.head_end.find(&input[start..])? {
                self.head.parse(&input[start..start + length])?;
                return self.begin_body(input, start + length, now_ns, bounds);
            }
            self.partial.extend_from_slice(&input[start..]);
            return Ok(Step::NeedMore { consumed: input.len() });
        }
        if self.lone_cr() {
            // An empty line came apart between its two bytes.
            self.partial.clear();
            if input.is_empty() {
                self.partial.push(b'\r');
                return Ok(Step::NeedMore { consumed: 0 });
            }
            if input[0] != b'\n' {
                return Err(Refusal::bad("bare_cr", "a line ends in CR without LF"));
            }
            self.count_empty_line()?;
            return match self.take_head(&input[1..], now_ns, bounds)? {
                Step::NeedMore { consumed } => Ok(Step::NeedMore { consumed: consumed + 1 }),
                Step::Head { consumed, send_continue } => Ok(Step::Head { consumed: consumed + 1, send_continue }),
                Step::Request { consumed, body } => Ok(Step::Request {
                    consumed: consumed + 1,
                    body: match body {
                        Body::InInput(range) => Body::InInput(range.start + 1..range.end + 1),
                        Body::Held => Body::Held,
                    },
                }),
                other => Ok(other),
            };
        }
        let before = self.partial.len();
        let room = HEAD_BYTES_MAX.saturating_sub(before);
        self.partial.extend_from_slice(&input[..input.len().min(room)]);
        let Some(length) = self.head_end.find(&self.partial)? else {
            return Ok(Step::NeedMore { consumed: input.len() });
        };
        self.head.parse(&self.partial[..length])?;
        self.partial.clear();
        self.begin_body(input, length - before, now_ns, bounds)
    }

    /// Skips whole CRLFs; a CR at the very end waits in `partial` for its LF.
    fn skip_empty_lines(&mut self, input: &[u8]) -> Result<usize, Refusal> {
        let mut at = 0;
        while input.get(at) == Some(&b'\r') {
            match input.get(at + 1) {
                Some(b'\n') => self.count_empty_line()?,
                Some(_) => return Err(Refusal::bad("bare_cr", "a line ends in CR without LF")),
                None => {
                    self.partial.push(b'\r');
                    return Ok(input.len());
                }
            }
            at += 2;
        }
        Ok(at)
    }

    fn lone_cr(&self) -> bool {
        self.partial == b"\r"
    }

    fn count_empty_line(&mut self) -> Result<(), Refusal> {
        self.empty_lines += 1;
        if self.empty_lines > EMPTY_LINES_MAX {
            return Err(Refusal::bad("bad_request_line", "there are only empty lines where a request should be"));
        }
        Ok(())
    }

    /// The head is parsed and ended at `at`.
    fn begin_body(&mut self, input: &[u8], at: usize, now_ns: u64, bounds: &Bounds) -> Result<Step, Refusal> {
        self.empty_lines = 0;
        self.head_read = true;
        self.since_ns = now_ns;
        self.progress_ns = now_ns;
        match self.head.framing() {
            Framing::Length(length) => {
                if length > bounds.body_bytes_max as u64 {
                    return Err(BODY_TOO_LARGE);
                }
                let length = length as usize;
                if input.len() - at >= length {
                    return Ok(self.finish(at + length, Body::InInput(at..at + length), now_ns));
                }
                self.state = State::Fixed { length };
                Ok(self.tell_head(input, at))
            }
            Framing::Chunked => {
                if let Some((range, length)) = single_chunk(&input[at..])
                    && range.len() <= bounds.body_bytes_max
                {
                    return Ok(self.finish(at + length, Body::InInput(at + range.start..at + range.end), now_ns));
                }
                let chunked = Chunked::new();
                self.state = State::Chunked(chunked);
                // A body that is already whole here (in several chunks) needs no word about its head.
                if self.head.expect_continue() || !input[at..].ends_with(b"0\r\n\r\n") {
                    return Ok(self.tell_head(input, at));
                }
                self.take_chunked(at, input, chunked, now_ns, bounds)
            }
        }
    }

    fn tell_head(&self, input: &[u8], at: usize) -> Step {
        // Who already sends its body does not wait (RFC 9110 10.1.1).
        Step::Head { consumed: at, send_continue: self.head.expect_continue() && at == input.len() }
    }

    fn take_fixed(&mut self, at: usize, input: &[u8], length: usize, now_ns: u64) -> Step {
        let part = &input[at..input.len().min(at + (length - self.filled))];
        self.append(part, length);
        let consumed = at + part.len();
        if self.filled == length {
            return self.finish(consumed, Body::Held, now_ns);
        }
        Step::NeedMore { consumed }
    }

    fn take_chunked(
        &mut self,
        mut at: usize,
        input: &[u8],
        mut chunked: Chunked,
        now_ns: u64,
        bounds: &Bounds,
    ) -> Result<Step, Refusal> {
        loop {
            match chunked.next(&input[at..], self.filled, bounds.body_bytes_max)? {
                Piece::Data { skip, data } => {
                    self.append(&input[at + skip..at + skip + data], bounds.body_bytes_max);
                    at += skip + data;
                }
                Piece::End { consumed } => return Ok(self.finish(at + consumed, Body::Held, now_ns)),
                Piece::More => {
                    self.state = State::Chunked(chunked);
                    return Ok(Step::NeedMore { consumed: input.len() });
                }
            }
        }
    }

    fn finish(&mut self, consumed: usize, body: Body, now_ns: u64) -> Step {
        self.since_ns = now_ns;
        self.state = if self.head.keep_alive() { State::Idle } else { State::Closed };
        Step::Request { consumed, body }
    }

    /// Room for more of a body with a length, to receive into: at least 64 KiB or the rest of the body. The buffer
    /// stays where it is until `commit`, `push`, `release` or another `body_spare`; `expire` and `refuse` leave it alone,
    /// so a receive may be in flight over them. `None` when no such body is under way.
    pub fn body_spare(&mut self) -> Option<&mut [u8]> {
        let State::Fixed { length } = self.state else { return None };
        let want = (length - self.filled).min(SPARE_BYTES_MIN);
        self.grow(want, length);
        let end = self.body.len().min(length);
        Some(&mut self.body[self.filled..end])
    }

    /// `received` bytes were written to the start of [`Assembler::body_spare`]. Never consumes input.
    pub fn commit(&mut self, received: usize, now_ns: u64) -> Step {
        let State::Fixed { length } = self.state else { return Step::NeedMore { consumed: 0 } };
        assert!(
            received <= length - self.filled && self.filled + received <= self.body.len(),
            "received past the spare"
        );
        self.filled += received;
        self.progress_ns = now_ns;
        if self.filled == length {
            return self.finish(0, Body::Held, now_ns);
        }
        Step::NeedMore { consumed: 0 }
    }

    /// Takes the buffer out, for one who must keep it while the kernel still writes to it. The connection ends.
    pub fn into_body_buffer(self) -> Vec<u8> {
        self.body
    }

    /// The shard refuses what is under way (after [`Step::Head`]), or ends the connection after a reply: from now on
    /// input is drained.
    pub fn refuse(&mut self, now_ns: u64) {
        self.state = State::Refused { drained: 0 };
        self.since_ns = now_ns;
        self.partial = Vec::new();
        // The body buffer stays: the kernel may still be writing to it.
    }

    /// A reply was sent and none is owed: the idle time starts again.
    pub fn replied(&mut self, now_ns: u64) {
        // Until now it may have been us who did not read.
        self.progress_ns = now_ns;
        if matches!(self.state, State::Idle) {
            self.since_ns = now_ns;
        }
    }

    /// Nothing of a request has come, and none is under way.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// A refusal was given, or the last request of the connection was: no other will come out.
    pub fn is_closing(&self) -> bool {
        matches!(self.state, State::Closed | State::Refused { .. })
    }

    /// Gives back what an idle connection need not hold; for connections that have been idle for long.
    pub fn release(&mut self) {
        if matches!(self.state, State::Idle) && self.partial.is_empty() {
            self.filled = 0;
            self.give_back(0);
            self.partial = Vec::new();
            self.head.release();
        }
    }

    /// When [`Assembler::expire`] is due, as things stand. The shard does not ask while replies are owed.
    pub fn deadline_ns(&self, bounds: &Bounds) -> u64 {
        let after = match self.state {
            State::Idle => bounds.idle_timeout_ns,
            State::Head => bounds.head_timeout_ns,
            // Every byte received buys the time that the slowest allowed client takes for one. It cannot be saved up:
            // who was fast and then stands still is gone. (A reset may even go unheard: a multishot receive of Linux
            // 6.18 misses one that comes with the last data, and waits for ever.)
            State::Fixed { .. } | State::Chunked(_) => {
                let bought = self.filled as u128 * 1_000_000_000 / u128::from(bounds.body_rate_bytes_per_s.max(1));
                let bought = u64::try_from(bought).unwrap_or(u64::MAX);
                let from_ns = self.since_ns.saturating_add(bought).min(self.progress_ns);
                return from_ns.saturating_add(bounds.body_grace_ns);
            }
            State::Closed => return u64::MAX,
            State::Refused { .. } => bounds.drain_timeout_ns,
        };
        self.since_ns.saturating_add(after)
    }

    /// Asks whether the client has used up its time.
    pub fn expire(&mut self, now_ns: u64, bounds: &Bounds) -> Expiry {
        let deadline_ns = self.deadline_ns(bounds);
        if now_ns < deadline_ns {
            return Expiry::Until(deadline_ns);
        }
        match self.state {
            State::Closed => Expiry::Until(u64::MAX),
            State::Idle | State::Refused { .. } => Expiry::Close,
            State::Head | State::Fixed { .. } | State::Chunked(_) => {
                self.refuse(now_ns);
                Expiry::Refuse(TIMEOUT)
            }
        }
    }

    fn append(&mut self, part: &[u8], length_max: usize) {
        self.grow(part.len(), length_max);
        self.body[self.filled..self.filled + part.len()].copy_from_slice(part);
        self.filled += part.len();
    }

    /// Makes room for `more`, doubling so that a body of many parts is not copied again for each, but never past
    /// `length_max`. The bytes stay initialised when the buffer is used again: a steady state writes no zeros.
    fn grow(&mut self, more: usize, length_max: usize) {
        let need = self.filled + more;
        if need > self.body.len() {
            let target = need.max(self.body.len() * 2).max(4096).min(length_max.max(need));
            self.body.resize(target, 0);
        }
    }

    fn give_back(&mut self, keep_bytes: usize) {
        if self.body.len() > keep_bytes {
            self.body = Vec::new();
            self.filled = 0;
        }
    }
}
