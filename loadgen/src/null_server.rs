//! A server that does nothing: any HTTP request is answered with one status, at once. What a generator reaches against
//! it is the generator's own limit, and the latency it reports is its own share.
//!
//! On demand it stalls: for a while in every period it neither reads nor answers, which is what a generator that hides
//! waiting (coordinated omission) reports wrongly.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::commands::Failure;
use crate::ring::{Completion, Kind, Ring, SQ_ENTRIES, Token};

#[derive(Clone, Copy, Debug)]
pub struct Stall {
    pub stall: Duration,
    /// Each period begins with a stall.
    pub every: Duration,
}

pub struct NullServer {
    listener: TcpListener,
    answer: Vec<u8>,
    stall: Option<Stall>,
}

/// A head beyond this is no request; the connection is closed.
const HEAD_BYTES_MAX: usize = 64 * 1024;

#[derive(Default)]
struct Connection {
    socket: i32,
    generation: u32,
    is_open: bool,
    receiving: bool,
    sending: bool,
    body: Body,
    head: Vec<u8>,
    /// Answers to be sent
    owed: u32,
    /// The request being read asked for the connection to be closed after it.
    is_last: bool,
    /// Nothing more is read or answered beyond what is owed.
    closes: bool,
    /// The last answers' buffer
    spare: Vec<u8>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Body {
    #[default]
    None,
    Left(u64),
    /// Chunked: ends with an empty chunk and no trailers; only the last bytes are looked at.
    Chunked {
        last: [u8; 7],
    },
}

impl NullServer {
    pub fn bind(listen: SocketAddr, status: u16, stall: Option<Stall>) -> Result<NullServer, Failure> {
        let bind = || -> std::io::Result<TcpListener> {
            let socket = socket2::Socket::new(socket2::Domain::for_address(listen), socket2::Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&listen.into())?;
            // A fleet connects all at once.
            socket.listen(4096)?;
            Ok(socket.into())
        };
        let listener = bind()
            .map_err(|error| Failure(format!("cannot listen on {listen}: {error}; give another --listen address")))?;
        let length = if status == 204 || status == 304 { "" } else { "Content-Length: 0\r\n" };
        let answer = format!("HTTP/1.1 {status} {}\r\n{length}\r\n", reason(status)).into_bytes();
        Ok(NullServer { listener, answer, stall })
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("a bound socket has an address")
    }

    /// Serves until `stop` is set (looked at ten times a second).
    pub fn serve(self, stop: &Arc<AtomicBool>) -> Result<(), Failure> {
        let ring = Ring::new(Instant::now(), self.address()).map_err(|error| {
            Failure(format!("io_uring cannot be used: {error}; a kernel of 6.1 or later is needed"))
        })?;
        let mut server = Serving { ring, answer: self.answer, connections: Vec::new(), free: Vec::new() };
        let listener = self.listener.as_raw_fd();
        server.ring.accept(Token::new(Kind::Accept, 0, 0), listener);
        let mut completions = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let mut wait_ns = 100_000_000;
            if let Some(Stall { stall, every }) = self.stall {
                let (stall_ns, every_ns) = (stall.as_nanos() as u64, every.as_nanos() as u64);
                let now_ns = server.ring.now_ns();
                let into_ns = now_ns % every_ns;
                if into_ns < stall_ns {
                    std::thread::sleep(Duration::from_nanos(stall_ns - into_ns));
                    continue;
                }
                wait_ns = wait_ns.min(every_ns - into_ns);
            }
            server.ring.turn(wait_ns, &mut completions);
            for completion in completions.drain(..) {
                server.complete(completion, listener);
                if server.ring.queued() >= SQ_ENTRIES / 32 {
                    server.ring.submit();
                }
            }
        }
        Ok(())
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

struct Serving {
    ring: Ring,
    answer: Vec<u8>,
    connections: Vec<Connection>,
    free: Vec<u32>,
}

impl Serving {
    fn complete(&mut self, completion: Completion, listener: i32) {
        let Completion { token, result, more, buffer } = completion;
        match token.kind {
            Kind::Accept => {
                if result >= 0 {
                    self.accepted(result);
                }
                if !more {
                    self.ring.accept(Token::new(Kind::Accept, 0, 0), listener);
                }
            }
            Kind::Receive => self.received(token.slot, result, more, buffer),
            Kind::Send => {
                let mut bytes = self.ring.sent(token.slot);
                let connection = &mut self.connections[token.slot as usize];
                connection.sending = false;
                if result < 0 || result as usize != bytes.len() {
                    connection.closes = true;
                    connection.owed = 0;
                }
                bytes.clear();
                connection.spare = bytes;
                self.go_on(token.slot);
            }
            Kind::Connect | Kind::Close | Kind::Cancel => {}
        }
    }

    fn accepted(&mut self, socket: i32) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.connections.push(Connection::default());
            self.connections.len() as u32 - 1
        });
        let connection = &mut self.connections[slot as usize];
        let generation = connection.generation + 1;
        *connection = Connection { socket, generation, is_open: true, receiving: true, ..Connection::default() };
        // No TCP_NODELAY: answers to pipelined requests leave in one piece.
        self.ring.receive(Token::new(Kind::Receive, generation, slot), socket);
    }

    fn received(&mut self, slot: u32, result: i32, more: bool, buffer: Option<u16>) {
        let connection = &mut self.connections[slot as usize];
        if let Some(id) = buffer {
            if !connection.closes {
                connection.feed(self.ring.buffer(id, result.max(0) as usize));
            }
            self.ring.release(id);
        }
        if !more {
            if result > 0 || result == -libc::ENOBUFS {
                self.ring.receive(Token::new(Kind::Receive, connection.generation, slot), connection.socket);
            } else {
                connection.receiving = false;
                connection.closes = true;
            }
        }
        self.go_on(slot);
    }

    /// Sends what is owed, or closes.
    fn go_on(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        if connection.sending || !connection.is_open {
            return;
        }
        if connection.owed > 0 {
            let mut bytes = std::mem::take(&mut connection.spare);
            for _ in 0..std::mem::take(&mut connection.owed) {
                bytes.extend_from_slice(&self.answer);
            }
            connection.sending = true;
            self.ring.send(Token::new(Kind::Send, connection.generation, slot), connection.socket, bytes);
        } else if connection.closes {
            if connection.receiving {
                self.ring.shutdown(connection.socket);
            } else {
                connection.is_open = false;
                self.ring.close(Token::new(Kind::Close, connection.generation, slot), connection.socket);
                self.free.push(slot);
            }
        }
    }
}

impl Connection {
    /// Counts whole requests.
    fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.closes {
            match self.body {
                Body::None => bytes = self.feed_head(bytes),
                Body::Left(left) => {
                    let take = left.min(bytes.len() as u64);
                    bytes = &bytes[take as usize..];
                    self.body = Body::Left(left - take);
                    if left == take {
                        self.request_ended();
                    }
                }
                Body::Chunked { mut last } => {
                    let (byte, rest) = bytes.split_first().expect("not empty");
                    bytes = rest;
                    last.rotate_left(1);
                    last[6] = *byte;
                    self.body = Body::Chunked { last };
                    if last == *b"\r\n0\r\n\r\n" {
                        self.request_ended();
                    }
                }
            }
        }
    }

    fn request_ended(&mut self) {
        self.body = Body::None;
        self.owed += 1;
        self.closes |= self.is_last;
    }

    /// Takes bytes up to the end of a head; gives back the rest.
    fn feed_head<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        const END: &[u8] = b"\r\n\r\n";
        if self.head.is_empty()
            && let Some(at) = memchr::memmem::find(bytes, END)
        {
            self.begin_body(&bytes[..at + 2]);
            return &bytes[at + 4..];
        }
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        let from = before.saturating_sub(3);
        let Some(at) = memchr::memmem::find(&self.head[from..], END).map(|at| from + at) else {
            self.closes = self.head.len() > HEAD_BYTES_MAX;
            return &[];
        };
        let head = std::mem::take(&mut self.head);
        self.begin_body(&head[..at + 2]);
        self.head = head;
        self.head.clear();
        &bytes[at + 4 - before..]
    }

    /// `head` ends with its last line's CRLF.
    fn begin_body(&mut self, head: &[u8]) {
        let mut closes = false;
        self.body = Body::Left(0);
        let mut from = 0;
        for end in memchr::memchr_iter(b'\n', head) {
            let line = &head[from..end];
            from = end + 1;
            if let Some(value) = value_of(line, b"content-length:") {
                match std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()) {
                    Some(length) => self.body = Body::Left(length),
                    None => self.closes = true,
                }
            } else if value_of(line, b"transfer-encoding:").is_some() {
                self.body = Body::Chunked { last: *b"     \r\n" };
            } else if value_of(line, b"connection:").is_some_and(|value| value.eq_ignore_ascii_case(b"close")) {
                closes = true;
            }
        }
        if self.body == Body::Left(0) {
            self.request_ended();
        }
        self.is_last = closes;
        self.closes |= closes && self.body == Body::None;
    }
}

fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (front, value) = line.split_at_checked(name.len())?;
    front.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    fn owed(requests: &[u8]) -> (u32, bool) {
        let mut whole = Connection::default();
        whole.feed(requests);
        let mut single = Connection::default();
        requests.iter().for_each(|byte| single.feed(&[*byte]));
        assert_eq!((whole.owed, whole.closes), (single.owed, single.closes), "{}", requests.escape_ascii());
        (whole.owed, whole.closes)
    }

    #[test]
    fn whole_requests_are_counted_wherever_they_are_split() {
        assert_eq!(owed(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n"), (2, false));
        assert_eq!(owed(b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nab"), (0, false));
        assert_eq!(owed(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), (1, false));
        assert_eq!(owed(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), (1, false));
        assert!(owed(b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n").1);
        assert_eq!(owed(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\n\r\n"), (1, true));
    }

    #[test]
    fn a_request_is_answered_and_a_connection_closed_on_demand() {
        let server = NullServer::bind("127.0.0.1:0".parse().expect("an address"), 503, None).expect("a free port");
        let address = server.address();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || server.serve(&stop)
        });
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer and an end");
        assert_eq!(answer, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
        stop.store(true, Ordering::Relaxed);
        thread.join().expect("no panic").expect("served");
    }
}
