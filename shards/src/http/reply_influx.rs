//! Replies in InfluxDB's shapes.
//!
//! | | v1 | v2 | v3 |
//! |---|---|---|---|
//! | error | `{"error"}` and X-InfluxDB-Error | `{"code","message","line"?}` | as v2 |
//! | some lines refused | 400 `partial write: .. dropped=n` | 400 `invalid`, the same words | 400 `{"error":"partial write of line protocol occurred","data":[{"original_line","line_number","error_message"}]}` |
//! | all lines refused | 400 `unable to parse: .. dropped=n` | the same words | 400 `{"error":"parsing failed for write_lp endpoint","data":{..}}` |
//!
//! v1 as its httpd handler writes it. v2 has been 400 for partial writes in every InfluxData product since September
//! 2024 (InfluxDB 2 OSS refuses the whole batch when one line does not parse, and answers 422 when storage drops points;
//! here good lines are always kept, and every v2 client treats 400 as final). v3 as influxdb3_server's tests have it.
//!
//! Telegraf's v1 output reads the body of a failure: some phrases in a 5xx make it take the batch for delivered, so
//! none of them may stand there ([`FORBIDDEN_IN_5XX`]).

use super::reply::{Fault, JSON, To, escape, fault_fields, header_text, json, number, render};
use super::route::Dialect;
use crate::point::{Rejection, Rejections};

/// Phrases that a 5xx never holds on these routes, compared without case.
pub const FORBIDDEN_IN_5XX: [&str; 6] = [
    "partial write",
    "unable to parse",
    "database not found",
    "retention policy not found",
    "points beyond retention policy",
    "hinted handoff queue not empty",
];

/// Longest part of a refused line that is quoted back.
const QUOTED_LINE_BYTES_MAX: usize = 256;

pub(super) fn v1_error(out: &mut Vec<u8>, to: To<'_>, fault: &Fault<'_>) {
    let message = safe_message(fault);
    v1(out, to, fault, |out| escape(out, message), |out| header_text(out, message));
}

fn v1(
    out: &mut Vec<u8>,
    to: To<'_>,
    fault: &Fault<'_>,
    message: impl FnOnce(&mut Vec<u8>),
    header: impl FnOnce(&mut Vec<u8>),
) {
    let fields = |out: &mut Vec<u8>| {
        fault_fields(out, fault);
        out.extend_from_slice(b"X-InfluxDB-Error: ");
        header(out);
        out.extend_from_slice(b"\r\n");
    };
    render(out, to, fault.status, JSON, fields, |body| {
        body.extend_from_slice(b"{\"error\":\"");
        message(body);
        body.extend_from_slice(b"\"}\n");
    });
}

pub(super) fn v2_error(out: &mut Vec<u8>, to: To<'_>, fault: &Fault<'_>) {
    let message = safe_message(fault);
    render(
        out,
        to,
        fault.status,
        JSON,
        |out| fault_fields(out, fault),
        |body| {
            body.extend_from_slice(b"{\"code\":\"");
            body.extend_from_slice(code(fault.status).as_bytes());
            body.extend_from_slice(b"\",\"message\":\"");
            escape(body, message);
            body.push(b'"');
            if let Some(line) = fault.line {
                body.extend_from_slice(b",\"line\":");
                number(body, u64::from(line));
            }
            body.push(b'}');
        },
    );
}

/// Some lines, or all (`accepted` is 0), were refused. `body` is the decoded body, for v3, which quotes lines.
/// `dialect` is not `Native`, whose answer is [`super::reply::accepted`].
pub fn partial_write(
    out: &mut Vec<u8>,
    to: To<'_>,
    dialect: Dialect,
    accepted: u32,
    rejections: &Rejections,
    body: &[u8],
) {
    if dialect == Dialect::V3 {
        return v3_partial_write(out, to, accepted, rejections, body);
    }
    let mut message = String::from(if accepted > 0 { "partial write: " } else { "unable to parse: " });
    let first = rejections.first.first();
    if let Some(rejection) = first {
        message.push_str("line ");
        message.push_str(itoa::Buffer::new().format(rejection.index));
        message.push_str(": ");
        push_reason(&mut message, rejection);
    }
    message.push_str(" dropped=");
    message.push_str(itoa::Buffer::new().format(rejections.total()));
    let fault = Fault { line: first.map(|r| r.index), ..Fault::new(400, "partial_write", &message) };
    super::reply::error(out, to, dialect, &fault);
}

fn push_reason(message: &mut String, rejection: &Rejection) {
    message.push_str(rejection.reason.name());
    message.push_str(": ");
    message.push_str(&rejection.message);
}

fn v3_partial_write(out: &mut Vec<u8>, to: To<'_>, accepted: u32, rejections: &Rejections, lines: &[u8]) {
    json(out, to, 400, |body| {
        if accepted > 0 {
            body.extend_from_slice(b"{\"error\":\"partial write of line protocol occurred\",\"data\":[");
            for (n, rejection) in rejections.first.iter().enumerate() {
                if n > 0 {
                    body.push(b',');
                }
                v3_line(body, rejection, lines);
            }
            body.extend_from_slice(b"]}");
        } else {
            body.extend_from_slice(b"{\"error\":\"parsing failed for write_lp endpoint\",\"data\":");
            match rejections.first.first() {
                Some(rejection) => v3_line(body, rejection, lines),
                None => body.extend_from_slice(b"null"),
            }
            body.push(b'}');
        }
    });
}

fn v3_line(body: &mut Vec<u8>, rejection: &Rejection, lines: &[u8]) {
    body.extend_from_slice(b"{\"original_line\":\"");
    escape(body, &String::from_utf8_lossy(line(lines, rejection.index)));
    body.extend_from_slice(b"\",\"line_number\":");
    number(body, u64::from(rejection.index));
    body.extend_from_slice(b",\"error_message\":\"");
    escape(body, rejection.reason.name());
    body.extend_from_slice(b": ");
    escape(body, &rejection.message);
    body.extend_from_slice(b"\"}");
}

/// Line `number`, counted from 1 by newlines, cut to what is quoted.
fn line(lines: &[u8], number: u32) -> &[u8] {
    let line = lines.split(|b| *b == b'\n').nth((number as usize).saturating_sub(1)).unwrap_or(b"");
    &line[..line.len().min(QUOTED_LINE_BYTES_MAX)]
}

/// 204 with the version in its fields; with `verbose`, 200 and the version as JSON.
pub fn ping(out: &mut Vec<u8>, to: To<'_>, version: &str, verbose: bool) {
    if verbose {
        let fields = |out: &mut Vec<u8>| version_fields(out, version);
        return render(out, to, 200, JSON, fields, |body| {
            body.extend_from_slice(b"{\"version\":\"");
            escape(body, version);
            body.extend_from_slice(b"\"}");
        });
    }
    let before = out.len();
    super::reply::no_content(out, to);
    // Before the empty line.
    debug_assert!(out.len() > before + 2);
    out.truncate(out.len() - 2);
    version_fields(out, version);
    out.extend_from_slice(b"\r\n");
}

/// Clients ask for these to tell a 1.x server (that takes `/write`) from others.
fn version_fields(out: &mut Vec<u8>, version: &str) {
    out.extend_from_slice(b"X-Influxdb-Build: OSS\r\nX-Influxdb-Version: ");
    header_text(out, version);
    out.extend_from_slice(b"\r\n");
}

/// `/health`: 200 `pass`, or 503 `fail` with a reason.
pub fn health(out: &mut Vec<u8>, to: To<'_>, version: &str, failing: Option<&str>) {
    let (status, word, message) = match failing {
        None => (200, "pass", "ready for writes"),
        Some(why) => (503, "fail", safe_5xx(why)),
    };
    let fault = Fault::new(status, "", message);
    render(
        out,
        to,
        status,
        JSON,
        |out| fault_fields(out, &fault),
        |body| {
            body.extend_from_slice(b"{\"name\":\"metricstream\",\"message\":\"");
            escape(body, message);
            body.extend_from_slice(b"\",\"status\":\"");
            body.extend_from_slice(word.as_bytes());
            body.extend_from_slice(b"\",\"checks\":[],\"version\":\"");
            escape(body, version);
            body.extend_from_slice(b"\"}");
        },
    );
}

/// `/ready`: 200 with the start time (RFC 3339) and the time since, or 503.
pub fn ready(out: &mut Vec<u8>, to: To<'_>, started: &str, up_s: u64, failing: Option<&str>) {
    if let Some(why) = failing {
        return v2_error(out, to, &Fault::new(503, "not_ready", why));
    }
    json(out, to, 200, |body| {
        body.extend_from_slice(b"{\"status\":\"ready\",\"started\":\"");
        escape(body, started);
        body.extend_from_slice(b"\",\"up\":\"");
        // A Go duration, as InfluxDB writes it.
        for (value, unit) in [(up_s / 3600, b'h'), (up_s / 60 % 60, b'm'), (up_s % 60, b's')] {
            number(body, value);
            body.push(unit);
        }
        body.extend_from_slice(b"\"}");
    });
}

fn code(status: u16) -> &'static str {
    match status {
        401 => "unauthorized",
        403 => "forbidden",
        404 => "not found",
        405 => "method not allowed",
        413 => "request too large",
        422 => "unprocessable entity",
        429 => "too many requests",
        500 => "internal error",
        503 => "unavailable",
        _ => "invalid",
    }
}

fn safe_message<'a>(fault: &Fault<'a>) -> &'a str {
    if fault.status >= 500 { safe_5xx(fault.message) } else { fault.message }
}

fn safe_5xx(message: &str) -> &str {
    let lower = message.to_ascii_lowercase();
    if FORBIDDEN_IN_5XX.iter().any(|phrase| lower.contains(phrase)) {
        return "the server cannot take this batch now; send it again later";
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::reply::{self, tests::read};
    use crate::point::Reason;

    fn rejections() -> Rejections {
        let mut rejections = Rejections::default();
        rejections.add(2, Reason::MissingValue, 3, || "no field after \"cpu\"".to_string());
        rejections
    }

    #[test]
    fn a_partial_write_is_told_as_each_version_tells_it() {
        let lines = b"ok v=1\ncpu,a=\"b\nok v=2";
        for (dialect, accepted, body) in [
            (
                Dialect::V1,
                2,
                "{\"error\":\"partial write: line 2: missing_value: no field after \\\"cpu\\\" dropped=3\"}\n",
            ),
            (
                Dialect::V1,
                0,
                "{\"error\":\"unable to parse: line 2: missing_value: no field after \\\"cpu\\\" dropped=3\"}\n",
            ),
            (
                Dialect::V2,
                2,
                "{\"code\":\"invalid\",\"message\":\"partial write: line 2: missing_value: no field after \\\"cpu\\\" \
                 dropped=3\",\"line\":2}",
            ),
            (
                Dialect::V3,
                2,
                "{\"error\":\"partial write of line protocol occurred\",\"data\":[{\"original_line\":\"cpu,a=\\\"b\",\
                 \"line_number\":2,\"error_message\":\"missing_value: no field after \\\"cpu\\\"\"}]}",
            ),
            (
                Dialect::V3,
                0,
                "{\"error\":\"parsing failed for write_lp endpoint\",\"data\":{\"original_line\":\"cpu,a=\\\"b\",\
                 \"line_number\":2,\"error_message\":\"missing_value: no field after \\\"cpu\\\"\"}}",
            ),
        ] {
            let mut out = Vec::new();
            partial_write(&mut out, To::default(), dialect, accepted, &rejections(), lines);
            let (status, fields, got) = read(&out);
            assert_eq!((status, got.as_str()), (400, body), "{dialect:?} {accepted}");
            let header = fields.iter().find(|(name, _)| name == "X-InfluxDB-Error");
            assert_eq!(header.is_some(), dialect == Dialect::V1);
        }
    }

    #[test]
    fn no_5xx_says_what_telegraf_takes_for_delivered() {
        for dialect in [Dialect::V1, Dialect::V2, Dialect::V3] {
            for phrase in FORBIDDEN_IN_5XX {
                let message = format!("disk: {}", phrase.to_uppercase());
                let mut out = Vec::new();
                reply::error(&mut out, To::default(), dialect, &Fault::unavailable("disk", &message, 5));
                let text = String::from_utf8(out).expect("utf-8").to_lowercase();
                assert!(!text.contains(phrase), "{dialect:?} {phrase}");
                assert!(text.contains("retry-after: 5"));
            }
        }
    }

    #[test]
    fn a_message_cannot_add_a_header_field() {
        let mut out = Vec::new();
        reply::error(&mut out, To::default(), Dialect::V1, &Fault::new(400, "x", "a\r\nSet-Cookie: b\u{e9}"));
        let (_, fields, _) = read(&out);
        assert!(fields.iter().all(|(name, _)| name != "Set-Cookie"));
    }

    #[test]
    fn errors_have_the_codes_of_influxdb() {
        for (status, code) in
            [(401, "unauthorized"), (404, "not found"), (413, "request too large"), (503, "unavailable")]
        {
            let mut out = Vec::new();
            reply::error(&mut out, To::default(), Dialect::V2, &Fault::new(status, "r", "m"));
            assert_eq!(read(&out).2, format!("{{\"code\":\"{code}\",\"message\":\"m\"}}"));
        }
    }

    #[test]
    fn ping_health_and_ready_answer_as_clients_expect() {
        let mut out = Vec::new();
        ping(&mut out, To { close: true, ..To::default() }, "1.8.10", false);
        let (status, fields, _) = read(&out);
        assert_eq!(status, 204);
        assert!(fields.contains(&("X-Influxdb-Version".to_string(), "1.8.10".to_string())));
        out.clear();
        ping(&mut out, To::default(), "1.8.10", true);
        assert_eq!(read(&out).2, "{\"version\":\"1.8.10\"}");
        out.clear();
        health(&mut out, To::default(), "0.1.0", None);
        assert!(read(&out).2.contains("\"status\":\"pass\""));
        out.clear();
        health(&mut out, To::default(), "0.1.0", Some("the log is full"));
        assert_eq!(read(&out).0, 503);
        out.clear();
        ready(&mut out, To::default(), "2026-01-01T00:00:00Z", 3723, None);
        assert_eq!(read(&out).2, "{\"status\":\"ready\",\"started\":\"2026-01-01T00:00:00Z\",\"up\":\"1h2m3s\"}");
    }
}
