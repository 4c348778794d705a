//! What becomes of one request: the whole path on one screen is [`Path::serve`].

use crate::counters::{Counters, Shed};
use crate::decode::json::JsonDecoder;
use crate::decode::line::LineDecoder;
use crate::decode::{TimestampUnit, json::JsonError};
use crate::http::precision::{Precision, precision};
use crate::http::reply::{self, Fault, OverQuota, Quota, To};
use crate::http::{Dialect, Head, Inflater, Route, Routed, query_stub, reply_influx};
use crate::limiter::{self, Decision};
use crate::log::{AppendError, Envelope, LogState, LogWriter, Names};
use crate::point::{Batch, Protocol, Rejections, SeriesId};
use crate::series::{ClientIndex, SeriesTable};

use super::caller::{Caller, Callers, Unknown, limiter_hash};
use super::replies::{NOW, Replies};
use super::settings::{Listener, Settings};

/// The stages a request goes through, and what they keep between requests.
pub struct Path {
    pub callers: Callers,
    pub limiter: limiter::Local,
    pub series: SeriesTable,
    pub log: LogWriter,
    /// The log has waited for a segment for longer than making one takes: the disk is full or hangs
    pub log_stalled: bool,
    pub inflater: Inflater,
    pub lines: LineDecoder,
    pub json: JsonDecoder,
    pub batch: Batch,
    pub rejected: Rejections,
}

/// The keys of live series, as the log asks for them.
pub struct SeriesNames<'a>(pub &'a SeriesTable);

impl Names for SeriesNames<'_> {
    fn key(&self, id: u32) -> &[u8] {
        self.0.key(SeriesId(id))
    }
}

/// The moment a request is served at.
#[derive(Clone, Copy)]
pub struct Now {
    pub monotonic_ns: u64,
    /// Receive stamp: ns of the fold clock
    pub stamp_ns: i64,
}

impl Now {
    pub fn second(self) -> u32 {
        (self.stamp_ns / 1_000_000_000).clamp(0, i64::from(u32::MAX)) as u32
    }
}

/// What became of a request, besides the reply that was rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Answered for good; nothing was kept
    Answered,
    /// Its points were appended. The reply waits for this commit, unless the listener acknowledges from memory.
    Appended { commit: u64, waits: bool, protocol: Protocol, points: u64 },
}

/// What everything here needs to know and does not change.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub settings: &'a Settings,
    pub counters: &'a Counters,
    pub listener: &'a Listener,
    pub caller: &'a Caller,
    pub now: Now,
    pub draining: bool,
    pub up_s: u64,
}

/// What a client is told while the log takes nothing.
const LOG_RETRY_S: u32 = 2;
const DRAIN_RETRY_S: u32 = 5;
/// With this much appended and not flushed, a memory-mode listener answers 503.
const UNAVAILABLE: &str =
    "the log cannot take points now (its disk is full, failing or behind); nothing was kept, send again later";
const DRAINING: &str = "this server is stopping; send again in a moment";

impl Path {
    /// A whole request. Renders exactly one reply.
    ///
    /// The order matters: what is cheap and can refuse comes first, nothing is decoded for a client that is over its
    /// quota, and a 2xx to points exists only behind `log.append_batch`.
    pub fn serve(&mut self, cx: Context<'_>, head: &Head, raw: &[u8], replies: &mut Replies) -> Served {
        let to = To { close: !head.keep_alive() || cx.draining, ..To::of(head) };
        let route = match cx.listener.router.route(head.method(), head.path()) {
            Routed::To(route) => route,
            Routed::WrongMethod(route) => {
                return refuse(cx, replies, to, Some(route), route.dialect(), &Fault::wrong_method(route));
            }
            Routed::Unknown(dialect) => {
                let message = cx.listener.router.known_routes();
                return refuse(cx, replies, to, None, dialect, &Fault::new(404, "no_such_route", &message));
            }
        };
        if !route.is_write() {
            return self.answer(cx, head, route, raw, to, replies);
        }
        let dialect = route.dialect();
        let client = match self.admit(cx, head, route, to, replies) {
            Ok(client) => client,
            Err(refused) => return refused,
        };
        let body = match self.inflater.decode(head.content_encoding(), raw, &cx.settings.bounds) {
            Ok(body) => body,
            Err(refusal) => return refuse(cx, replies, to, Some(route), dialect, &refusal.into()),
        };
        let unit = match timestamp_unit(route, head, cx.settings.json_unit) {
            Ok(unit) => unit,
            Err(message) => {
                return refuse(cx, replies, to, Some(route), dialect, &Fault::new(400, "invalid_precision", message));
            }
        };
        let client = self.callers.entry(client).expect("resolved a moment ago");
        let terms = self.callers.terms(client);

        self.batch.clear();
        self.rejected.clear();
        self.series.begin_request(client, cx.now.second());
        let protocol = if route == Route::NativeWrite { Protocol::Json } else { Protocol::Influx };
        let (bounds, batch, rejected) = (&cx.settings.decode, &mut self.batch, &mut self.rejected);
        match protocol {
            Protocol::Json => {
                if let Err(JsonError { offset, message }) =
                    self.json.decode(body, unit, bounds, &mut self.series, batch, rejected)
                {
                    let fault = Fault { byte_offset: Some(offset as u64), ..Fault::new(400, "invalid_json", &message) };
                    return refuse(cx, replies, to, Some(route), dialect, &fault);
                }
            }
            Protocol::Influx => self.lines.decode(body, unit, bounds, &mut self.series, batch, rejected),
        }

        let books = cx.counters.points(protocol);
        let (points, refused) = (self.batch.len() as u64, u64::from(self.rejected.total()));
        cx.counters.body_bytes.add(body.len() as u64);
        books.received.add(points + refused);
        for (counter, &n) in books.rejected.iter().zip(&self.rejected.by_reason) {
            counter.add(u64::from(n));
        }
        self.limiter.charge(limiter_hash(client), &terms.limits, points, raw.len() as u64, cx.now.monotonic_ns);

        let mut served = Served::Answered;
        let mut waits_for = NOW;
        if !self.batch.is_empty() {
            let envelope = Envelope {
                client: client.id(),
                protocol,
                route: route as u8,
                request_id: text(head.request_id()),
                traceparent: text(head.traceparent()),
                idempotency_key: &[],
                same_timestamp_all: terms.same_timestamp_all.unwrap_or(match protocol {
                    Protocol::Json => cx.settings.json_same_timestamp_all,
                    Protocol::Influx => cx.settings.influx_same_timestamp_all,
                }),
            };
            match self.log.append_batch(&envelope, cx.now.stamp_ns, &self.batch, &SeriesNames(&self.series)) {
                Ok(commit) => {
                    let waits = !cx.listener.memory;
                    served = Served::Appended { commit: commit.0, waits, protocol, points };
                    waits_for = if waits { commit.0 } else { NOW };
                }
                Err(error) => {
                    books.rejected_unavailable.add(points);
                    let fault = match error {
                        AppendError::TooLarge => Fault::new(413, "record_too_large", "one point is too large to store"),
                        AppendError::Full | AppendError::Unavailable => {
                            cx.counters.shed[Shed::Log as usize].add(1);
                            Fault::unavailable("log_unavailable", UNAVAILABLE, LOG_RETRY_S)
                        }
                    };
                    return refuse(cx, replies, to, Some(route), dialect, &fault);
                }
            }
            books.accepted.add(points);
            books.overflow.add(self.batch.inline_keys.len() as u64);
        }

        let status;
        if protocol == Protocol::Json {
            status = 200;
            replies.push(waits_for, |out| reply::accepted(out, to, points as u32, &self.rejected));
        } else if refused == 0 {
            status = 204;
            replies.push(waits_for, |out| reply::no_content(out, to));
        } else {
            status = 400;
            let rejected = &self.rejected;
            replies.push(waits_for, |out| reply_influx::partial_write(out, to, dialect, points as u32, rejected, body));
        }
        cx.counters.count_request(route as usize, status);
        served
    }

    /// Everything that can refuse a write by its head alone. Also asked before a large body is read, so that nobody
    /// sends megabytes to hear "503". An error carries what `serve` returns; the reply is rendered.
    fn admit(
        &mut self,
        cx: Context<'_>,
        head: &Head,
        route: Route,
        to: To<'_>,
        replies: &mut Replies,
    ) -> Result<ClientIndex, Served> {
        let dialect = route.dialect();
        let unavailable = self.is_log_unavailable();
        if cx.draining {
            cx.counters.shed[Shed::Draining as usize].add(1);
            let fault = Fault::unavailable("draining", DRAINING, DRAIN_RETRY_S);
            return Err(refuse(cx, replies, to, Some(route), dialect, &fault));
        }
        let client = match self.callers.resolve(cx.caller, head, cx.listener.trust_client_id, cx.now.second()) {
            Ok(client) => client,
            Err(unknown) => {
                let text;
                let fault = match unknown {
                    Unknown::Missing => Fault::new(
                        401,
                        "unauthorized",
                        "a token is required: send Authorization: Bearer TOKEN (or Token, Basic, u and p)",
                    ),
                    Unknown::Wrong => Fault::new(401, "unauthorized", "nobody here has this token"),
                    Unknown::Id(error) => {
                        text = format!("X-Client-ID cannot be used: {error}");
                        match error {
                            crate::series::ClientError::TableFull => {
                                Fault::unavailable("too_many_clients", &text, LOG_RETRY_S)
                            }
                            _ => Fault::new(400, "invalid_client_id", &text),
                        }
                    }
                };
                return Err(refuse(cx, replies, to, Some(route), dialect, &fault));
            }
        };
        // Asked before the quota: a refusal for the log's sake must not cost the client a token.
        if unavailable || self.log.undurable_bytes() >= cx.settings.unflushed_bytes_max {
            cx.counters.shed[Shed::Log as usize].add(1);
            let fault = Fault::unavailable("log_unavailable", UNAVAILABLE, LOG_RETRY_S);
            return Err(refuse(cx, replies, to, Some(route), dialect, &fault));
        }
        let (hash, client) = (limiter_hash(client), client.index);
        let limits = self.callers.entry(client).map(|entry| self.callers.terms(entry).limits).unwrap_or_default();
        if let Decision::Refuse(refusal) = self.limiter.admit(hash, &limits, cx.now.monotonic_ns) {
            return Err(self.over_quota(cx, head, route, to, refusal, replies));
        }
        Ok(client)
    }

    /// The log takes nothing now: its disk failed or hangs, or it is at its bound.
    pub fn is_log_unavailable(&self) -> bool {
        matches!(self.log.state(), LogState::Failed | LogState::Probing) || self.log.is_at_bound() || self.log_stalled
    }

    fn over_quota(
        &mut self,
        cx: Context<'_>,
        head: &Head,
        route: Route,
        to: To<'_>,
        refusal: limiter::Refusal,
        replies: &mut Replies,
    ) -> Served {
        let id = match self.callers.resolve(cx.caller, head, cx.listener.trust_client_id, cx.now.second()) {
            Ok(client) => client.id().to_string(),
            Err(_) => String::new(),
        };
        let limit = refusal.dimension.name();
        let message = format!(
            "client {id} is over its limit of {} {limit} a second; raise {limit}_per_s in [limiter], or for this client \
             in a [[client]] block",
            refusal.limit_per_s
        );
        let quota = Quota {
            limit: refusal.limit_per_s,
            remaining: refusal.remaining,
            reset_s: refusal.reset_ms.div_ceil(1000),
        };
        let retry_after_s = (refusal.retry_after_ms.div_ceil(1000)).clamp(1, 30) as u32;
        let dialect = route.dialect();
        let status = if dialect == Dialect::Native || cx.settings.over_quota == OverQuota::Shed { 429 } else { 503 };
        cx.counters.limited[refusal.dimension as usize].add(1);
        cx.counters.shed[Shed::Quota as usize].add(1);
        cx.counters.count_request(route as usize, status);
        replies.push(NOW, |out| {
            reply::over_quota(out, to, dialect, cx.settings.over_quota, quota, retry_after_s, &message);
        });
        Served::Answered
    }

    /// Routes that take no points.
    fn answer(
        &mut self,
        cx: Context<'_>,
        head: &Head,
        route: Route,
        raw: &[u8],
        to: To<'_>,
        replies: &mut Replies,
    ) -> Served {
        let failing = if cx.draining {
            Some(DRAINING)
        } else if self.is_log_unavailable() {
            Some(UNAVAILABLE)
        } else {
            None
        };
        let version = cx.settings.version.as_str();
        let mut status = if failing.is_some() { 503 } else { 200 };
        match route {
            Route::V1Ping => {
                let verbose = head.query("verbose").is_some_and(|v| !matches!(&*v, "" | "0" | "false"));
                status = if verbose { 200 } else { 204 };
                replies.push(NOW, |out| reply_influx::ping(out, to, version, verbose));
            }
            Route::Health => replies.push(NOW, |out| reply_influx::health(out, to, version, failing)),
            Route::V2Ready => {
                replies.push(NOW, |out| reply_influx::ready(out, to, &cx.settings.started, cx.up_s, failing));
            }
            Route::V1Query => {
                let body = self.inflater.decode(head.content_encoding(), raw, &cx.settings.bounds).unwrap_or_default();
                match query_stub::statement(head.query_raw(), body) {
                    Some(statement) => {
                        status = 200;
                        let databases = cx.settings.databases.iter().map(String::as_str);
                        replies.push(NOW, |out| {
                            reply::json(out, to, 200, |body| query_stub::answer(body, &statement, databases));
                        });
                    }
                    None => {
                        let fault = Fault::new(400, "missing_query", "missing required parameter \"q\"");
                        return refuse(cx, replies, to, Some(route), route.dialect(), &fault);
                    }
                }
            }
            Route::NativeWrite | Route::V1Write | Route::V2Write | Route::V3Write => {
                unreachable!("`serve` takes the writes")
            }
        }
        cx.counters.count_request(route as usize, status);
        Served::Answered
    }

    /// A head whose body has not come: refuse now what can be refused. True: refused, the reply is rendered.
    ///
    /// The quota is not asked here but by `serve`, once a request.
    pub fn refuse_early(&mut self, cx: Context<'_>, head: &Head, replies: &mut Replies) -> bool {
        let to = To { close: true, ..To::of(head) };
        let route = match cx.listener.router.route(head.method(), head.path()) {
            Routed::To(route) if route.is_write() => route,
            Routed::To(_) => return false,
            Routed::WrongMethod(route) => {
                refuse(cx, replies, to, Some(route), route.dialect(), &Fault::wrong_method(route));
                return true;
            }
            Routed::Unknown(dialect) => {
                let message = cx.listener.router.known_routes();
                refuse(cx, replies, to, None, dialect, &Fault::new(404, "no_such_route", &message));
                return true;
            }
        };
        let fault = if cx.draining {
            cx.counters.shed[Shed::Draining as usize].add(1);
            Fault::unavailable("draining", DRAINING, DRAIN_RETRY_S)
        } else if self.is_log_unavailable() {
            cx.counters.shed[Shed::Log as usize].add(1);
            Fault::unavailable("log_unavailable", UNAVAILABLE, LOG_RETRY_S)
        } else {
            match self.callers.resolve(cx.caller, head, cx.listener.trust_client_id, cx.now.second()) {
                Err(Unknown::Missing | Unknown::Wrong) => {
                    Fault::new(401, "unauthorized", "this request carries no token that anybody here has")
                }
                _ => return false,
            }
        };
        refuse(cx, replies, to, Some(route), route.dialect(), &fault);
        true
    }
}

/// Renders an error and counts it.
pub fn refuse(
    cx: Context<'_>,
    replies: &mut Replies,
    to: To<'_>,
    route: Option<Route>,
    dialect: Dialect,
    fault: &Fault<'_>,
) -> Served {
    replies.push(NOW, |out| reply::error(out, to, dialect, fault));
    cx.counters.count_request(route.map_or(Route::ALL.len(), |route| route as usize), fault.status);
    Served::Answered
}

/// What the timestamps of this request count, by its route and `precision`.
fn timestamp_unit(route: Route, head: &Head, json_unit: TimestampUnit) -> Result<TimestampUnit, &'static str> {
    if route == Route::NativeWrite {
        return Ok(json_unit);
    }
    let parameter = head.query("precision");
    precision(route, parameter.as_deref()).map(|precision| match precision {
        Precision::Auto => TimestampUnit::ByMagnitude,
        Precision::Nanosecond => TimestampUnit::Ns,
        Precision::Microsecond => TimestampUnit::Us,
        Precision::Millisecond => TimestampUnit::Ms,
        Precision::Second => TimestampUnit::S,
        Precision::Minute => TimestampUnit::Minutes,
        Precision::Hour => TimestampUnit::Hours,
    })
}

fn text(field: Option<&[u8]>) -> &str {
    field.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or("")
}
