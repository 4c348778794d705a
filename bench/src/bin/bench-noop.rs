//! A no-op HTTP server on the shard's own ring: reads requests, answers 204, does nothing else. The ceiling that the
//! appliance is compared with.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::time::Instant;

use clap::Parser;
use metricstream_shards::ring::uring::Ring;
use metricstream_shards::ring::{Io, Op, Payload, Token, TokenKind};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Answers every HTTP request with 204 and nothing else.
#[derive(Parser)]
struct Args {
    #[arg(long, default_value = "127.0.0.1:8190")]
    listen: SocketAddr,
    /// Pin to this core
    #[arg(long)]
    core: Option<usize>,
    /// End by itself after this many seconds
    #[arg(long, default_value_t = 600)]
    seconds: u64,
}

#[derive(Default)]
struct Connection {
    socket: i32,
    generation: u32,
    /// Bytes of the current body still to come
    body_left: usize,
    head: Vec<u8>,
    out: Vec<u8>,
    sending: bool,
}

const REPLY: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

fn main() {
    let args = Args::parse();
    if let Some(core) = args.core {
        core_affinity::set_for_current(core_affinity::CoreId { id: core });
    }
    let listener = TcpListener::bind(args.listen).unwrap_or_else(|error| {
        eprintln!("bench-noop: cannot listen on {}: {error}", args.listen);
        std::process::exit(4);
    });
    let start = Instant::now();
    let mut ring = Ring::new(start).unwrap_or_else(|error| {
        eprintln!("bench-noop: no io_uring: {error}");
        std::process::exit(5);
    });
    ring.push(Token::new(TokenKind::Accept, 0, 0), Op::Accept { listener: listener.as_raw_fd() });
    let mut connections: Vec<Connection> = Vec::new();
    let mut free: Vec<u32> = Vec::new();
    let mut completions = Vec::new();
    let mut ready = Vec::new();
    while start.elapsed().as_secs() < args.seconds {
        let deadline_ns = ring.now_ns() + 100_000_000;
        ring.turn(deadline_ns, &mut completions);
        for completion in completions.drain(..) {
            let index = completion.token.index;
            match completion.token.kind {
                TokenKind::Accept if completion.result >= 0 => {
                    let index = free.pop().unwrap_or_else(|| {
                        connections.push(Connection::default());
                        connections.len() as u32 - 1
                    });
                    let connection = &mut connections[index as usize];
                    let generation = connection.generation + 1;
                    *connection = Connection { socket: completion.result, generation, ..Connection::default() };
                    // No TCP_NODELAY needed: one small answer at a time.
                    let token = Token::new(TokenKind::Receive, generation, index);
                    ring.push(token, Op::Receive { socket: completion.result });
                }
                TokenKind::Receive => {
                    let connection = &mut connections[index as usize];
                    if let Payload::Buffer(id) = completion.payload {
                        feed(connection, ring.buffer(id, completion.result.max(0) as usize));
                        ring.release(id);
                        ready.push(index);
                    }
                    if completion.result == -libc::ENOBUFS {
                        let token = Token::new(TokenKind::Receive, connection.generation, index);
                        ring.push(token, Op::Receive { socket: connection.socket });
                    } else if completion.result <= 0 {
                        ring.push(Token::new(TokenKind::Close, 0, index), Op::Close { socket: connection.socket });
                        free.push(index);
                    } else if !completion.more {
                        let token = Token::new(TokenKind::Receive, connection.generation, index);
                        ring.push(token, Op::Receive { socket: connection.socket });
                    }
                }
                TokenKind::Send => {
                    let connection = &mut connections[index as usize];
                    connection.sending = false;
                    if let Payload::Bytes(mut bytes) = completion.payload {
                        bytes.clear();
                        if connection.out.is_empty() {
                            connection.out = bytes;
                        }
                    }
                    ready.push(index);
                }
                _ => {}
            }
        }
        for index in ready.drain(..) {
            let connection = &mut connections[index as usize];
            if !connection.sending && !connection.out.is_empty() {
                connection.sending = true;
                let bytes = std::mem::take(&mut connection.out);
                let token = Token::new(TokenKind::Send, connection.generation, index);
                ring.push(token, Op::Send { socket: connection.socket, bytes, from: 0 });
            }
        }
    }
}

/// Counts whole requests: a head up to the empty line, then Content-Length bytes.
fn feed(connection: &mut Connection, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        if connection.body_left > 0 {
            let take = connection.body_left.min(bytes.len());
            connection.body_left -= take;
            bytes = &bytes[take..];
            if connection.body_left == 0 {
                connection.out.extend_from_slice(REPLY);
            }
            continue;
        }
        let before = connection.head.len();
        let from = before.saturating_sub(3);
        connection.head.extend_from_slice(bytes);
        let Some(end) = find(&connection.head[from..], b"\r\n\r\n").map(|at| from + at + 4) else { return };
        let length = find(&connection.head[..end], b"Content-Length: ").map_or(0, |at| {
            connection.head[at + 16..end]
                .iter()
                .take_while(|b| b.is_ascii_digit())
                .fold(0, |n, b| n * 10 + usize::from(b - b'0'))
        });
        bytes = &bytes[end - before..];
        connection.head.clear();
        connection.body_left = length;
        if length == 0 {
            connection.out.extend_from_slice(REPLY);
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
