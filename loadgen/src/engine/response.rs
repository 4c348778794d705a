//! Reads HTTP/1.1 answers as they come, split at any byte.
//!
//! The other end may be anything: this never panics, keeps at most [`HEAD_BYTES_MAX`] of a head and [`BODY_BYTES_KEPT`]
//! of a body however long they claim to be, and calls an answer bad whose end cannot be told for sure (both
//! Content-Length and Transfer-Encoding, two lengths that differ, a length that is no number, ...).

use super::backoff::RetryAfter;

pub const HEAD_BYTES_MAX: usize = 16 * 1024;
pub const BODY_BYTES_KEPT: usize = 4 * 1024;
const CHUNK_LINE_BYTES_MAX: usize = 256;

/// A whole answer; its body (cut at [`BODY_BYTES_KEPT`]) is in [`Reader::body`] until the next `feed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// The server takes no more requests on this connection.
    pub close: bool,
    pub retry_after: Option<RetryAfter>,
}

/// The bytes are no HTTP/1.1 answer, or one whose end cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAnswer;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Body {
        left: u64,
    },
    UntilClose,
    ChunkSize,
    Chunk {
        left: u64,
    },
    /// The CRLF behind a chunk's data
    ChunkEnd,
    Trailers {
        bytes: usize,
    },
    /// After a close-delimited or bad answer: nothing more may come.
    Over,
}

#[derive(Debug)]
pub struct Reader {
    state: State,
    /// The part of a head, or of a chunk's or trailer's line, that has come.
    line: Vec<u8>,
    body: Vec<u8>,
    answer: Answer,
    /// The last head read whole and what it said: servers repeat theirs byte by byte.
    last_head: Vec<u8>,
    last: (Answer, Framing),
}

const NO_ANSWER: Answer = Answer { status: 0, close: false, retry_after: None };

impl Default for Reader {
    fn default() -> Reader {
        Reader {
            state: State::Head,
            line: Vec::new(),
            body: Vec::new(),
            answer: NO_ANSWER,
            last_head: Vec::new(),
            last: (NO_ANSWER, Framing::None),
        }
    }
}

impl Reader {
    /// For a new connection.
    pub fn reset(&mut self) {
        self.state = State::Head;
        self.line.clear();
    }

    /// Some bytes of an answer have come, but not all.
    pub fn is_midway(&self) -> bool {
        !(self.state == State::Head && self.line.is_empty()) && self.state != State::Over
    }

    /// The body of the answer just read, cut at [`BODY_BYTES_KEPT`].
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Takes bytes from the front of `bytes` until an answer is whole or none are left. Call it again with the rest.
    pub fn feed(&mut self, bytes: &mut &[u8]) -> Result<Option<Answer>, BadAnswer> {
        let read = self.read(bytes);
        if read.is_err() {
            self.state = State::Over;
        }
        read
    }

    /// The connection ended in order: an answer that lasts until then is whole now.
    pub fn end(&mut self) -> Option<Answer> {
        let whole = self.state == State::UntilClose;
        self.state = State::Over;
        whole.then_some(self.answer)
    }

    fn read(&mut self, bytes: &mut &[u8]) -> Result<Option<Answer>, BadAnswer> {
        while !bytes.is_empty() {
            match self.state {
                State::Head => {
                    if self.take_head(bytes)? {
                        return Ok(Some(self.answer));
                    }
                }
                State::Body { left } => {
                    let left = left - self.take_body(bytes, left);
                    self.state = State::Body { left };
                    if left == 0 {
                        self.state = State::Head;
                        return Ok(Some(self.answer));
                    }
                }
                State::UntilClose => {
                    self.take_body(bytes, u64::MAX);
                }
                State::ChunkSize => {
                    if self.take_line(bytes, CHUNK_LINE_BYTES_MAX)? {
                        let left = chunk_size(&self.line)?;
                        self.line.clear();
                        self.state = if left == 0 { State::Trailers { bytes: 0 } } else { State::Chunk { left } };
                    }
                }
                State::Chunk { left } => {
                    let left = left - self.take_body(bytes, left);
                    self.state = if left == 0 { State::ChunkEnd } else { State::Chunk { left } };
                }
                State::ChunkEnd => {
                    if self.take_line(bytes, 2)? {
                        self.line.clear();
                        self.state = State::ChunkSize;
                    }
                }
                State::Trailers { bytes: before } => {
                    if self.take_line(bytes, HEAD_BYTES_MAX - before)? {
                        let is_last = self.line.len() == 2;
                        let before = before + self.line.len();
                        self.line.clear();
                        self.state = State::Trailers { bytes: before };
                        if is_last {
                            self.state = State::Head;
                            return Ok(Some(self.answer));
                        }
                    }
                }
                State::Over => return Err(BadAnswer),
            }
        }
        Ok(None)
    }

    /// True when the head was a whole answer.
    fn take_head(&mut self, bytes: &mut &[u8]) -> Result<bool, BadAnswer> {
        if self.line.is_empty() && !self.last_head.is_empty() && bytes.starts_with(&self.last_head) {
            *bytes = &bytes[self.last_head.len()..];
            return Ok(self.begin_body(self.last.0, self.last.1));
        }
        // Line by line: each is looked at once however the bytes are split.
        let end = loop {
            match memchr::memchr(b'\n', bytes) {
                None => {
                    self.line.extend_from_slice(bytes);
                    *bytes = &[];
                    return if self.line.len() > HEAD_BYTES_MAX { Err(BadAnswer) } else { Ok(false) };
                }
                Some(at) => {
                    self.line.extend_from_slice(&bytes[..=at]);
                    *bytes = &bytes[at + 1..];
                }
            }
            if self.line.len() > HEAD_BYTES_MAX {
                return Err(BadAnswer);
            }
            if self.line.ends_with(b"\r\n\r\n") {
                break self.line.len();
            }
            // A line that ends without CR, or a first line of something else.
            if !self.line.ends_with(b"\r\n") || !self.line.starts_with(b"HTTP/1.") {
                return Err(BadAnswer);
            }
            if bytes.is_empty() {
                return Ok(false);
            }
        };
        let (answer, framing) = parse_head(&self.line[..end - 2])?;
        if (100..200).contains(&answer.status) {
            self.line.clear();
            // 101 would make another protocol of it.
            return if answer.status == 101 { Err(BadAnswer) } else { Ok(false) };
        }
        self.last = (answer, framing);
        std::mem::swap(&mut self.last_head, &mut self.line);
        self.line.clear();
        Ok(self.begin_body(answer, framing))
    }

    fn begin_body(&mut self, answer: Answer, framing: Framing) -> bool {
        self.answer = answer;
        self.body.clear();
        self.state = match framing {
            Framing::None | Framing::Length(0) => State::Head,
            Framing::Length(left) => State::Body { left },
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
        self.state == State::Head
    }

    /// Takes up to `left` bytes, keeps the first of them, and says how many it took.
    fn take_body(&mut self, bytes: &mut &[u8], left: u64) -> u64 {
        let take = left.min(bytes.len() as u64) as usize;
        let keep = take.min(BODY_BYTES_KEPT - self.body.len());
        self.body.extend_from_slice(&bytes[..keep]);
        *bytes = &bytes[take..];
        take as u64
    }

    /// Takes bytes up to a line's end; true when `line` holds it all, CRLF included.
    fn take_line(&mut self, bytes: &mut &[u8], bytes_max: usize) -> Result<bool, BadAnswer> {
        let end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
        if self.line.len() + end > bytes_max {
            return Err(BadAnswer);
        }
        self.line.extend_from_slice(&bytes[..end]);
        *bytes = &bytes[end..];
        match self.line.ends_with(b"\n") {
            true if !self.line.ends_with(b"\r\n") => Err(BadAnswer),
            whole => Ok(whole),
        }
    }
}

/// `head` ends with the CRLF of its last line.
fn parse_head(head: &[u8]) -> Result<(Answer, Framing), BadAnswer> {
    let mut lines = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next().unwrap_or_default();
    let rest = first.strip_prefix(b"HTTP/1.").ok_or(BadAnswer)?;
    let (minor, status) = match rest {
        [minor @ (b'0' | b'1'), b' ', a, b, c] | [minor @ (b'0' | b'1'), b' ', a, b, c, b' ', ..] => {
            (*minor, decimal(&[*a, *b, *c]).ok_or(BadAnswer)?)
        }
        _ => return Err(BadAnswer),
    };
    if status < 100 {
        return Err(BadAnswer);
    }
    let status = status as u16;
    let (mut length, mut chunked, mut close, mut retry_after) = (None, false, minor == b'0', None);
    for line in lines {
        if line.is_empty() {
            continue; // behind the last CRLF
        }
        let colon = memchr::memchr(b':', line).ok_or(BadAnswer)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || name.iter().any(|byte| byte.is_ascii_whitespace()) || value.contains(&b'\r') {
            return Err(BadAnswer);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let this = decimal(value).ok_or(BadAnswer)?;
            if length.is_some_and(|before| before != this) {
                return Err(BadAnswer);
            }
            length = Some(this);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(BadAnswer);
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case(b"connection") {
            for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                if option.eq_ignore_ascii_case(b"close") {
                    close = true;
                } else if option.eq_ignore_ascii_case(b"keep-alive") && minor == b'0' {
                    close = false;
                }
            }
        } else if name.eq_ignore_ascii_case(b"retry-after") {
            retry_after = RetryAfter::parse(value);
        }
    }
    let framing = match (status, chunked, length) {
        (_, true, Some(_)) => return Err(BadAnswer),
        (100..200 | 204 | 304, _, _) => Framing::None,
        (_, true, None) => Framing::Chunked,
        (_, false, Some(length)) => Framing::Length(length),
        (_, false, None) => Framing::UntilClose,
    };
    close |= framing == Framing::UntilClose;
    Ok((Answer { status, close, retry_after }, framing))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    digits.iter().try_fold(0, |n, byte| byte.is_ascii_digit().then(|| n * 10 + u64::from(byte - b'0')))
}

/// `line` is `size[;extension]CRLF`.
fn chunk_size(line: &[u8]) -> Result<u64, BadAnswer> {
    let line = &line[..line.len() - 2];
    let digits = line.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii_end();
    if digits.is_empty() || digits.len() > 15 || digits.iter().any(|byte| !byte.is_ascii_hexdigit()) {
        return Err(BadAnswer);
    }
    let text = std::str::from_utf8(digits).map_err(|_| BadAnswer)?;
    u64::from_str_radix(text, 16).map_err(|_| BadAnswer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Read = (u16, bool, Vec<u8>);

    /// All answers in `pieces`, and whether it ended well.
    fn read(pieces: &[&[u8]], closed: bool) -> (Vec<Read>, bool) {
        let mut reader = Reader::default();
        let mut answers = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                match reader.feed(&mut rest) {
                    Ok(Some(answer)) => answers.push((answer.status, answer.close, reader.body().to_vec())),
                    Ok(None) => {}
                    Err(BadAnswer) => return (answers, false),
                }
            }
        }
        if closed {
            answers.extend(reader.end().map(|answer| (answer.status, answer.close, reader.body().to_vec())));
        }
        (answers, true)
    }

    fn good() -> Vec<(&'static [u8], Vec<Read>)> {
        let answer = |status, close, body: &[u8]| (status, close, body.to_vec());
        vec![
            (b"HTTP/1.1 204 No Content\r\n\r\n", vec![answer(204, false, b"")]),
            (b"HTTP/1.1 204\r\n\r\nHTTP/1.1 204\r\n\r\n", vec![answer(204, false, b""), answer(204, false, b"")]),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", vec![answer(200, false, b"hello")]),
            (b"HTTP/1.1 200 OK\r\ncontent-length:0\r\n\r\n", vec![answer(200, false, b"")]),
            (b"HTTP/1.1 503 Busy\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nno", vec![answer(503, true, b"no")]),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nT: 1\r\n\r\n",
                vec![answer(200, false, b"abc0123456789")],
            ),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 x\r\n\r\n", vec![answer(204, false, b"")]),
            (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", vec![answer(304, false, b"")]),
            (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", vec![answer(200, true, b"until the end")]),
            (
                b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx",
                vec![answer(200, false, b"x")],
            ),
            (
                b"HTTP/1.1 429 Slow\r\nContent-Length: 1\r\n\r\naHTTP/1.1 429 Slow\r\nContent-Length: 1\r\n\r\nb",
                vec![answer(429, false, b"a"), answer(429, false, b"b")],
            ),
        ]
    }

    #[test]
    fn answers_are_read_whole_wherever_they_are_split() {
        for (bytes, expected) in good() {
            assert_eq!(read(&[bytes], true), (expected.clone(), true), "{}", bytes.escape_ascii());
            for at in 0..=bytes.len() {
                let (front, back) = bytes.split_at(at);
                assert_eq!(read(&[front, back], true), (expected.clone(), true), "{} at {at}", bytes.escape_ascii());
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(read(&single, true), (expected, true), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn an_answer_whose_end_cannot_be_told_is_bad() {
        let bad: [&[u8]; 21] = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
            b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n: no name\r\n\r\n",
            b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/1.1 099 OK\r\n\r\n",
            b"HTTP/2 200\r\n\r\n",
            b"HTTP/1.1 101 Switching\r\n\r\n",
            b"SSH-2.0-OpenSSH\r\n",
            b"\r\n\r\n",
        ];
        for bytes in bad {
            let (answers, whole) = read(&[bytes], false);
            assert!(!whole && answers.is_empty(), "{}", bytes.escape_ascii());
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(read(&single, false), (answers, false), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn nothing_endless_is_kept() {
        let mut reader = Reader::default();
        let filler = [b'x'; 4096];
        let mut head = &b"HTTP/1.1 200 OK\r\nX: "[..];
        assert_eq!(reader.feed(&mut head), Ok(None));
        let ended = (0..5).any(|_| reader.feed(&mut &filler[..]).is_err());
        assert!(ended, "a head of more than {HEAD_BYTES_MAX} bytes was taken");

        let mut reader = Reader::default();
        let mut head = &b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n"[..];
        assert_eq!(reader.feed(&mut head), Ok(None));
        for _ in 0..100 {
            assert_eq!(reader.feed(&mut &filler[..]), Ok(None));
        }
        assert_eq!(reader.body().len(), BODY_BYTES_KEPT);
        assert!(reader.body.capacity() <= 2 * BODY_BYTES_KEPT);
    }

    #[test]
    fn an_end_in_the_middle_is_no_answer() {
        let mut reader = Reader::default();
        assert_eq!(reader.feed(&mut &b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"[..]), Ok(None));
        assert!(reader.is_midway());
        assert_eq!(reader.end(), None);
    }

    #[test]
    fn retry_after_is_handed_on() {
        let mut reader = Reader::default();
        let mut bytes = &b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"[..];
        let answer = reader.feed(&mut bytes).expect("good").expect("whole");
        assert_eq!(answer.retry_after, RetryAfter::parse(b"7"));
    }

    proptest! {
        #[test]
        fn any_bytes_split_anywhere_read_the_same_and_never_panic(
            bytes in prop::collection::vec(prop_oneof![
                any::<u8>(), prop::sample::select(&b"HTTP/1.1 200\r\n:;0123456789abcdef"[..]),
            ], 0..300),
            prefix in prop::sample::select(vec![
                &b""[..], b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            ]),
            at in any::<prop::sample::Index>(),
        ) {
            let whole = [prefix, &bytes].concat();
            let (front, back) = whole.split_at(at.index(whole.len() + 1));
            prop_assert_eq!(read(&[&whole], true), read(&[front, back], true));
        }
    }
}
