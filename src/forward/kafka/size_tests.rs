//! How large the records are that the appliance can make from what it accepts, beside what Kafka takes by default; and that a
//! window's parts add up to it.

use std::collections::BTreeMap;

use metricstream_shards::decode::Bounds;
use metricstream_shards::point::series_key::{FIELD, PAIR};
use metricstream_shards::series::ClientTable;
use metricstream_shards::window::state::{self, StateView};
use metricstream_shards::window::summary::{Detail, Summary};
use num_bigint::BigInt;
use num_rational::BigRational;
use serde_json::Value as Json;

use super::parts::divide;
use super::render::{KeyBy, Record, Renderer};
use super::topic::Template;
use crate::forward::unit::{Point, Value, Window};
use crate::reducer::encode::{KEY_BYTES_MAX, RecordView};
use crate::reducer::record::Flags;

/// Kafka's default of `message.max.bytes`. It counts a batch of one record, whose own header takes less than this besides.
const KAFKA_BYTES_MAX: usize = 1_048_588;
const BATCH_OVERHEAD_BYTES: usize = 256;

fn renderer() -> Renderer {
    let template = |text| Template::parse(text).expect("a good template");
    Renderer::new(u128::MAX, KeyBy::Name, template("metrics-raw"), template("metrics-aggregated"))
}

fn bytes(record: &Record<'_>) -> usize {
    let headers: usize = record.headers().iter().map(|(name, value)| name.to_bytes().len() + value.len() + 4).sum();
    record.key.len() + record.value.len() + headers + BATCH_OVERHEAD_BYTES
}

/// As much name and tags as is taken from a client, and tags of the operator's besides, as long as tags may be by default; of
/// characters that JSON escapes (there are no control characters in names and tags).
fn longest_key(operators_tags: usize) -> Vec<u8> {
    let bounds = Bounds::default();
    let tag_bytes = usize::from(bounds.tag_bytes_max);
    let clients_tags = bounds.series_bytes_max as usize / (2 * tag_bytes);
    let text = |bytes: usize, n: usize| {
        let mut text = vec![b'"'; bytes];
        text[..4].copy_from_slice(format!("{n:04}").as_bytes());
        text
    };
    let mut key = vec![b'"'; ClientTable::ID_BYTES_MAX];
    key.push(FIELD);
    key.extend(text(bounds.name_bytes_max.into(), 0));
    for n in 0..clients_tags + operators_tags {
        key.push(FIELD);
        key.extend(text(tag_bytes, n));
        key.push(PAIR);
        key.extend(text(tag_bytes, n));
    }
    key
}

#[test]
fn the_largest_raw_record_of_the_default_bounds_is_one_that_kafka_takes() {
    // The tags that all clients get, and a client's own.
    let key = longest_key(2 * usize::from(Bounds::default().tags_max));
    // A control character becomes six.
    let text = "\u{1}".repeat(Bounds::default().text_bytes_max as usize);
    let point = Point {
        number: u64::MAX,
        epoch: u64::MAX,
        is_identified: true,
        key: &key,
        series: None,
        timestamp_ns: i64::MIN + 1,
        value: Value::Text(&text),
        request_id: &"r".repeat(128),
        traceparent: &"t".repeat(55),
    };
    let mut renderer = renderer();
    let size = bytes(&renderer.point(("aggregate", 7, 1), &point));
    println!("the largest raw record: {size} bytes");
    assert!((600_000..KAFKA_BYTES_MAX).contains(&size), "{size}");
}

/// A window's record. Values of both signs, evenly over `octaves` powers of two below the greatest.
fn window_record(key: &[u8], octaves: i32, a_octave: u32) -> Vec<u8> {
    let mut summary = Summary::new(Detail::Quantiles);
    for octave in 1024 - octaves..1024 {
        for n in 0..a_octave {
            // 2^octave by its bits, so that subnormal ones are exact too.
            let power = if octave < -1022 {
                f64::from_bits(1 << (octave + 1074))
            } else {
                f64::from_bits(((octave + 1023) as u64) << 52)
            };
            let value = power * (1.0 + f64::from(n) / f64::from(a_octave));
            summary.add(value);
            summary.add(-value * 0.75);
        }
    }
    summary.add(0.0);
    let mut stored = Vec::new();
    state::put(&summary, &mut stored);
    let (state, _) = StateView::read(&stored).expect("just written");
    let view = RecordView {
        key,
        rule: None,
        window_s: 10,
        start_ms: 20_000,
        aggregates: summary.aggregates().expect("values"),
        series: 1,
        era: 0,
        revision: 3,
        flags: Flags::default(),
        state: Some(state),
    };
    let mut renderer = renderer();
    let record = renderer.window("aggregate", &Window { number: u64::MAX, epoch: u64::MAX, view });
    assert!(bytes(&record) - record.value.len() - record.key.len() < 1024);
    record.value.to_vec()
}

#[test]
fn windows_of_real_measurements_are_far_from_kafkas_bound_and_the_largest_there_is_is_divided() {
    // Both signs, over 2^40 : 1, a value in each bin.
    let usual = window_record(b"c\xFFcpu\xFFhost\xFEa", 40, 70);
    println!("a window of both signs over twelve decimal orders: {} bytes", usual.len());
    assert!(usual.len() < KAFKA_BYTES_MAX / 8, "{}", usual.len());

    // Every power of two that a double has, a value in each of its bins.
    let key = longest_key(20);
    assert!((KEY_BYTES_MAX - 8192..=KEY_BYTES_MAX).contains(&key.len()), "windows have no longer keys: {}", key.len());
    let largest = window_record(&key, 2098, 70);
    println!("the largest window: {} bytes", largest.len());
    assert!(largest.len() > KAFKA_BYTES_MAX, "{}: then no window needs to be divided", largest.len());
    let parts = divide(&largest, 4).expect("many bins");
    assert!(parts.iter().all(|part| part.len() + 4096 < KAFKA_BYTES_MAX));
    adds_up(&largest, &parts);
}

#[derive(Debug, Default, PartialEq)]
struct Whole {
    count: u64,
    sum: Option<BigRational>,
    zeros: u64,
    bins: [BTreeMap<u64, u64>; 2],
    min: Option<String>,
    max: Option<String>,
}

/// As the schema says that windows are merged.
fn merge(documents: &[Json]) -> Whole {
    let mut whole = Whole::default();
    for document in documents {
        let state = &document["state"];
        let integer = |value: &Json| value.as_u64().expect("an integer");
        let number = |value: &Json| Some(value.as_number().expect("a number").to_string());
        let mantissa: BigInt = state["sum"][0].as_str().expect("a text").parse().expect("an integer");
        let exponent = state["sum"][1].as_i64().expect("an integer");
        let power = BigInt::from(1) << exponent.unsigned_abs();
        let sum = if exponent < 0 { BigRational::new(mantissa, power) } else { BigRational::from(mantissa * power) };
        whole.sum = Some(whole.sum.take().map_or(sum.clone(), |before| before + &sum));
        whole.count += integer(&document["count"]);
        whole.zeros += integer(&state["zeros"]);
        for (bins, sign) in whole.bins.iter_mut().zip(["negative", "positive"]) {
            for bin in state[sign].as_array().expect("bins") {
                *bins.entry(integer(&bin[0])).or_default() += integer(&bin[1]);
            }
        }
        for (known, found) in [(&mut whole.min, number(&document["min"])), (&mut whole.max, number(&document["max"]))] {
            assert!(known.is_none() || *known == found, "extremes are the whole's");
            *known = found;
        }
    }
    whole
}

fn json(bytes: &[u8]) -> Json {
    serde_json::from_slice(bytes).expect("JSON")
}

fn adds_up(whole: &[u8], parts: &[Vec<u8>]) {
    let documents: Vec<Json> = parts.iter().map(|part| json(part)).collect();
    assert_eq!(merge(&documents), merge(&[json(whole)]));
    for (n, document) in documents.iter().enumerate() {
        assert_eq!((&document["part"], &document["parts"]), (&Json::from(n + 1), &Json::from(parts.len())));
        assert!(document["count"].as_u64() > Some(0) && document["p99"].is_null() && document["avg"].is_null());
        for member in ["name", "client_id", "rule", "tags", "start_ms", "window_s", "era", "revision", "series"] {
            assert_eq!(document[member], json(whole)[member], "{member}");
        }
    }
}

#[test]
fn parts_are_alike_each_time_and_add_up_to_the_whole_whatever_their_number() {
    let whole = window_record(b"c\xFFcpu\xFFhost\xFEa \"quoted\",\"state\":{}", 3, 7);
    let bins = json(&whole)["state"]["positive"].as_array().map_or(0, Vec::len);
    for parts in [2, 3, 4, 8, 16] {
        let divided = divide(&whole, parts).expect("many bins");
        assert_eq!(divided.len(), parts as usize);
        assert_eq!(divide(&whole, parts), Some(divided.clone()), "the same each time");
        adds_up(&whole, &divided);
    }
    assert!(bins > 16 && divide(&whole, 4096).is_none(), "more parts than bins");
    let point = br#"{"name":"n","client_id":"c","tags":{},"value":1,"timestamp":1}"#;
    assert_eq!(divide(point, 2), None, "a point is one");
    let plain = String::from_utf8(whole).expect("UTF-8");
    let at = plain.find("\"zeros\"").expect("there");
    let plain = format!("{}}}}}", plain[..at].trim_end_matches(','));
    assert!(json(plain.as_bytes())["state"]["sum"].is_array());
    assert_eq!(divide(plain.as_bytes(), 2), None, "without a sketch there is nothing to divide");
}
