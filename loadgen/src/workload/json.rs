//! MetricStream's native JSON:
//! `{"metrics":[{"name":"cpu","value":1.5,"timestamp":1767225600000000000,"tags":{"host":"h"}}]}`.
//!
//! Timestamps are in ns, which a server with `timestamp_unit = "auto"` sees by their magnitude (from 1973 on).

use super::bad::Fault;
use super::encoder::{Answer, Encoder, SeriesText, integer};
use super::values::Decimal;

pub struct Json;

impl Json {
    #[inline]
    fn rest(out: &mut Vec<u8>, series: SeriesText<'_>, timestamp_ns: i64) {
        out.extend_from_slice(b",\"timestamp\":");
        integer(out, timestamp_ns);
        out.extend_from_slice(series.after);
        if let Some(life) = series.life {
            out.extend_from_slice(b",\"life\":\"");
            integer(out, life as i64);
            out.push(b'"');
        }
        out.extend_from_slice(b"}}");
    }
}

impl Encoder for Json {
    fn prepare(out: &mut Vec<u8>, name: &str, tags: &[(String, String)]) -> usize {
        let start = out.len();
        for part in ["{\"name\":\"", name, "\""] {
            out.extend_from_slice(part.as_bytes());
        }
        let before = out.len() - start;
        out.extend_from_slice(b",\"tags\":{");
        for (n, (key, value)) in tags.iter().enumerate() {
            for part in [if n > 0 { ",\"" } else { "\"" }, key, "\":\"", value, "\""] {
                out.extend_from_slice(part.as_bytes());
            }
        }
        before
    }

    #[inline]
    fn begin(out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"metrics\":[");
    }

    #[inline]
    fn point(out: &mut Vec<u8>, first: bool, series: SeriesText<'_>, value: Decimal, timestamp_ns: i64) {
        if !first {
            out.push(b',');
        }
        out.extend_from_slice(series.before);
        out.extend_from_slice(b",\"value\":");
        value.write(out);
        Json::rest(out, series, timestamp_ns);
    }

    fn bad_point(out: &mut Vec<u8>, first: bool, series: SeriesText<'_>, fault: Fault, timestamp_ns: i64) {
        if !first {
            out.push(b',');
        }
        out.extend_from_slice(series.before);
        out.extend_from_slice(match fault {
            Fault::Missing => b"",
            Fault::Word => b",\"value\":\"unavailable\"",
            // `1.2.3` would spoil the whole document.
            Fault::Malformed => b",\"value\":[1.5]",
        });
        Json::rest(out, series, timestamp_ns);
    }

    #[inline]
    fn end(out: &mut Vec<u8>) {
        out.extend_from_slice(b"]}");
    }

    /// 200 tells how many were accepted and rejected: the good ones were kept. 400 is for a body that is no JSON.
    fn answer(status: u16, _body: &[u8]) -> Answer {
        if (200..300).contains(&status) { Answer::Acknowledged } else { Answer::Refused }
    }
}
