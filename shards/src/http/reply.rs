//! Responses, rendered whole into a byte vector: the shard appends the replies of a connection's turn and sends once.
//!
//! Every reply but a 204 has a Content-Length; a 204 has neither length nor body. `Connection: close` says that the
//! connection ends; `X-Request-Id` is echoed. The replies of a steady state (204 and 200 to writes) are constants but for
//! a number.
//!
//! What a client does with a status is the reason for most of this (a 4xx is dropped, a 5xx is sent again). Shapes of
//! InfluxDB's are in `reply_influx`.

use super::head::{Head, REQUEST_ID_BYTES_MAX};
use super::reply_influx;
use super::route::{Dialect, Route};
use super::{Refusal, head::Method};
use crate::point::Rejections;

/// Whom a reply goes to. The shard keeps the parts while a reply waits for the disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct To<'a> {
    /// Say that the connection ends after this
    pub close: bool,
    /// The method was HEAD: the head of the reply to a GET, and no body
    pub head_only: bool,
    /// Echoed as `X-Request-Id`; must be visible ASCII ([`Head::request_id`] is)
    pub request_id: Option<&'a [u8]>,
}

impl<'a> To<'a> {
    pub fn of(head: &'a Head) -> To<'a> {
        To { close: !head.keep_alive(), head_only: head.method() == Method::Head, request_id: head.request_id() }
    }
}

/// A [`To`] that outlives its head, without an allocation: for replies that wait for the disk.
#[derive(Clone, Copy, Debug)]
pub struct KeptTo {
    close: bool,
    head_only: bool,
    has_id: bool,
    id_bytes: u8,
    id: [u8; REQUEST_ID_BYTES_MAX],
}

impl<'a> To<'a> {
    /// The same, but the connection ends: for every refusal.
    pub fn closing(self) -> To<'a> {
        To { close: true, ..self }
    }

    /// A request id longer than heads give is cut.
    pub fn keep(self) -> KeptTo {
        let given = self.request_id.unwrap_or(b"");
        let length = given.len().min(REQUEST_ID_BYTES_MAX);
        let mut id = [0; REQUEST_ID_BYTES_MAX];
        id[..length].copy_from_slice(&given[..length]);
        KeptTo {
            close: self.close,
            head_only: self.head_only,
            has_id: self.request_id.is_some(),
            id_bytes: length as u8,
            id,
        }
    }
}

impl KeptTo {
    pub fn to(&self) -> To<'_> {
        let id = &self.id[..usize::from(self.id_bytes)];
        To { close: self.close, head_only: self.head_only, request_id: self.has_id.then_some(id) }
    }
}

/// A client's budget, for the `X-RateLimit` fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Per second
    pub limit: u64,
    pub remaining: u64,
    /// Until the budget is whole again
    pub reset_s: u64,
}

/// An error reply, before it takes a dialect's shape.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fault<'a> {
    pub status: u16,
    /// snake_case name, as in the counters
    pub reason: &'a str,
    /// One sentence that says what is wrong and what would be right
    pub message: &'a str,
    /// The body's line that is at fault, from 1
    pub line: Option<u32>,
    /// The body's byte that is at fault, from 0
    pub byte_offset: Option<u64>,
    /// 1 to 30; a 429 or 503 without one gets 1
    pub retry_after_s: Option<u32>,
    pub quota: Option<Quota>,
    /// For 405
    pub allow: Option<&'static str>,
}

impl<'a> Fault<'a> {
    pub fn new(status: u16, reason: &'a str, message: &'a str) -> Fault<'a> {
        Fault { status, reason, message, ..Fault::default() }
    }
    pub fn unavailable(reason: &'a str, message: &'a str, retry_after_s: u32) -> Fault<'a> {
        Fault { retry_after_s: Some(retry_after_s), ..Fault::new(503, reason, message) }
    }
    pub fn wrong_method(route: Route) -> Fault<'static> {
        Fault {
            allow: Some(route.allow()),
            ..Fault::new(405, "method_not_allowed", "this route does not take this method; see the Allow field")
        }
    }
}

impl From<Refusal> for Fault<'static> {
    fn from(refusal: Refusal) -> Fault<'static> {
        Fault::new(refusal.status, refusal.reason, refusal.message)
    }
}

/// Sent when a client waits for it before its body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
const NO_CONTENT: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";
const OK_JSON: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";

/// 204: every point of a line protocol write was kept.
pub fn no_content(out: &mut Vec<u8>, to: To<'_>) {
    if !to.close && to.request_id.is_none() {
        out.extend_from_slice(NO_CONTENT);
        return;
    }
    status_line(out, 204);
    common_fields(out, to);
    out.extend_from_slice(b"\r\n");
}

/// 200 to a native write.
pub fn accepted(out: &mut Vec<u8>, to: To<'_>, accepted: u32, rejections: &Rejections) {
    let rejected = rejections.total();
    if rejected > 0 || to.close || to.request_id.is_some() {
        json(out, to, 200, |body| {
            body.extend_from_slice(b"{\"accepted\":");
            number(body, u64::from(accepted));
            body.extend_from_slice(b",\"rejected\":");
            number(body, u64::from(rejected));
            body.extend_from_slice(b",\"errors\":[");
            for (n, rejection) in rejections.first.iter().enumerate() {
                body.extend_from_slice(if n == 0 { b"{\"index\":" } else { b",{\"index\":" });
                number(body, u64::from(rejection.index));
                body.extend_from_slice(b",\"reason\":\"");
                escape(body, rejection.reason.name());
                body.extend_from_slice(b": ");
                escape(body, &rejection.message);
                body.extend_from_slice(b"\"}");
            }
            body.extend_from_slice(b"]}");
        });
        return;
    }
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(accepted).as_bytes();
    const BEFORE: &[u8] = b"{\"accepted\":";
    const AFTER: &[u8] = b",\"rejected\":0,\"errors\":[]}";
    out.extend_from_slice(OK_JSON);
    out.extend_from_slice(b"Content-Length: ");
    number(out, (BEFORE.len() + digits.len() + AFTER.len()) as u64);
    out.extend_from_slice(b"\r\n\r\n");
    out.extend_from_slice(BEFORE);
    out.extend_from_slice(digits);
    out.extend_from_slice(AFTER);
}

/// Any error, in the dialect's shape.
pub fn error(out: &mut Vec<u8>, to: To<'_>, dialect: Dialect, fault: &Fault<'_>) {
    match dialect {
        Dialect::Native => native_error(out, to, fault),
        Dialect::V1 => reply_influx::v1_error(out, to, fault),
        Dialect::V2 | Dialect::V3 => reply_influx::v2_error(out, to, fault),
    }
}

/// What a client over its quota does when told so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverQuota {
    /// 503 on Influx routes: every client keeps the batch and sends it again
    Defer,
    /// 429 there too: Telegraf's v1 output drops the batch
    Shed,
}

/// The client is over its quota: native 429, Influx routes by the operator's choice. `message` names the client, the
/// limit and the setting.
pub fn over_quota(
    out: &mut Vec<u8>,
    to: To<'_>,
    dialect: Dialect,
    over_quota: OverQuota,
    quota: Quota,
    retry_after_s: u32,
    message: &str,
) {
    let status = if dialect == Dialect::Native || over_quota == OverQuota::Shed { 429 } else { 503 };
    let fault =
        Fault { quota: Some(quota), retry_after_s: Some(retry_after_s), ..Fault::new(status, "over_quota", message) };
    error(out, to, dialect, &fault);
}

/// `{"error":message,"reason":reason,..}`
fn native_error(out: &mut Vec<u8>, to: To<'_>, fault: &Fault<'_>) {
    render(
        out,
        to,
        fault.status,
        JSON,
        |out| fault_fields(out, fault),
        |body| {
            body.extend_from_slice(b"{\"error\":\"");
            escape(body, fault.message);
            body.extend_from_slice(b"\",\"reason\":\"");
            escape(body, fault.reason);
            body.push(b'"');
            for (name, value) in [
                ("line", fault.line.map(u64::from)),
                ("byte_offset", fault.byte_offset),
                ("limit", fault.quota.map(|q| q.limit)),
                ("retry_after_s", retry_after_s(fault).map(u64::from)),
            ] {
                if let Some(value) = value {
                    body.extend_from_slice(b",\"");
                    body.extend_from_slice(name.as_bytes());
                    body.extend_from_slice(b"\":");
                    number(body, value);
                }
            }
            body.push(b'}');
        },
    );
}

/// Any JSON body.
pub fn json(out: &mut Vec<u8>, to: To<'_>, status: u16, body: impl FnOnce(&mut Vec<u8>)) {
    render(out, to, status, JSON, |_| {}, body);
}

/// A body of another type.
pub fn text(out: &mut Vec<u8>, to: To<'_>, status: u16, content_type: &str, body: impl FnOnce(&mut Vec<u8>)) {
    render(out, to, status, content_type, |_| {}, body);
}

pub(super) const JSON: &str = "application/json";

/// The one place that frames a reply with a body.
pub(super) fn render(
    out: &mut Vec<u8>,
    to: To<'_>,
    status: u16,
    content_type: &str,
    fields: impl FnOnce(&mut Vec<u8>),
    body: impl FnOnce(&mut Vec<u8>),
) {
    status_line(out, status);
    common_fields(out, to);
    field(out, "Content-Type", content_type.as_bytes());
    fields(out);
    out.extend_from_slice(b"Content-Length: ");
    let length_at = out.len();
    out.extend_from_slice(b"\r\n\r\n");
    let body_at = out.len();
    body(out);
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(out.len() - body_at).as_bytes();
    if to.head_only {
        out.truncate(body_at);
    }
    // The length stands before the body and is known after it: a few hundred bytes move.
    out.splice(length_at..length_at, digits.iter().copied());
}

/// Fields that an error brings with it.
pub(super) fn fault_fields(out: &mut Vec<u8>, fault: &Fault<'_>) {
    if let Some(seconds) = retry_after_s(fault) {
        number_field(out, "Retry-After", u64::from(seconds));
    }
    if let Some(quota) = fault.quota {
        number_field(out, "X-RateLimit-Limit", quota.limit);
        number_field(out, "X-RateLimit-Remaining", quota.remaining);
        number_field(out, "X-RateLimit-Reset", quota.reset_s);
    }
    if let Some(allow) = fault.allow {
        field(out, "Allow", allow.as_bytes());
    }
    match fault.status {
        401 => field(out, "WWW-Authenticate", b"Token realm=\"metricstream\""),
        // RFC 9110 12.5.3: a 415 for a content coding says which are taken.
        415 => field(out, "Accept-Encoding", b"gzip, zstd, identity"),
        _ => {}
    }
}

fn retry_after_s(fault: &Fault<'_>) -> Option<u32> {
    match fault.status {
        429 | 503 => Some(fault.retry_after_s.unwrap_or(1).clamp(1, 30)),
        _ => fault.retry_after_s,
    }
}

fn common_fields(out: &mut Vec<u8>, to: To<'_>) {
    if to.close {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    if let Some(id) = to.request_id {
        field(out, "X-Request-Id", id);
    }
}

/// `value` must hold no control characters; see [`header_text`] for text that may.
pub(super) fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn number_field(out: &mut Vec<u8>, name: &str, value: u64) {
    field(out, name, itoa::Buffer::new().format(value).as_bytes());
}

pub(super) fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Text that may quote a client, as a field value: visible ASCII and spaces, the rest as `?`, at most 512 bytes.
pub(super) fn header_text(out: &mut Vec<u8>, text: &str) {
    out.extend(text.bytes().take(512).map(|b| if (b' '..=b'~').contains(&b) { b } else { b'?' }));
}

/// JSON string content, without the quotes.
pub(super) fn escape(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for &byte in text.as_bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..=0x1f | 0x7f => {
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
            _ => out.push(byte),
        }
    }
}

fn status_line(out: &mut Vec<u8>, status: u16) {
    out.extend_from_slice(b"HTTP/1.1 ");
    number(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Status",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::point::Reason;

    /// Status, fields and body of one reply, and that it is framed right.
    pub(in crate::http) fn read(reply: &[u8]) -> (u16, Vec<(String, String)>, String) {
        let mut slots = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut slots);
        let httparse::Status::Complete(at) = response.parse(reply).expect("a response") else { panic!("partial") };
        let fields: Vec<(String, String)> = response
            .headers
            .iter()
            .map(|h| (h.name.to_string(), String::from_utf8(h.value.to_vec()).expect("ascii")))
            .collect();
        let status = response.code.expect("complete");
        let length = fields.iter().find(|(name, _)| name == "Content-Length").map(|(_, v)| v.parse::<usize>());
        if status == 204 {
            assert!(length.is_none() && at == reply.len());
        } else {
            assert_eq!(length, Some(Ok(reply.len() - at)));
        }
        (status, fields, String::from_utf8(reply[at..].to_vec()).expect("utf-8"))
    }

    #[test]
    fn a_clean_write_gets_a_constant() {
        let mut out = Vec::new();
        no_content(&mut out, To::default());
        assert_eq!(out, b"HTTP/1.1 204 No Content\r\n\r\n");
        out.clear();
        accepted(&mut out, To::default(), 12345, &Rejections::default());
        let (status, _, body) = read(&out);
        assert_eq!((status, body.as_str()), (200, "{\"accepted\":12345,\"rejected\":0,\"errors\":[]}"));
        let mut slow = Vec::new();
        accepted(&mut slow, To { request_id: Some(b"r"), ..To::default() }, 12345, &Rejections::default());
        assert_eq!(read(&slow).2, body);
    }

    #[test]
    fn request_ids_and_the_end_of_a_connection_are_told() {
        let to = To { close: true, request_id: Some(b"abc"), ..To::default() };
        let mut out = Vec::new();
        no_content(&mut out, to);
        assert_eq!(out, b"HTTP/1.1 204 No Content\r\nConnection: close\r\nX-Request-Id: abc\r\n\r\n");
    }

    #[test]
    fn a_kept_reply_goes_where_it_would_have_gone() {
        for request_id in [None, Some(&b"r-1"[..])] {
            let to = To { close: true, head_only: true, request_id };
            let kept = to.keep();
            assert_eq!((kept.to().close, kept.to().head_only, kept.to().request_id), (true, true, request_id));
        }
    }

    #[test]
    fn rejected_points_are_named_and_hostile_text_is_escaped() {
        let mut rejections = Rejections::default();
        rejections.add(3, Reason::InvalidValue, 2, || "got \"x\u{1}\u{7f}\\é\"".to_string());
        let mut out = Vec::new();
        accepted(&mut out, To::default(), 1, &rejections);
        let json: serde_json::Value = serde_json::from_str(&read(&out).2).expect("json");
        assert_eq!(json["rejected"], 2);
        assert_eq!(json["errors"][0]["index"], 3);
        assert_eq!(json["errors"][0]["reason"], "invalid_value: got \"x\u{1}\u{7f}\\é\"");
    }

    #[test]
    fn a_head_request_gets_the_fields_of_a_get_and_no_body() {
        let mut out = Vec::new();
        json(&mut out, To { head_only: true, ..To::default() }, 200, |body| body.extend_from_slice(b"{\"a\":1}"));
        assert!(out.ends_with(b"Content-Length: 7\r\n\r\n"));
    }

    #[test]
    fn over_quota_is_429_at_home_and_by_choice_elsewhere() {
        let quota = Quota { limit: 100, remaining: 0, reset_s: 2 };
        for (dialect, choice, status) in [
            (Dialect::Native, OverQuota::Defer, 429),
            (Dialect::V1, OverQuota::Defer, 503),
            (Dialect::V2, OverQuota::Defer, 503),
            (Dialect::V3, OverQuota::Shed, 429),
        ] {
            let mut out = Vec::new();
            over_quota(&mut out, To::default(), dialect, choice, quota, 99, "client 10.0.0.1 over 100 requests/s");
            let (got, fields, body) = read(&out);
            assert_eq!(got, status);
            for (name, value) in [("Retry-After", "30"), ("X-RateLimit-Limit", "100"), ("X-RateLimit-Remaining", "0")] {
                assert!(fields.contains(&(name.to_string(), value.to_string())), "{dialect:?} {name}");
            }
            assert!(body.contains("10.0.0.1"));
        }
    }

    #[test]
    fn native_errors_say_where() {
        let mut out = Vec::new();
        let fault = Fault { byte_offset: Some(17), ..Fault::new(400, "malformed", "no JSON at byte 17") };
        error(&mut out, To::default(), Dialect::Native, &fault);
        assert_eq!(read(&out).2, "{\"error\":\"no JSON at byte 17\",\"reason\":\"malformed\",\"byte_offset\":17}");
        out.clear();
        error(&mut out, To::default(), Dialect::Native, &Fault::wrong_method(Route::NativeWrite));
        assert!(read(&out).1.contains(&("Allow".to_string(), "POST".to_string())));
    }
}
