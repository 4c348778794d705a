//! A small closed-loop generator for side-by-side runs: prepared bodies, current timestamps patched in before each
//! send, so that every point is new. It prints one JSON line: rates, statuses, and the server's CPU per million points.
//!
//! It is closed-loop (each connection waits for its answer): right for "CPU per point at saturation", wrong for
//! latency, which it therefore does not print.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::IntoRawFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, ValueEnum};
use metricstream_shards::ring::uring::Ring;
use metricstream_shards::ring::{Io, Op, Payload, Token, TokenKind};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone, Copy, ValueEnum, PartialEq)]
enum Format {
    /// MetricStream's native JSON, timestamps in ms
    Json,
    /// InfluxDB line protocol, timestamps in ns
    Line,
    /// VictoriaMetrics' JSON lines (`/api/v1/import`), timestamps in ms
    VmJson,
}

/// Closed-loop load for side-by-side runs; prints one JSON line.
#[derive(Parser)]
struct Args {
    #[arg(long)]
    target: SocketAddr,
    /// Request path with query
    #[arg(long)]
    path: String,
    #[arg(long, value_enum)]
    format: Format,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Points a request
    #[arg(long, default_value_t = 100)]
    points: usize,
    #[arg(long, default_value_t = 10_000)]
    series: usize,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Not counted, before
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Instead of a time: end when every series has been sent this often and all is answered. Nothing is warm-up then
    #[arg(long)]
    passes: Option<usize>,
    /// Instead of the current time: the first timestamp, in Unix ms; each request has the next one
    #[arg(long)]
    from_ms: Option<u64>,
    /// Whose CPU to account (user and system, all its threads and kernel workers)
    #[arg(long)]
    server_pid: Option<u32>,
    #[arg(long)]
    core: Option<usize>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

struct Body {
    bytes: Vec<u8>,
    /// Where each timestamp's digits stand
    stamps: Vec<usize>,
}

fn main() {
    let args = Args::parse();
    if let Some(core) = args.core {
        core_affinity::set_for_current(core_affinity::CoreId { id: core });
    }
    let digits = if args.format == Format::Line { 19 } else { 13 };
    let bodies = prepare(&args);
    let start = Instant::now();
    let mut ring = Ring::new(start).unwrap_or_else(|error| fail(&format!("no io_uring: {error}")));
    let sockets: Vec<i32> = (0..args.connections)
        .map(|_| {
            let stream = TcpStream::connect(args.target)
                .unwrap_or_else(|error| fail(&format!("cannot connect to {}: {error}", args.target)));
            stream.set_nodelay(true).expect("a TCP socket");
            stream.into_raw_fd()
        })
        .collect();

    let mut next = 0;
    let mut last_stamp_ns = 0u64;
    let tick_ns = if args.format == Format::Line { 1 } else { 1_000_000 };
    let requests_max = args.passes.map_or(usize::MAX, |passes| passes * bodies.len());
    // `None` when all passes are sent.
    let mut make = |mut bytes: Vec<u8>| {
        if next == requests_max {
            return None;
        }
        let body = &bodies[next % bodies.len()];
        next += 1;
        bytes.clear();
        bytes.extend_from_slice(&body.bytes);
        let now_ns = match args.from_ms {
            Some(from_ms) => from_ms * 1_000_000 + (next as u64 - 1) * tick_ns,
            None => {
                let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
                now_ns.max(last_stamp_ns + 1)
            }
        };
        last_stamp_ns = now_ns;
        let mut text = [0u8; 19];
        let mut rest = if digits == 19 { now_ns } else { now_ns / 1_000_000 };
        for digit in text[..digits].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        for &at in &body.stamps {
            bytes[at..at + digits].copy_from_slice(&text[..digits]);
        }
        Some(bytes)
    };

    let mut answers: Vec<Vec<u8>> = vec![Vec::new(); args.connections];
    let (mut ok, mut failed, mut first_failure) = (0u64, 0u64, String::new());
    for (index, &socket) in sockets.iter().enumerate() {
        if let Some(bytes) = make(Vec::new()) {
            ring.push(Token::new(TokenKind::Send, 0, index as u32), Op::Send { socket, bytes, from: 0 });
        }
        let token = Token::new(TokenKind::Receive, 0, index as u32);
        ring.push(token, Op::Receive { socket });
    }
    let mut spare: Vec<Option<Vec<u8>>> = (0..args.connections).map(|_| None).collect();
    let mut answered: Vec<bool> = vec![false; args.connections];
    let mut completions = Vec::new();
    let mut counting = false;
    let (mut cpu_before, mut began) = (0.0, Instant::now());
    loop {
        if !counting && (args.passes.is_some() || start.elapsed().as_secs_f64() >= args.warmup) {
            counting = true;
            (ok, failed) = (0, 0);
            cpu_before = args.server_pid.map_or(0.0, cpu_seconds);
            began = Instant::now();
        }
        let done = match args.passes {
            Some(_) => (ok + failed) as usize == requests_max,
            None => began.elapsed().as_secs_f64() >= args.seconds,
        };
        if counting && done {
            break;
        }
        let deadline_ns = ring.now_ns() + 100_000_000;
        ring.turn(deadline_ns, &mut completions);
        for completion in completions.drain(..) {
            let index = completion.token.index as usize;
            match (completion.token.kind, completion.payload) {
                (TokenKind::Send, Payload::Bytes(bytes)) => {
                    if completion.result < 0 {
                        fail(&format!("send failed: {}", std::io::Error::from_raw_os_error(-completion.result)));
                    }
                    // The ring sends whole buffers (MSG_WAITALL), so a short count is an error that follows.
                    if (completion.result as usize) < bytes.len() {
                        fail("a body was sent in parts: the server stopped reading");
                    }
                    spare[index] = Some(bytes);
                }
                (TokenKind::Receive, payload) => {
                    if let Payload::Buffer(id) = payload {
                        answers[index].extend_from_slice(ring.buffer(id, completion.result.max(0) as usize));
                        ring.release(id);
                    }
                    if completion.result <= 0 && completion.result != -libc::ENOBUFS {
                        fail(&format!("the server closed a connection ({})", completion.result));
                    }
                    if !completion.more {
                        let token = Token::new(TokenKind::Receive, 0, index as u32);
                        ring.push(token, Op::Receive { socket: sockets[index] });
                    }
                    if let Some(status) = take_answer(&mut answers[index]) {
                        if (200..300).contains(&status) {
                            ok += 1;
                        } else {
                            failed += 1;
                            if first_failure.is_empty() {
                                first_failure = status.to_string();
                            }
                        }
                        answered[index] = true;
                    }
                }
                _ => {}
            }
            if answered[index]
                && let Some(bytes) = spare[index].take()
            {
                answered[index] = false;
                if let Some(bytes) = make(bytes) {
                    let token = Token::new(TokenKind::Send, 0, index as u32);
                    ring.push(token, Op::Send { socket: sockets[index], bytes, from: 0 });
                }
            }
        }
    }
    let elapsed = began.elapsed().as_secs_f64();
    let cpu = args.server_pid.map_or(0.0, cpu_seconds) - cpu_before;
    let points = ok * args.points as u64;
    println!(
        "{{\"requests_per_s\":{:.0},\"points_per_s\":{:.0},\"ok\":{ok},\"failed\":{failed},\"first_failure\":\"{first_failure}\",\
         \"server_cpu_s\":{cpu:.2},\"server_cpu_s_per_million_points\":{:.4},\"server_cpu_share\":{:.3}}}",
        ok as f64 / elapsed,
        points as f64 / elapsed,
        cpu * 1e6 / points.max(1) as f64,
        cpu / elapsed,
    );
    // Answers under way are left to the server; the sockets close with the process.
    std::thread::sleep(Duration::from_millis(10));
}

/// One whole answer from the front of `bytes`: its status.
fn take_answer(bytes: &mut Vec<u8>) -> Option<u16> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = &bytes[..end];
    let status: u16 = std::str::from_utf8(head.get(9..12)?).ok()?.parse().ok()?;
    let lower = head.to_ascii_lowercase();
    let length = lower.windows(16).position(|w| w == b"content-length: ").map_or(0, |at| {
        lower[at + 16..].iter().take_while(|b| b.is_ascii_digit()).fold(0, |n, b| n * 10 + usize::from(b - b'0'))
    });
    if bytes.len() < end + length {
        return None;
    }
    bytes.drain(..end + length);
    Some(status)
}

/// Enough bodies that every series is in one of them; points of a body belong to consecutive series.
fn prepare(args: &Args) -> Vec<Body> {
    let mut random = args.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let count = args.series.div_ceil(args.points).max(1);
    (0..count)
        .map(|n| {
            let mut text = Vec::new();
            let mut stamps = Vec::new();
            if args.format == Format::Json {
                text.extend_from_slice(b"{\"metrics\":[");
            }
            for i in 0..args.points {
                let series = (n * args.points + i) % args.series;
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let value = (random % 100_000) as f64 / 100.0;
                let (host, region) = (series / 10, series % 4);
                let metric = ["cpu", "mem", "disk", "net", "load", "api", "queue", "gc", "io", "temp"][series % 10];
                match args.format {
                    Format::Json => {
                        if i > 0 {
                            text.push(b',');
                        }
                        text.extend_from_slice(
                            format!("{{\"name\":\"{metric}.usage\",\"value\":{value},\"timestamp\":").as_bytes(),
                        );
                        stamps.push(text.len());
                        text.extend_from_slice(b"0000000000000");
                        text.extend_from_slice(
                            format!(",\"tags\":{{\"host\":\"server-{host:05}\",\"region\":\"us-east-{region}\"}}}}").as_bytes(),
                        );
                    }
                    Format::Line => {
                        text.extend_from_slice(
                            format!("{metric}.usage,host=server-{host:05},region=us-east-{region} value={value} ").as_bytes(),
                        );
                        stamps.push(text.len());
                        text.extend_from_slice(b"0000000000000000000\n");
                    }
                    Format::VmJson => {
                        text.extend_from_slice(
                            format!(
                                "{{\"metric\":{{\"__name__\":\"{metric}.usage\",\"host\":\"server-{host:05}\",\"region\":\"us-east-{region}\"}},\"values\":[{value}],\"timestamps\":["
                            )
                            .as_bytes(),
                        );
                        stamps.push(text.len());
                        text.extend_from_slice(b"0000000000000]}\n");
                    }
                }
            }
            if args.format == Format::Json {
                text.extend_from_slice(b"]}");
            }
            let head = format!(
                "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n",
                args.path,
                args.target,
                text.len()
            );
            let stamps = stamps.into_iter().map(|at| at + head.len()).collect();
            let mut bytes = head.into_bytes();
            bytes.extend_from_slice(&text);
            Body { bytes, stamps }
        })
        .collect()
}

/// User and system time of a process, all threads, kernel workers included.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .unwrap_or_else(|error| fail(&format!("no process {pid}: {error}")));
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap_or(0) + fields[12].parse::<u64>().unwrap_or(0);
    // SAFETY: a plain query.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    ticks as f64 / hertz as f64
}

fn fail(message: &str) -> ! {
    eprintln!("bench-load: {message}");
    std::process::exit(1);
}
