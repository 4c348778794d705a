//! What an InfluxDB write endpoint's answer means. Pure; one table, walked by a test.
//!
//! | answer | meaning |
//! |---|---|
//! | 204 | written |
//! | 400 `partial write: .. dropped=N` | written but for N points, which the server refuses for good |
//! | 400 of a port that speaks TLS | an operator has to write https:// |
//! | 400 otherwise, 422 | some line in it is bad: find it |
//! | 413 | too large: halve |
//! | 401, 403, 404, other 2xx, 3xx and 4xx | an operator has to change something: hold |
//! | a TLS handshake that comes to nothing | the same |
//! | 408, 429, 5xx | later, `Retry-After` at the earliest |
//! | no answer, half an answer, none in time | later |

use crate::forward::retry::parse_retry_after;
use serde::Deserialize;
use std::time::{Duration, SystemTime};

/// What was heard of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Answer {
        status: u16,
        /// `X-Influxdb-Error`, else the body
        text: String,
        retry_after: Option<String>,
    },
    /// No connection, a reset, half an answer, none in time: one clause that says which
    Nothing { why: String, timeout: bool },
    /// The two sides do not come together in TLS, and waiting does not help: a sentence that says what to do
    NoTls { why: String },
}

/// What it means for the lines that were sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Written,
    /// Written but for this many
    Partial {
        dropped: u64,
        reason: String,
    },
    /// Nothing, or not all, was written, because of a line in it
    BadLine {
        reason: String,
    },
    TooLarge {
        reason: String,
    },
    /// Waits for an operator
    Held {
        reason: String,
    },
    /// Waits for the server
    Later {
        reason: String,
        retry_after: Option<Duration>,
    },
}

/// By which calls are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Written = 0,
    Partial,
    BadLine,
    TooLarge,
    Held,
    /// 408, 429 and 5xx
    Busy,
    Timeout,
    Network,
}

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::Written,
        Kind::Partial,
        Kind::BadLine,
        Kind::TooLarge,
        Kind::Held,
        Kind::Busy,
        Kind::Timeout,
        Kind::Network,
    ];
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Written => "written",
            Kind::Partial => "partial",
            Kind::BadLine => "bad_line",
            Kind::TooLarge => "too_large",
            Kind::Held => "held",
            Kind::Busy => "busy",
            Kind::Timeout => "timeout",
            Kind::Network => "network",
        }
    }
    pub const fn of(verdict: &Verdict, heard: &Heard) -> Kind {
        match (verdict, heard) {
            (_, Heard::Nothing { timeout: true, .. }) => Kind::Timeout,
            (_, Heard::Nothing { .. }) => Kind::Network,
            (Verdict::Written, _) => Kind::Written,
            (Verdict::Partial { .. }, _) => Kind::Partial,
            (Verdict::BadLine { .. }, _) => Kind::BadLine,
            (Verdict::TooLarge { .. }, _) => Kind::TooLarge,
            (Verdict::Held { .. }, _) => Kind::Held,
            (Verdict::Later { .. }, _) => Kind::Busy,
        }
    }
}

/// Longest reason that is kept: bodies of proxies are pages.
const REASON_BYTES_MAX: usize = 300;

pub fn judge(heard: &Heard, now: SystemTime) -> Verdict {
    let (status, text, retry_after) = match heard {
        Heard::Nothing { why, .. } => return Verdict::Later { reason: why.clone(), retry_after: None },
        Heard::NoTls { why } => return Verdict::Held { reason: why.clone() },
        Heard::Answer { status, text, retry_after } => (*status, message(text), retry_after),
    };
    match status {
        204 => Verdict::Written,
        400 if is_of_a_tls_port(&text) => {
            Verdict::Held { reason: format!("{status} {text} Write https:// in the URL.") }
        }
        400 | 422 => match dropped(&text) {
            // InfluxDB 1.x says so when lines could not be parsed: `dropped=0`, and the lines are not there. They are known
            // when they are sent alone.
            Some(_) if text.contains("unable to parse") => Verdict::BadLine { reason: text },
            Some(dropped) => Verdict::Partial { dropped, reason: text },
            None => Verdict::BadLine { reason: text },
        },
        413 => Verdict::TooLarge { reason: format!("413 {text}") },
        // 1.x answers 500 when the retention policy of a write is gone: waiting alone does not bring it back.
        500..=599 if text.contains("retention policy not found") || text.contains("database not found") => {
            Verdict::Held { reason: format!("{status} {text}") }
        }
        408 | 429 | 500..=599 => Verdict::Later {
            reason: format!("{status} {text}"),
            retry_after: retry_after.as_deref().and_then(|value| parse_retry_after(value, now)),
        },
        200..=299 => {
            Verdict::Held { reason: format!("{status} where a write endpoint says 204: is the URL that of InfluxDB?") }
        }
        300..=399 => {
            Verdict::Held { reason: format!("{status}, a redirection, which is not followed: set the URL it leads to") }
        }
        _ => Verdict::Held { reason: format!("{status} {text}") },
    }
}

/// The server's words: `{"error":..}` of v1, `{"code":..,"message":..}` of v2, else the text itself, shortened.
fn message(text: &str) -> String {
    #[derive(Deserialize)]
    struct Body {
        error: Option<String>,
        message: Option<String>,
    }
    let words = match serde_json::from_str::<Body>(text) {
        Ok(body) => body.error.or(body.message).unwrap_or_default(),
        Err(_) => text.to_owned(),
    };
    let mut words: String = words.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if words.len() > REASON_BYTES_MAX {
        // The end says how many were dropped.
        let (head, tail) = (floor(&words, REASON_BYTES_MAX * 2 / 3), ceil(&words, words.len() - REASON_BYTES_MAX / 3));
        words = format!("{} .. {}", &words[..head], &words[tail..]);
    }
    words
}

fn floor(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
fn ceil(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}

/// As Go's servers and nginx answer plain HTTP: no line is to blame. Nothing that a refused line could have brought in, which
/// servers quote.
fn is_of_a_tls_port(text: &str) -> bool {
    text.starts_with("Client sent an HTTP request to an HTTPS server")
        || text.starts_with('<') && text.contains("The plain HTTP request was sent to HTTPS port")
}

/// N of `partial write: <reason> dropped=N`.
fn dropped(text: &str) -> Option<u64> {
    let digits = text.starts_with("partial write").then(|| text.rsplit_once("dropped="))??.1;
    let digits = digits.find(|c: char| !c.is_ascii_digit()).map_or(digits, |end| &digits[..end]);
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, text: &str, retry_after: Option<&str>) -> Verdict {
        let heard = Heard::Answer { status, text: text.into(), retry_after: retry_after.map(Into::into) };
        judge(&heard, SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)) // Sun, 06 Nov 1994 08:49:37 GMT
    }
    fn held(reason: &str) -> Verdict {
        Verdict::Held { reason: reason.into() }
    }
    fn later(reason: &str, seconds: Option<u64>) -> Verdict {
        Verdict::Later { reason: reason.into(), retry_after: seconds.map(Duration::from_secs) }
    }
    fn bad(reason: &str) -> Verdict {
        Verdict::BadLine { reason: reason.into() }
    }

    #[test]
    fn every_answer_has_its_meaning() {
        let conflict = "partial write: field type conflict: input field \"value\" on measurement \"m\" is type string, already exists as type float dropped=3";
        let beyond = "partial write: points beyond retention policy dropped=12";
        let quoted = |text: &str| serde_json::json!({"error": text}).to_string();
        for (status, text, retry_after, expected) in [
            (204, "", None, Verdict::Written),
            (400, &*quoted(conflict), None, Verdict::Partial { dropped: 3, reason: conflict.into() }),
            (400, &quoted(beyond), None, Verdict::Partial { dropped: 12, reason: beyond.into() }),
            (400, beyond, None, Verdict::Partial { dropped: 12, reason: beyond.into() }),
            (
                400,
                &quoted("partial write: unable to parse 'x': missing fields dropped=0"),
                None,
                bad("partial write: unable to parse 'x': missing fields dropped=0"),
            ),
            (400, &quoted("unable to parse 'x': missing fields"), None, bad("unable to parse 'x': missing fields")),
            (400, "{\"code\":\"invalid\",\"message\":\"no\",\"line\":7}", None, bad("no")),
            (422, "{\"code\":\"unprocessable entity\",\"message\":\"no\"}", None, bad("no")),
            (400, "", None, bad("")),
            (
                400,
                "Client sent an HTTP request to an HTTPS server.\n",
                None,
                held("400 Client sent an HTTP request to an HTTPS server. Write https:// in the URL."),
            ),
            (
                400,
                "<html><title>400 The plain HTTP request was sent to HTTPS port</title></html>",
                None,
                held(
                    "400 <html><title>400 The plain HTTP request was sent to HTTPS port</title></html> Write https:// in the URL.",
                ),
            ),
            // A client may have written these words.
            (
                400,
                &quoted("unable to parse 'm v=\"Client sent an HTTP request to an HTTPS server\"': bad timestamp"),
                None,
                bad("unable to parse 'm v=\"Client sent an HTTP request to an HTTPS server\"': bad timestamp"),
            ),
            (413, "", None, Verdict::TooLarge { reason: "413 ".into() }),
            (401, &quoted("authorization failed"), None, held("401 authorization failed")),
            (403, &quoted("no rights"), None, held("403 no rights")),
            (404, &quoted("database not found: \"x\""), None, held("404 database not found: \"x\"")),
            (405, "", None, held("405 ")),
            (500, &quoted("retention policy not found: raw"), None, held("500 retention policy not found: raw")),
            (200, "hello", None, held("200 where a write endpoint says 204: is the URL that of InfluxDB?")),
            (301, "", None, held("301, a redirection, which is not followed: set the URL it leads to")),
            (408, "", None, later("408 ", None)),
            (429, "slow", Some("7"), later("429 slow", Some(7))),
            (429, "", Some("Sun, 06 Nov 1994 08:49:47 GMT"), later("429 ", Some(10))),
            (500, &quoted("timeout"), Some("nonsense"), later("500 timeout", None)),
            (503, "", Some("2"), later("503 ", Some(2))),
            (504, "", None, later("504 ", None)),
        ] {
            assert_eq!(answer(status, text, retry_after), expected, "{status} {text}");
        }
        let nothing = Heard::Nothing { why: "connection reset".into(), timeout: false };
        assert_eq!(judge(&nothing, SystemTime::now()), later("connection reset", None));
        let no_tls = Heard::NoTls { why: "who are you".into() };
        assert_eq!(judge(&no_tls, SystemTime::now()), held("who are you"));
    }

    #[test]
    fn a_page_of_words_is_shortened_and_keeps_its_count() {
        let text = format!("partial write: {} dropped=7", "é".repeat(5000));
        let Verdict::Partial { dropped, reason } = answer(400, &text, None) else { panic!("not partial") };
        assert!(dropped == 7 && reason.len() < REASON_BYTES_MAX + 10, "{reason}");
        assert!(!message("a\nb\u{1b}[0m").contains(|c: char| c.is_control()));
    }
}
