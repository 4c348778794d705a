//! From a point or window to what Kafka is given: topic, key, value, headers.
//!
//! What depends on the series alone is made once a series and segment and kept, within bounds: the document up to the
//! value, the key, the topic, and the hash that identifies the series.

use std::ffi::CStr;

use metricstream_shards::point::series_key::Parsed;
use sha2::{Digest, Sha256};

use super::super::id::Ids;
use super::super::json::{self, parse_key as parse};
use super::super::unit::{Point, Window};
use super::native::HEADERS_MAX;
use super::topic::Template;

/// What a record's key is: records of one key stay in order, in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyBy {
    Client,
    Name,
}

/// Bytes of rendered series that are kept for each log.
const KEPT_BYTES_MAX: usize = 24 << 20;
/// A series is identified by this much of its hash.
const HASH_BYTES: usize = 16;
const HASH_TEXT_BYTES: usize = 2 * HASH_BYTES;

pub struct Renderer {
    ids: Ids,
    key_by: KeyBy,
    raw: Template,
    aggregated: Template,
    /// By log; there are as many as shards
    logs: Vec<(u32, Kept)>,
    last_log: usize,
    /// All of an id but the number, and the log and epoch that it is for
    id_prefix: Vec<u8>,
    id_prefix_of: Option<(u32, u64)>,
    /// Of a series that is not kept
    scratch: Vec<u8>,
    value: Vec<u8>,
    id: Vec<u8>,
    point: Vec<u8>,
    state: Vec<u8>,
}

/// What is kept of one log's segment.
#[derive(Default)]
struct Kept {
    segment_id: u64,
    /// By series number
    places: Vec<Place>,
    bytes: Vec<u8>,
}

/// Where a series stands in `bytes`: document, key, hash, topic, one behind the other.
#[derive(Clone, Copy, Default)]
struct Place {
    from: u32,
    document: u32,
    key: u32,
    topic: u32,
}

/// One record, borrowed from the renderer until the next one.
pub struct Record<'a> {
    pub topic: &'a str,
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub id: &'a [u8],
    /// The point's identity; empty when it has none
    pub point: &'a [u8],
    pub request_id: &'a str,
    pub traceparent: &'a str,
}

impl Record<'_> {
    pub fn headers(&self) -> [(&'static CStr, &[u8]); HEADERS_MAX] {
        [
            (c"id", self.id),
            (c"point", self.point),
            (c"request_id", self.request_id.as_bytes()),
            (c"traceparent", self.traceparent.as_bytes()),
        ]
    }

    /// What it takes in librdkafka's memory, roughly: its own structures are some hundred bytes.
    pub fn bytes(&self) -> usize {
        self.key.len() + self.value.len() + self.id.len() + self.point.len() + self.request_id.len() + 400
    }
}

impl Renderer {
    pub fn new(node_id: u128, key_by: KeyBy, raw: Template, aggregated: Template) -> Renderer {
        Renderer {
            ids: Ids::new(node_id),
            key_by,
            raw,
            aggregated,
            logs: Vec::new(),
            last_log: 0,
            id_prefix: Vec::new(),
            id_prefix_of: None,
            scratch: Vec::new(),
            value: Vec::new(),
            id: Vec::new(),
            point: Vec::new(),
            state: Vec::new(),
        }
    }

    /// `log`: the log's name, number and segment.
    pub fn point<'a>(&'a mut self, log: (&str, u32, u64), point: &Point<'a>) -> Record<'a> {
        let Renderer { logs, last_log, scratch, value, raw, .. } = self;
        if logs.get(*last_log).is_none_or(|(id, _)| *id != log.1) {
            *last_log = logs.iter().position(|(id, _)| *id == log.1).unwrap_or_else(|| {
                logs.push((log.1, Kept::default()));
                logs.len() - 1
            });
        }
        let kept = &mut logs[*last_log].1;
        let place = match point.series {
            Some(series) => kept.place(log.2, series, point.key, raw, self.key_by),
            None => None,
        };
        let (bytes, place) = match place {
            Some(place) => (&kept.bytes, place),
            None => {
                scratch.clear();
                let place = put_series(point.key, raw, self.key_by, scratch);
                (&*scratch, place)
            }
        };
        let (document, rest) = bytes[place.from as usize..].split_at(place.document as usize);
        let (key, rest) = rest.split_at(place.key as usize);
        let (hash, rest) = rest.split_at(HASH_TEXT_BYTES);
        value.clear();
        value.extend_from_slice(document);
        json::put_point(point.value, point.timestamp_ns, value);
        value.push(b'}');
        if self.id_prefix_of != Some((log.1, point.epoch)) {
            self.id_prefix.clear();
            self.ids.put_prefix(log.0, point.epoch, &mut self.id_prefix);
            self.id_prefix_of = Some((log.1, point.epoch));
        }
        self.id.clear();
        self.id.extend_from_slice(&self.id_prefix);
        self.id.extend_from_slice(itoa::Buffer::new().format(point.number).as_bytes());
        self.point.clear();
        if point.is_identified {
            self.point.extend_from_slice(hash);
            self.point.push(b'-');
            self.point.extend_from_slice(itoa::Buffer::new().format(point.timestamp_ns).as_bytes());
        }
        let topic = match raw.fixed() {
            Some(topic) => topic,
            None => std::str::from_utf8(&rest[..place.topic as usize]).expect("topics are ASCII"),
        };
        Record {
            topic,
            key,
            value,
            id: &self.id,
            point: &self.point,
            request_id: point.request_id,
            traceparent: point.traceparent,
        }
    }

    pub fn window<'a>(&'a mut self, log_name: &str, window: &Window<'a>) -> Record<'a> {
        let view = &window.view;
        let series = parse(view.key);
        self.value.clear();
        json::put_window(window, &series, &mut self.state, &mut self.value);
        self.value.push(b'}');
        self.id.clear();
        self.ids.put(log_name, window.epoch, window.number, &mut self.id);
        self.scratch.clear();
        self.scratch.extend_from_slice(key_of(&series, self.key_by).as_bytes());
        let key_bytes = self.scratch.len();
        let topic = match self.aggregated.fixed() {
            Some(topic) => topic,
            None => {
                self.scratch.extend_from_slice(self.aggregated.fill(&series).as_bytes());
                std::str::from_utf8(&self.scratch[key_bytes..]).expect("topics are ASCII")
            }
        };
        Record {
            topic,
            key: &self.scratch[..key_bytes],
            value: &self.value,
            id: &self.id,
            point: &[],
            request_id: "",
            traceparent: "",
        }
    }
}

impl Kept {
    /// `None`: not worth a table that long.
    fn place(&mut self, segment_id: u64, series: u32, key: &[u8], topic: &Template, key_by: KeyBy) -> Option<Place> {
        if self.segment_id != segment_id || self.bytes.len() > KEPT_BYTES_MAX {
            self.segment_id = segment_id;
            self.places.clear();
            self.bytes.clear();
        }
        let at = series as usize;
        if let Some(&place) = self.places.get(at)
            && place.document > 0
        {
            return Some(place);
        }
        // Numbers are given densely.
        if at >= self.places.len() + (1 << 20) {
            return None;
        }
        if at >= self.places.len() {
            self.places.resize((at + 1).next_power_of_two(), Place::default());
        }
        let place = put_series(key, topic, key_by, &mut self.bytes);
        self.places[at] = place;
        Some(place)
    }
}

fn put_series(key: &[u8], topic: &Template, key_by: KeyBy, out: &mut Vec<u8>) -> Place {
    let series = parse(key);
    let from = out.len();
    json::put_series(&series, out);
    let document = out.len() - from;
    let record_key = key_of(&series, key_by);
    out.extend_from_slice(record_key.as_bytes());
    for byte in &Sha256::digest(key)[..HASH_BYTES] {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
    let topic = if topic.fixed().is_some() { String::new() } else { topic.fill(&series) };
    out.extend_from_slice(topic.as_bytes());
    Place { from: from as u32, document: document as u32, key: record_key.len() as u32, topic: topic.len() as u32 }
}

fn key_of<'a>(series: &Parsed<'a>, key_by: KeyBy) -> &'a str {
    match key_by {
        KeyBy::Client => series.client,
        KeyBy::Name => series.name,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::unit::Value;
    use super::*;
    use metricstream_shards::point::series_key;

    fn renderer(key_by: KeyBy, raw: &str) -> Renderer {
        let template = |text| Template::parse(text).expect("a good template");
        Renderer::new(0xAB << 64, key_by, template(raw), template("metrics-aggregated"))
    }

    fn key(client: &str, name: &str, host: &str) -> Vec<u8> {
        let mut key = Vec::new();
        series_key::write(&mut key, client.as_bytes(), name.as_bytes(), &[(b"host", host.as_bytes())]);
        key
    }

    fn point<'a>(key: &'a [u8], series: Option<u32>, number: u64, is_identified: bool) -> Point<'a> {
        Point {
            number,
            epoch: 5,
            is_identified,
            key,
            series,
            timestamp_ns: 1_000_000_007,
            value: Value::Int(3),
            request_id: "",
            traceparent: "",
        }
    }

    #[test]
    fn a_record_is_the_same_whether_its_series_is_kept_or_not() {
        let (a, b) = (key("c", "cpu", "x"), key("d", "mem", "y"));
        for (key_by, keys) in [(KeyBy::Client, ["c", "d"]), (KeyBy::Name, ["cpu", "mem"])] {
            let mut renderer = renderer(key_by, "raw.{name}");
            for (log, segment, series) in
                [(0, 1, Some(7)), (0, 1, Some(7)), (1, 1, Some(7)), (0, 2, Some(8)), (0, 2, None)]
            {
                for (key, expected_key, name) in [(&a, keys[0], "cpu"), (&b, keys[1], "mem")] {
                    // Numbers are a segment's own.
                    let series = series.map(|n| n + u32::from(name == "mem"));
                    let record = renderer
                        .point(("0", log, segment + u64::from(series == Some(9))), &point(key, series, 42, true));
                    assert_eq!(record.key, expected_key.as_bytes());
                    assert_eq!(record.topic, format!("raw.{name}"));
                    assert_eq!(record.id, b"00000000000000ab-0-5-42");
                    let text = std::str::from_utf8(record.value).expect("UTF-8");
                    assert!(text.starts_with(&format!("{{\"name\":\"{name}\"")), "{text}");
                    assert!(text.ends_with("\"value\":3,\"timestamp\":1000,\"timestamp_ns\":1000000007}"), "{text}");
                }
            }
        }
    }

    #[test]
    fn equal_series_and_time_have_equal_identities_and_others_do_not() {
        let mut renderer = renderer(KeyBy::Client, "metrics-raw");
        let (a, b) = (key("c", "cpu", "x"), key("c", "cpu", "y"));
        let mut identity = |key: &[u8], number: u64, identified: bool| {
            renderer.point(("0", 0, 1), &point(key, None, number, identified)).point.to_vec()
        };
        let first = identity(&a, 1, true);
        assert_eq!(first, identity(&a, 2, true));
        assert_ne!(first, identity(&b, 1, true));
        assert_eq!(identity(&a, 1, false), b"");
        let hash = Sha256::digest(b"c\xFFcpu\xFFhost\xFEx");
        let hex: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(first, format!("{hex}-1000000007").into_bytes());
    }
}
