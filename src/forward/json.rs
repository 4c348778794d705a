//! The two JSON documents that leave, to Kafka and into files, written by hand: one a point, and there are millions of them.
//!
//! Their schemas are `schema/metrics-raw.json` and `schema/metrics-aggregated.json`. Promise: what is written is valid JSON
//! in one line; numbers read back as the same value; names and texts come back as they went in. Both documents are
//! left open, so that a file can add what Kafka has in headers.

use metricstream_shards::point::series_key::{self, Parsed};
use metricstream_shards::window::state::{self, StateView, SumView};
use metricstream_shards::window::summary::Detail;

use super::unit::{Value, Window};

const NS_PER_MS: i64 = 1_000_000;

/// What all points of a series have in common: everything up to the value.
pub fn put_series(series: &Parsed<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"name\":");
    put_string(series.name, out);
    out.extend_from_slice(b",\"client_id\":");
    put_string(series.client, out);
    out.extend_from_slice(b",\"tags\":");
    put_tags(series, out);
}

/// The rest of a point's document, but for its end.
#[inline]
pub fn put_point(value: Value<'_>, timestamp_ns: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"value\":");
    put_value(value, out);
    out.extend_from_slice(b",\"timestamp\":");
    let (ms, rest) = (timestamp_ns.div_euclid(NS_PER_MS), timestamp_ns.rem_euclid(NS_PER_MS));
    put_integer(ms, out);
    if rest != 0 {
        out.extend_from_slice(b",\"timestamp_ns\":");
        put_integer(timestamp_ns, out);
    }
}

#[inline]
fn put_value(value: Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Float(value) => put_float(value, out),
        Value::Int(value) => put_integer(value, out),
        Value::UInt(value) => put_integer(value, out),
        Value::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
        Value::Text(text) => put_string(text, out),
    }
}

/// Keys are checked where records are made; one that cannot be read goes out with what can be.
pub fn parse_key(key: &[u8]) -> Parsed<'_> {
    series_key::parse(key).unwrap_or(Parsed { client: "", name: "", tags: Vec::new() })
}

/// One closed window, but for its end, with what it can be merged from: null for results whose state was not kept.
/// `scratch` is overwritten.
pub fn put_window(window: &Window<'_>, series: &Parsed<'_>, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    let view = &window.view;
    let a = &view.aggregates;
    scratch.clear();
    if view.state.is_none() && a.min.to_bits() == a.max.to_bits() && !view.flags.damaged {
        // All values were equal: nothing had to be stored.
        let detail = if a.quantiles.is_some() { Detail::Quantiles } else { Detail::Plain };
        state::put_equal(a.min, a.count, detail, scratch);
    }
    let state = view.state.or_else(|| StateView::read(scratch).map(|(state, _)| state));
    out.extend_from_slice(b"{\"name\":");
    put_string(series.name, out);
    out.extend_from_slice(b",\"client_id\":");
    put_string(series.client, out);
    out.extend_from_slice(b",\"rule\":");
    match view.rule {
        Some(rule) => put_string(rule, out),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"tags\":");
    put_tags(series, out);
    let mut member = |name: &str, put: &mut dyn FnMut(&mut Vec<u8>)| {
        out.extend_from_slice(b",\"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        put(out);
    };
    member("start_ms", &mut |out| put_integer(view.start_ms, out));
    member("window_s", &mut |out| put_integer(view.window_s, out));
    member("era", &mut |out| put_integer(view.era, out));
    member("revision", &mut |out| put_integer(view.revision, out));
    for (name, flag) in
        [("incomplete", view.flags.incomplete), ("unchecked", view.flags.unchecked), ("damaged", view.flags.damaged)]
    {
        member(name, &mut |out| out.extend_from_slice(if flag { b"true" } else { b"false" }));
    }
    member("series", &mut |out| put_integer(view.series, out));
    member("count", &mut |out| put_integer(a.count, out));
    for (name, value) in window.numbers() {
        member(name, &mut |out| put_float(value, out));
    }
    member("state", &mut |out| match state {
        Some(state) => put_state(&state, out),
        None => out.extend_from_slice(b"null"),
    });
}

fn put_state(state: &StateView<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"sum\":[");
    put_decimal(&state.sum, out);
    out.push(b',');
    put_integer(state.sum.exponent, out);
    if state.count() == 0 {
        // No sketch was made.
        return out.extend_from_slice(b"]}");
    }
    out.extend_from_slice(b"],\"zeros\":");
    put_integer(state.zeros, out);
    out.extend_from_slice(b",\"negative\":");
    put_bins(state.negative(), out);
    out.extend_from_slice(b",\"positive\":");
    put_bins(state.positive(), out);
    out.push(b'}');
}

fn put_bins(bins: impl Iterator<Item = (u32, u64)>, out: &mut Vec<u8>) {
    out.push(b'[');
    for (n, (bin, count)) in bins.enumerate() {
        out.extend_from_slice(if n == 0 { b"[" } else { b",[" });
        put_integer(bin, out);
        out.push(b',');
        put_integer(count, out);
        out.push(b']');
    }
    out.push(b']');
}

/// The magnitude with its sign as a decimal string: it may have 651 digits.
fn put_decimal(sum: &SumView<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(if sum.negative { b"\"-" } else { b"\"" });
    if sum.magnitude.len() <= 16 {
        let mut bytes = [0; 16];
        bytes[..sum.magnitude.len()].copy_from_slice(sum.magnitude);
        put_integer(u128::from_le_bytes(bytes), out);
    } else {
        const BILLION: u64 = 1_000_000_000;
        let words = sum.magnitude.chunks(4).rev();
        let mut words: Vec<u32> = words
            .map(|chunk| {
                let mut word = [0; 4];
                word[..chunk.len()].copy_from_slice(chunk);
                u32::from_le_bytes(word)
            })
            .collect();
        let mut billions = Vec::new();
        while words.iter().any(|&word| word != 0) {
            let mut rest = 0;
            for word in &mut words {
                let dividend = rest << 32 | u64::from(*word);
                *word = (dividend / BILLION) as u32;
                rest = dividend % BILLION;
            }
            billions.push(rest as u32);
        }
        put_integer(billions.pop().unwrap_or(0), out);
        billions.iter().rev().for_each(|part| out.extend_from_slice(format!("{part:09}").as_bytes()));
    }
    out.push(b'"');
}

fn put_tags(series: &Parsed<'_>, out: &mut Vec<u8>) {
    out.push(b'{');
    for (n, (key, value)) in series.tags.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        put_string(key, out);
        out.push(b':');
        put_string(value, out);
    }
    out.push(b'}');
}

/// The shortest form that reads back as the same value. A sum beyond `f64`, which JSON cannot say, is null.
#[inline]
fn put_float(value: f64, out: &mut Vec<u8>) {
    if value.is_finite() {
        out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
    } else {
        out.extend_from_slice(b"null");
    }
}

#[inline]
fn put_integer(value: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Escapes what JSON asks for, and nothing else.
pub fn put_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut plain_from = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[plain_from..at]);
        plain_from = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                out.extend_from_slice(b"\\u00");
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
    }
    out.extend_from_slice(&bytes[plain_from..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reducer::encode::RecordView;
    use crate::reducer::record::Flags;
    use metricstream_shards::window::summary::{Aggregates, Summary};
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    fn parse(bytes: &[u8]) -> Json {
        serde_json::from_slice(bytes).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(bytes)))
    }

    fn point(name: &str, client: &str, tags: &[(&str, &str)], value: Value<'_>, timestamp_ns: i64) -> Vec<u8> {
        let mut out = Vec::new();
        put_series(&Parsed { client, name, tags: tags.to_vec() }, &mut out);
        put_point(value, timestamp_ns, &mut out);
        out.push(b'}');
        out
    }

    proptest! {
        #[test]
        fn any_text_comes_back(name in any::<String>(), client in any::<String>(), text in any::<String>()) {
            let read = parse(&point(&name, &client, &[(&text, &name)], Value::Text(&text), -1));
            let expected = json!({"name": name, "client_id": client, "tags": {&text: name}, "value": text, "timestamp": -1, "timestamp_ns": -1});
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn any_number_comes_back_with_the_same_bits(bits in any::<u64>(), int in any::<i64>()) {
            let float = f64::from_bits(bits);
            if float.is_finite() {
                let read = parse(&point("n", "c", &[], Value::Float(float), int));
                let text = String::from_utf8(point("n", "c", &[], Value::Float(float), int)).expect("UTF-8");
                let number = text.split("\"value\":").nth(1).and_then(|rest| rest.split(',').next()).expect("a value");
                prop_assert_eq!(number.parse::<f64>().expect("a number").to_bits(), bits);
                let ns = read.get("timestamp_ns").and_then(Json::as_i64).or_else(|| Some(read["timestamp"].as_i64()? * NS_PER_MS));
                prop_assert_eq!(ns, Some(int));
            }
            prop_assert_eq!(parse(&point("n", "c", &[], Value::Int(int), 0))["value"].as_i64(), Some(int));
            prop_assert_eq!(parse(&point("n", "c", &[], Value::UInt(bits), 0))["value"].as_u64(), Some(bits));
        }
    }

    #[test]
    fn a_point_is_the_platforms_json() {
        let bytes =
            point("cpu", "10.0.0.1", &[("dc", "eu"), ("host", "a")], Value::Float(1.5), 1_700_000_000_123_000_000);
        let expected = "{\"name\":\"cpu\",\"client_id\":\"10.0.0.1\",\"tags\":{\"dc\":\"eu\",\"host\":\"a\"},\
                        \"value\":1.5,\"timestamp\":1700000000123}";
        assert_eq!(String::from_utf8(bytes).expect("UTF-8"), expected);
        assert_eq!(parse(&point("n", "c", &[], Value::Bool(true), 0))["value"], json!(true));
    }

    #[test]
    fn a_window_carries_what_it_can_be_merged_from() {
        let values = [1.5, -2.0, 0.0, 1e300, -1e300];
        let mut summary = Summary::new(Detail::Quantiles);
        values.iter().for_each(|&value| summary.add(value));
        let mut bytes = Vec::new();
        state::put(&summary, &mut bytes);
        let (state, _) = StateView::read(&bytes).expect("just written");
        let mut window = Window {
            number: 9,
            epoch: 1,
            view: RecordView {
                key: b"c\xFFn",
                rule: None,
                window_s: 10,
                start_ms: 20_000,
                aggregates: Aggregates::of(&mut values.to_vec(), Detail::Quantiles).expect("values"),
                series: 1,
                era: 2,
                revision: 3,
                flags: Flags { unchecked: true, ..Flags::default() },
                state: Some(state),
            },
        };
        let json = |window: &Window<'_>| {
            let mut out = Vec::new();
            put_window(window, &parse_key(window.view.key), &mut Vec::new(), &mut out);
            out.push(b'}');
            parse(&out)
        };
        let read = json(&window);
        assert_eq!(read["count"], json!(5));
        assert_eq!((&read["unchecked"], &read["rule"], &read["revision"]), (&json!(true), &Json::Null, &json!(3)));
        assert_eq!(read["state"]["sum"], json!(["-1", -1]), "1.5 - 2 = -1 x 2^-1, although 1e300 came and went");
        assert_eq!(read["state"]["zeros"], json!(1));
        assert_eq!(read["state"]["positive"][0], json!([45_347, 1]));
        assert_eq!(read["state"]["negative"].as_array().map(Vec::len), Some(2));
        window.view.state = None;
        assert_eq!(json(&window)["state"], Json::Null);
        window.view.aggregates = Aggregates::of(&mut [0.0; 3], Detail::Quantiles).expect("values");
        assert_eq!(json(&window)["state"]["zeros"], json!(3), "equal values need no stored state");
        window.view.aggregates =
            Aggregates::of(&mut [1.0, 2.0, f64::MAX, f64::MAX], Detail::Quantiles).expect("values");
        assert_eq!((&json(&window)["sum"], &json(&window)["min"]), (&Json::Null, &json!(1.0)));

        let mut plain = Summary::new(Detail::Plain);
        values.iter().for_each(|&value| plain.add(value));
        let mut bytes = Vec::new();
        state::put(&plain, &mut bytes);
        window.view.state = StateView::read(&bytes).map(|(state, _)| state);
        window.view.aggregates = plain.aggregates().expect("values");
        let read = json(&window);
        assert_eq!(read["state"], json!({"sum": ["-1", -1]}), "no sketch was made, and none is claimed");
        assert_eq!((&read["max"], &read["p99"]), (&json!(1e300), &Json::Null));
    }

    #[test]
    fn long_sums_are_written_in_decimal() {
        let mut summary = Summary::new(Detail::Quantiles);
        [1e300, 1.0].iter().for_each(|&value| summary.add(value));
        let mut bytes = Vec::new();
        state::put(&summary, &mut bytes);
        let (state, _) = StateView::read(&bytes).expect("just written");
        let mut out = Vec::new();
        put_decimal(&state.sum, &mut out);
        let expected = num_bigint::BigInt::from_bytes_le(num_bigint::Sign::Plus, state.sum.magnitude);
        assert!(state.sum.magnitude.len() > 100);
        assert_eq!(String::from_utf8(out).expect("ASCII"), format!("\"{expected}\""));
    }
}
