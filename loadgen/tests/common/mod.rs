//! A plan to start from, and a server that plays a script.
#![allow(dead_code)] // each test file uses a part

pub mod liar;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use metricstream_loadgen::engine::{self, Options};
use metricstream_loadgen::plan::*;
use metricstream_loadgen::result::RunResult;

pub fn plan(shape: Shape) -> Plan {
    Plan {
        seed: 1,
        epoch_ns: 1_700_000_000_000_000_000,
        workload: Workload {
            protocol: Protocol::Line,
            clients: 1,
            series: 10,
            tags: 2,
            batch_points: 1,
            churn_per_minute: 0.0,
            values: Values::Gauge,
            timestamps: Timestamps::Now,
            bad_share: 0.0,
        },
        shape,
        transport: Transport {
            path: "/write?precision=ns".to_owned(),
            connections: 1,
            connection: Connection::KeepAlive,
            compression: Compression::None,
            identity: Identity::None,
            token: None,
            retry: Retry::Never,
            timeout_ms: 1000,
        },
    }
}

pub fn options(target: SocketAddr) -> Options {
    Options { target, ledger: None, server_metrics: None, server_pid: None, live: false, core: None }
}

pub fn run(plan: &Plan, target: SocketAddr) -> RunResult {
    engine::run(plan, options(target)).unwrap_or_else(|failure| panic!("{failure}"))
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Instant,
    /// Counts from 0 in the order of acceptance.
    pub connection: usize,
    pub head: String,
    pub body: Vec<u8>,
}

#[derive(Clone, Debug)]
pub enum Play {
    /// These bytes
    Answer(&'static str),
    /// Nothing for this request; the connection stays.
    Hold,
    /// These bytes, then the end of the connection
    AnswerAndClose(&'static str),
    /// A reset (RST)
    Reset,
}

pub const OK: &str = "HTTP/1.1 204 No Content\r\n\r\n";

pub struct Scripted {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Scripted {
    /// `script` is asked for each request, with its number in the order of arrival (over all connections, from 0).
    pub fn start(script: impl Fn(usize, &Seen) -> Play + Send + Sync + 'static) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (all, script) = (Arc::clone(&seen), Arc::new(script));
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let (all, script) = (Arc::clone(&all), Arc::clone(&script));
                let stream = stream.expect("accepted");
                std::thread::spawn(move || serve(stream, connection, &all, &*script));
            }
        });
        Scripted { address, seen }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }
}

fn serve(mut stream: TcpStream, connection: usize, all: &Mutex<Vec<Seen>>, script: &dyn Fn(usize, &Seen) -> Play) {
    let mut bytes = Vec::new();
    let mut piece = [0; 65536];
    loop {
        while let Some((head, body, rest)) = split(&bytes) {
            bytes = rest;
            let seen = Seen { at: Instant::now(), connection, head, body };
            let number = {
                let mut all = all.lock().expect("no panic");
                all.push(seen.clone());
                all.len() - 1
            };
            match script(number, &seen) {
                Play::Answer(text) => {
                    if stream.write_all(text.as_bytes()).is_err() {
                        return;
                    }
                }
                Play::Hold => {}
                Play::AnswerAndClose(text) => {
                    let _ = stream.write_all(text.as_bytes());
                    return;
                }
                Play::Reset => {
                    socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).expect("a socket");
                    return;
                }
            }
        }
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return,
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
        }
    }
}

/// Head, body, and what follows.
fn split(bytes: &[u8]) -> Option<(String, Vec<u8>, Vec<u8>)> {
    let at = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8(bytes[..at].to_vec()).expect("a head is text");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
    let length: usize = length.parse().expect("a number");
    let rest = &bytes[at..];
    (rest.len() >= length).then(|| (head, rest[..length].to_vec(), rest[length..].to_vec()))
}
