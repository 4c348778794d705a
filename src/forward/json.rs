//! Points and windows as JSON objects, one a line. FORMAT.md has the fields.
//!
//! What depends on the series alone (name, client, tags) is rendered once a series and segment and then copied.

use metricstream_shards::point::series_key;

use super::unit::{Point, Value, Window};

/// Bytes of rendered series that are kept.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// Renders for one sink.
pub struct JsonLines {
    node: String,
    segment: (u32, u64),
    /// By series number: where its text begins and ends in `kept`
    places: Vec<(u32, u32)>,
    kept: Vec<u8>,
}

impl JsonLines {
    pub fn new(node_id: u128) -> JsonLines {
        JsonLines { node: node_prefix(node_id), segment: (0, 0), places: Vec::new(), kept: Vec::new() }
    }

    /// Appends `point` of `log` (its name) and a newline.
    pub fn point(&mut self, log: (u32, u64), log_name: &str, point: &Point<'_>, out: &mut Vec<u8>) {
        match point.series {
            Some(series) => self.kept_series(log, series, point.key, out),
            None => series(point.key, out),
        }
        out.extend_from_slice(b",\"value\":");
        match point.value {
            Value::Float(value) => float(value, out),
            Value::Int(value) => integer(value, out),
            Value::UInt(value) => integer(value, out),
            Value::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
            Value::Text(text) => string(text, out),
        }
        out.extend_from_slice(b",\"timestamp\":");
        integer(point.timestamp_ns.div_euclid(1_000_000), out);
        if point.timestamp_ns % 1_000_000 != 0 {
            out.extend_from_slice(b",\"timestamp_ns\":");
            integer(point.timestamp_ns, out);
        }
        self.id(log_name, point.number, out);
        for (field, text) in [("request_id", point.request_id), ("traceparent", point.traceparent)] {
            if !text.is_empty() {
                out.extend_from_slice(b",\"");
                out.extend_from_slice(field.as_bytes());
                out.extend_from_slice(b"\":");
                string(text, out);
            }
        }
        out.extend_from_slice(b"}\n");
    }

    pub fn window(&mut self, log_name: &str, window: &Window<'_>, out: &mut Vec<u8>) {
        let view = &window.view;
        series(view.key, out);
        if let Some(rule) = view.rule {
            out.extend_from_slice(b",\"rule\":");
            string(rule, out);
        }
        let field = |name: &str, out: &mut Vec<u8>| {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
        };
        field("start_ms", out);
        integer(view.start_ms, out);
        field("window_s", out);
        integer(view.window_s, out);
        field("count", out);
        integer(view.aggregates.count, out);
        for (name, value) in numbers(window) {
            field(name, out);
            float(value, out);
        }
        field("series", out);
        integer(view.series, out);
        field("era", out);
        integer(view.era, out);
        field("revision", out);
        integer(view.revision, out);
        for (name, flag) in [
            ("incomplete", view.flags.incomplete),
            ("unchecked", view.flags.unchecked),
            ("damaged", view.flags.damaged),
        ] {
            field(name, out);
            out.extend_from_slice(if flag { b"true" } else { b"false" });
        }
        self.id(log_name, window.number, out);
        out.extend_from_slice(b"}\n");
    }

    fn kept_series(&mut self, segment: (u32, u64), number: u32, key: &[u8], out: &mut Vec<u8>) {
        if self.segment != segment || self.kept.len() > KEPT_BYTES_MAX {
            self.segment = segment;
            self.places.clear();
            self.kept.clear();
        }
        let at = number as usize;
        if let Some(&(from, to)) = self.places.get(at)
            && to > 0
        {
            out.extend_from_slice(&self.kept[from as usize..to as usize]);
            return;
        }
        let from = self.kept.len();
        series(key, &mut self.kept);
        out.extend_from_slice(&self.kept[from..]);
        // Numbers are given densely; one far out is not worth a table that long.
        if at < self.places.len() + (1 << 20) {
            if at >= self.places.len() {
                self.places.resize((at + 1).next_power_of_two(), (0, 0));
            }
            self.places[at] = (from as u32, self.kept.len() as u32);
        }
    }

    fn id(&self, log_name: &str, number: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"id\":\"");
        out.extend_from_slice(self.node.as_bytes());
        out.extend_from_slice(log_name.as_bytes());
        out.push(b'-');
        integer(number, out);
        out.push(b'"');
    }
}

/// The numbers of a window beside its count, by the names they have everywhere. Quantiles that are not kept are NaN: like
/// what has overflowed, they have no value to write.
pub fn numbers(window: &Window<'_>) -> [(&'static str, f64); 7] {
    let a = &window.view.aggregates;
    let [p50, p95, p99] = a.quantiles.map_or([f64::NAN; 3], |q| [q.p50, q.p95, q.p99]);
    [("sum", a.sum), ("min", a.min), ("max", a.max), ("avg", a.avg), ("p50", p50), ("p95", p95), ("p99", p99)]
}

/// What ids of this node begin with.
pub fn node_prefix(node_id: u128) -> String {
    format!("{:016x}-", (node_id >> 64) as u64)
}

/// `{"name":..,"client_id":..,"tags":{..}`, left open.
fn series(key: &[u8], out: &mut Vec<u8>) {
    // Keys are checked where records are made; one that cannot be read goes out with what can be.
    let parsed = series_key::parse(key).unwrap_or(series_key::Parsed { client: "", name: "", tags: Vec::new() });
    out.extend_from_slice(b"{\"name\":");
    string(parsed.name, out);
    out.extend_from_slice(b",\"client_id\":");
    string(parsed.client, out);
    out.extend_from_slice(b",\"tags\":{");
    for (n, (tag, value)) in parsed.tags.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        string(tag, out);
        out.push(b':');
        string(value, out);
    }
    out.push(b'}');
}

fn string(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("text goes into memory");
}

fn integer(value: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn float(value: f64, out: &mut Vec<u8>) {
    if value.is_finite() {
        out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
    } else {
        out.extend_from_slice(b"null");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reducer::encode::RecordView;
    use crate::reducer::record::Flags;
    use metricstream_shards::window::summary::{Aggregates, Detail};

    fn key() -> Vec<u8> {
        let mut key = Vec::new();
        series_key::write(&mut key, b"10.0.0.1", b"cpu \"x\"", &[(b"dc", b"eu"), (b"host", "a\u{e9}\\".as_bytes())]);
        key
    }

    fn point<'a>(key: &'a [u8], series: Option<u32>, value: Value<'a>, timestamp_ns: i64) -> Point<'a> {
        Point {
            number: 42,
            epoch: 1,
            is_identified: true,
            key,
            series,
            timestamp_ns,
            value,
            request_id: "",
            traceparent: "",
        }
    }

    #[test]
    fn a_point_is_one_line_with_the_documented_fields() {
        let mut lines = JsonLines::new(0xAB << 64);
        let key = key();
        let series =
            "{\"name\":\"cpu \\\"x\\\"\",\"client_id\":\"10.0.0.1\",\"tags\":{\"dc\":\"eu\",\"host\":\"aé\\\\\"}";
        for (value, text) in [
            (Value::Float(0.1), "0.1"),
            (Value::Int(i64::MIN), "-9223372036854775808"),
            (Value::UInt(u64::MAX), "18446744073709551615"),
            (Value::Bool(true), "true"),
            (Value::Text("a\nb"), "\"a\\nb\""),
        ] {
            for number in [None, Some(7), Some(7)] {
                let mut out = Vec::new();
                lines.point((0, 1), "0", &point(&key, number, value, 1_700_000_000_123_000_000), &mut out);
                let want = format!(
                    "{series},\"value\":{text},\"timestamp\":1700000000123,\"id\":\"00000000000000ab-0-42\"}}\n"
                );
                assert_eq!(String::from_utf8(out).expect("UTF-8"), want);
            }
        }
        let mut out = Vec::new();
        let mut fine = point(&key, None, Value::Int(1), -1);
        (fine.request_id, fine.traceparent) = ("r\"1", "00-ab");
        lines.point((0, 1), "3", &fine, &mut out);
        let text = String::from_utf8(out).expect("UTF-8");
        let rest = "\"timestamp\":-1,\"timestamp_ns\":-1,\"id\":\"00000000000000ab-3-42\",\"request_id\":\"r\\\"1\",\"traceparent\":\"00-ab\"}\n";
        assert!(text.ends_with(rest), "{text}");
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
    }

    #[test]
    fn a_number_that_means_another_series_in_the_next_segment_is_rendered_anew() {
        let mut lines = JsonLines::new(0);
        let (a, mut b) = (key(), Vec::new());
        series_key::write(&mut b, b"c", b"mem", &[]);
        for (segment, key, name) in [(1, &a, "cpu"), (2, &b, "mem"), (1, &a, "cpu")] {
            let mut out = Vec::new();
            lines.point((0, segment), "0", &point(key, Some(3), Value::Int(1), 0), &mut out);
            assert!(String::from_utf8(out).expect("UTF-8").contains(name));
        }
    }

    #[test]
    fn a_window_says_all_it_knows() {
        let key = key();
        let aggregates = Aggregates::of(&mut [1.0, 2.0, f64::MAX, f64::MAX], Detail::Quantiles).expect("not empty");
        let view = RecordView {
            key: &key,
            rule: Some("r"),
            window_s: 10,
            start_ms: 20_000,
            aggregates,
            series: 3,
            era: 1,
            revision: 2,
            flags: Flags { incomplete: true, ..Flags::default() },
            state: None,
        };
        let mut out = Vec::new();
        JsonLines::new(0).window("aggregate", &Window { number: 9, epoch: 1, view }, &mut out);
        let json: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        for (field, value) in [
            ("rule", serde_json::json!("r")),
            ("start_ms", 20_000.into()),
            ("window_s", 10.into()),
            ("count", 4.into()),
            ("min", 1.0.into()),
            ("series", 3.into()),
            ("revision", 2.into()),
            ("incomplete", true.into()),
            ("unchecked", false.into()),
            ("sum", serde_json::Value::Null),
            ("id", "0000000000000000-aggregate-9".into()),
        ] {
            assert_eq!(json[field], value, "{field} of {json}");
        }
    }
}
