//! Points and windows as InfluxDB line protocol. FORMAT.md says what becomes of which field.
//!
//! Escapes as the protocol's reference has them: measurements escape comma and space; tag keys, tag values and field keys
//! also the equals sign; strings the double quote and the backslash.

use metricstream_shards::point::series_key::{self, Parsed};

use super::json::numbers;
use super::unit::{Point, Value, Window};

const CLIENT_TAG: &str = "client_id";

/// Appends a point and a newline.
pub fn point(point: &Point<'_>, out: &mut Vec<u8>) {
    let Some(parsed) = series_key::parse(point.key) else { return };
    series(&parsed, &[], out);
    out.extend_from_slice(b" value=");
    match point.value {
        Value::Float(value) => float(value, out),
        Value::Int(value) => integer(value, 'i', out),
        Value::UInt(value) => integer(value, 'u', out),
        Value::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
        Value::Text(text) => string(text, out),
    }
    time(point.timestamp_ns, out);
}

pub fn window(window: &Window<'_>, out: &mut Vec<u8>) {
    let view = &window.view;
    let Some(parsed) = series_key::parse(view.key) else { return };
    let length = format!("{}s", view.window_s);
    let mut more = vec![("window", length.as_str())];
    more.extend(view.rule.map(|rule| ("rule", rule)));
    series(&parsed, &more, out);
    out.extend_from_slice(b" count=");
    integer(view.aggregates.count, 'i', out);
    // The protocol has no infinity: such a field is left out.
    for (name, value) in numbers(window).into_iter().filter(|(_, value)| value.is_finite()) {
        out.push(b',');
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
        float(value, out);
    }
    out.extend_from_slice(b",series=");
    integer(view.series, 'i', out);
    out.extend_from_slice(b",revision=");
    integer(view.revision, 'i', out);
    time(view.start_ms.saturating_mul(1_000_000), out);
}

/// Measurement and tags; what the point has itself wins over what is added.
fn series(parsed: &Parsed<'_>, more: &[(&str, &str)], out: &mut Vec<u8>) {
    escaped(parsed.name, ", ", out);
    for (key, value) in &parsed.tags {
        tag(key, value, out);
    }
    let has = |key: &str| parsed.tags.iter().any(|(known, _)| *known == key);
    for (key, value) in std::iter::once(&(CLIENT_TAG, parsed.client)).chain(more) {
        if !value.is_empty() && !has(key) {
            tag(key, value, out);
        }
    }
}

fn tag(key: &str, value: &str, out: &mut Vec<u8>) {
    out.push(b',');
    escaped(key, ",= ", out);
    out.push(b'=');
    escaped(value, ",= ", out);
}

fn escaped(text: &str, special: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        if special.as_bytes().contains(&byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
}

fn string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    escaped(text, "\"\\", out);
    out.push(b'"');
}

fn integer(value: impl itoa::Integer, suffix: char, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    out.push(suffix as u8);
}

fn float(value: f64, out: &mut Vec<u8>) {
    out.extend_from_slice(zmij::Buffer::new().format(value).as_bytes());
}

fn time(ns: i64, out: &mut Vec<u8>) {
    out.push(b' ');
    out.extend_from_slice(itoa::Buffer::new().format(ns).as_bytes());
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, tags: &[(&str, &str)], value: Value<'_>) -> String {
        let mut key = Vec::new();
        let tags: Vec<(&[u8], &[u8])> = tags.iter().map(|(k, v)| (k.as_bytes(), v.as_bytes())).collect();
        series_key::write(&mut key, b"web 1", name.as_bytes(), &tags);
        let mut out = Vec::new();
        let of = Point {
            number: 0,
            epoch: 1,
            is_identified: true,
            key: &key,
            series: None,
            timestamp_ns: 5,
            value,
            request_id: "",
            traceparent: "",
        };
        point(&of, &mut out);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn what_the_protocol_reserves_is_escaped() {
        assert_eq!(line("cpu", &[], Value::Float(1.5)), "cpu,client_id=web\\ 1 value=1.5 5\n");
        assert_eq!(
            line("a b,c=d", &[("k=1", "v, x")], Value::Int(-3)),
            "a\\ b\\,c=d,k\\=1=v\\,\\ x,client_id=web\\ 1 value=-3i 5\n"
        );
        assert_eq!(line("t", &[("client_id", "own")], Value::Bool(false)), "t,client_id=own value=false 5\n");
        assert_eq!(line("t", &[("client_id", "o")], Value::Text("q\"\\")), "t,client_id=o value=\"q\\\"\\\\\" 5\n");
        assert_eq!(
            line("t", &[("client_id", "o")], Value::UInt(u64::MAX)),
            "t,client_id=o value=18446744073709551615u 5\n"
        );
    }
}
