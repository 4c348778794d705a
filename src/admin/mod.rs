//! The admin listener: what operators, Prometheus and people with a browser ask. Loopback by default, no password.
//!
//! The HTTP of it is the shards' own (`shards::http`), moved by the backplane's executor.

pub mod exposition;
mod status;
mod window_page;
#[cfg(test)]
mod window_page_tests;
mod windows;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use metricstream_shards::counters::{Counters, Distributions};
use metricstream_shards::http::reply::{self, Fault, To};
use metricstream_shards::http::{Assembler, Bounds, Dialect, Head, Method, Step};
use metricstream_shards::shard::settings::Shared;

use crate::backplane::executor::{Backplane, Listener, Queue, Stream};
use crate::backplane::segments::Gauges;
use crate::forward::books::ForwardBooks;
use crate::reducer::thread::SharedView;
use crate::reducer::zones::Zones;

/// What the admin listener can see.
pub struct State {
    pub version: &'static str,
    pub node_id: u128,
    pub origin: Instant,
    pub shared: Arc<Shared>,
    pub counters: Vec<Arc<Counters>>,
    pub logs: Vec<(u32, Arc<Gauges>)>,
    pub mailboxes: Vec<Box<dyn Fn() -> (usize, usize)>>,
    pub view: SharedView,
    pub forward: Arc<ForwardBooks>,
    pub listeners: Vec<String>,
    pub flush_mode: &'static str,
    pub kernel: String,
    /// The newest copy of each shard's distributions
    pub distributions: RefCell<Vec<Distributions>>,
    /// What queries have learned of the aggregate log
    pub zones: RefCell<Zones>,
}

const CONNECTIONS_MAX: usize = 64;
const TIMEOUT: Duration = Duration::from_secs(30);

/// Accepts until `stop`.
pub async fn serve(backplane: Backplane, listener: Listener, state: Rc<State>, stop: Rc<Cell<bool>>) {
    let open = Rc::new(Cell::new(0usize));
    while !stop.get() {
        match listener.accept().await {
            Ok(stream) if open.get() < CONNECTIONS_MAX => {
                open.set(open.get() + 1);
                let (state, open) = (state.clone(), open.clone());
                backplane.spawn(Queue::Admin, async move {
                    converse(stream, &state).await;
                    open.set(open.get() - 1);
                });
            }
            // Over the bound: closed by dropping it.
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(cause = "admin_accept", %error, "the admin listener cannot accept; trying again");
                crate::backplane::executor::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// One connection, request by request.
async fn converse(mut stream: Stream, state: &State) {
    stream.set_timeouts(TIMEOUT);
    let bounds = Bounds { body_bytes_max: 64 << 10, ..Bounds::default() };
    let mut assembler = Assembler::new(0);
    let mut buffer = vec![0; 16 << 10];
    let mut out = Vec::new();
    loop {
        let Ok(read) = stream.read(&mut buffer).await else { return };
        if read == 0 {
            return;
        }
        let mut input = &buffer[..read];
        let mut close = false;
        while !input.is_empty() && !close {
            let now_ns = state.origin.elapsed().as_nanos() as u64;
            match assembler.push(input, now_ns, &bounds) {
                Step::NeedMore { .. } => break,
                Step::Head { consumed, send_continue } => {
                    input = &input[consumed..];
                    if send_continue {
                        out.extend_from_slice(reply::CONTINUE);
                    }
                }
                Step::Request { consumed, .. } => {
                    let head = assembler.head();
                    close = !head.keep_alive();
                    answer(state, head, &mut out).await;
                    input = &input[consumed..];
                }
                Step::Refuse(refusal) => {
                    let to = To { close: true, ..To::default() };
                    reply::error(&mut out, to, Dialect::Native, &Fault::from(refusal));
                    close = true;
                }
                Step::Close => close = true,
            }
        }
        if !out.is_empty() {
            if stream.write_all(&out).await.is_err() {
                return;
            }
            out.clear();
        }
        if close {
            stream.close().await;
            return;
        }
    }
}

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

async fn answer(state: &State, head: &Head, out: &mut Vec<u8>) {
    let to = To::of(head);
    if !matches!(head.method(), Method::Get | Method::Head) {
        let fault = Fault {
            allow: Some("GET, HEAD"),
            ..Fault::new(405, "method_not_allowed", "the admin listener takes GET and HEAD")
        };
        return reply::error(out, to, Dialect::Native, &fault);
    }
    match head.path() {
        "/metrics" => {
            let text = metrics(state);
            reply::text(out, to, 200, PROMETHEUS, |body| body.extend_from_slice(text.as_bytes()));
        }
        "/aggregates" => {
            let newest = state.view.lock().expect("nobody panics with the view in hand").newest.clone();
            reply::text(out, to, 200, PROMETHEUS, |body| body.extend_from_slice(newest.as_bytes()));
        }
        "/healthz" => reply::text(out, to, 200, TEXT, |body| body.extend_from_slice(b"ok\n")),
        "/readyz" => match not_ready(state) {
            None => reply::text(out, to, 200, TEXT, |body| body.extend_from_slice(b"ready\n")),
            Some(why) => reply::error(out, to, Dialect::Native, &Fault::unavailable("not_ready", why, 1)),
        },
        "/api/v1/status" => {
            let status = status::status(state).to_string();
            reply::json(out, to, 200, |body| body.extend_from_slice(status.as_bytes()));
        }
        "/api/v1/windows" => match windows::windows(state, head).await {
            Ok(json) => reply::json(out, to, 200, |body| body.extend_from_slice(json.as_bytes())),
            Err(message) => {
                reply::error(out, to, Dialect::Native, &Fault::new(400, "invalid_query", &message));
            }
        },
        _ => {
            let message =
                "no such route; there are /metrics, /aggregates, /healthz, /readyz, /api/v1/status, /api/v1/windows";
            reply::error(out, to, Dialect::Native, &Fault::new(404, "no_such_route", message));
        }
    }
}

/// Why the process should get no traffic now.
fn not_ready(state: &State) -> Option<&'static str> {
    if state.shared.draining.load(Ordering::Relaxed) {
        return Some("this server is stopping");
    }
    if state.counters.iter().any(|counters| counters.log_unavailable.get() == 1) {
        return Some("a log takes nothing: its disk is full, failing or hung");
    }
    None
}

fn metrics(state: &State) -> String {
    let mut newest = state.distributions.borrow_mut();
    for (kept, counters) in newest.iter_mut().zip(&state.counters) {
        if let Some(copy) = counters.fetch() {
            *kept = *copy;
        }
    }
    let mut out = exposition::Exposition::default();
    exposition::shards(&mut out, &state.counters, &newest);
    exposition::process(&mut out, state);
    crate::forward::exposition::forward(&mut out, &state.forward);
    out.finish()
}
