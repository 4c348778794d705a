//! Lines of NDJSON files: the documents of [`super::json`], and behind them what a record of Kafka has in its headers.
//!
//! What depends on the series alone (name, client, tags) is rendered once a series and segment and then copied.

use super::id::Ids;
use super::json;
use super::unit::{Point, Window};

/// Bytes of rendered series that are kept.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// Renders for one sink.
pub struct JsonLines {
    ids: Ids,
    segment: (u32, u64),
    /// By series number: where its text begins and ends in `kept`
    places: Vec<(u32, u32)>,
    kept: Vec<u8>,
    scratch: Vec<u8>,
}

impl JsonLines {
    pub fn new(node_id: u128) -> JsonLines {
        let (places, kept, scratch) = (Vec::new(), Vec::new(), Vec::new());
        JsonLines { ids: Ids::new(node_id), segment: (0, 0), places, kept, scratch }
    }

    /// Appends `point` of the log `log_name`, which is in this segment, and a newline.
    pub fn point(&mut self, segment: (u32, u64), log_name: &str, point: &Point<'_>, out: &mut Vec<u8>) {
        match point.series {
            Some(series) => self.kept_series(segment, series, point.key, out),
            None => json::put_series(&json::parse_key(point.key), out),
        }
        json::put_point(point.value, point.timestamp_ns, out);
        self.id(log_name, point.epoch, point.number, out);
        for (field, text) in [("request_id", point.request_id), ("traceparent", point.traceparent)] {
            if !text.is_empty() {
                out.extend_from_slice(b",\"");
                out.extend_from_slice(field.as_bytes());
                out.extend_from_slice(b"\":");
                json::put_string(text, out);
            }
        }
        out.extend_from_slice(b"}\n");
    }

    pub fn window(&mut self, log_name: &str, window: &Window<'_>, out: &mut Vec<u8>) {
        json::put_window(window, &json::parse_key(window.view.key), &mut self.scratch, out);
        self.id(log_name, window.epoch, window.number, out);
        out.extend_from_slice(b"}\n");
    }

    fn id(&self, log_name: &str, epoch: u64, number: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"id\":\"");
        self.ids.put(log_name, epoch, number, out);
        out.push(b'"');
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
        json::put_series(&json::parse_key(key), &mut self.kept);
        out.extend_from_slice(&self.kept[from..]);
        // Numbers are given densely; one far out is not worth a table that long.
        if at < self.places.len() + (1 << 20) {
            if at >= self.places.len() {
                self.places.resize((at + 1).next_power_of_two(), (0, 0));
            }
            self.places[at] = (from as u32, self.kept.len() as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::unit::Value;
    use super::*;
    use crate::reducer::encode::RecordView;
    use crate::reducer::record::Flags;
    use metricstream_shards::point::series_key;
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
                    "{series},\"value\":{text},\"timestamp\":1700000000123,\"id\":\"00000000000000ab-0-1-42\"}}\n"
                );
                assert_eq!(String::from_utf8(out).expect("UTF-8"), want);
            }
        }
        let mut out = Vec::new();
        let mut fine = point(&key, None, Value::Int(1), -1);
        (fine.request_id, fine.traceparent) = ("r\"1", "00-ab");
        lines.point((0, 1), "3", &fine, &mut out);
        let text = String::from_utf8(out).expect("UTF-8");
        let rest = "\"timestamp\":-1,\"timestamp_ns\":-1,\"id\":\"00000000000000ab-3-1-42\",\"request_id\":\"r\\\"1\",\"traceparent\":\"00-ab\"}\n";
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
            ("id", "0000000000000000-aggregate-1-9".into()),
        ] {
            assert_eq!(json[field], value, "{field} of {json}");
        }
    }
}
