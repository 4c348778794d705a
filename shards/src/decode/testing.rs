//! What tests, fuzz targets and the timing example share: a series table in memory, and the properties that hold for
//! any body. Included by path outside of this crate, so it names nothing but what its includer has in scope.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use super::*;

/// Knows series by raw key, and remembers their names as the canonical form without a client.
#[derive(Default)]
pub struct MemorySeries {
    state: RandomState,
    by_raw: HashMap<Vec<u8>, u32>,
    pub names: Vec<String>,
    by_name: HashMap<String, u32>,
    /// `None`: no limit
    pub series_max: Option<usize>,
}

impl SeriesResolver for MemorySeries {
    fn hash(&self, raw: &[u8]) -> u64 {
        self.state.hash_one(raw)
    }
    fn prefetch(&self, _hash: u64) {}
    fn get(&mut self, hash: u64, raw: &[u8]) -> Option<SeriesId> {
        assert_eq!(hash, self.hash(raw), "a hash belongs to another key");
        self.by_raw.get(raw).map(|&id| SeriesId(id))
    }
    fn insert(
        &mut self,
        hash: u64,
        raw: &[u8],
        name: &[u8],
        tags: &mut Vec<(&[u8], &[u8])>,
        overflow_key: &mut Vec<u8>,
    ) -> Option<SeriesId> {
        assert_eq!(hash, self.hash(raw), "a hash belongs to another key");
        let rendered = render_series(name, tags);
        if let Some(&id) = self.by_name.get(&rendered) {
            self.by_raw.insert(raw.to_vec(), id);
            return Some(SeriesId(id));
        }
        if self.series_max.is_some_and(|max| self.names.len() >= max) {
            overflow_key.extend_from_slice(rendered.as_bytes());
            return None;
        }
        let id = self.names.len() as u32;
        self.by_raw.insert(raw.to_vec(), id);
        self.by_name.insert(rendered.clone(), id);
        self.names.push(rendered);
        Some(SeriesId(id))
    }
}

/// `name{key=value,key=value}`: sorted, the last of equal keys, no empty values.
pub fn render_series(name: &[u8], tags: &[(&[u8], &[u8])]) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("names and tags are UTF-8");
    let mut kept = std::collections::BTreeMap::new();
    for (key, value) in tags {
        kept.insert(text(key), text(value));
    }
    let tags: Vec<_> = kept.iter().filter(|(_, value)| !value.is_empty()).map(|(k, v)| format!("{k}={v}")).collect();
    if tags.is_empty() { text(name) } else { format!("{}{{{}}}", text(name), tags.join(",")) }
}

/// One line a point, in the order of the batch: `name{tags} kind value @timestamp`.
pub fn render_points(batch: &Batch, series: &MemorySeries) -> Vec<String> {
    let columns = [batch.timestamps_ns.len(), batch.kinds.len(), batch.bits.len()];
    assert_eq!(columns, [batch.len(); 3], "columns of different lengths");
    let render = |at: usize| {
        let name = match SeriesRef::from_bits(batch.series[at]) {
            SeriesRef::Known(id) => series.names[id.0 as usize].clone(),
            SeriesRef::Inline(n) => {
                format!("inline {}", String::from_utf8_lossy(&batch.inline_keys[n as usize]))
            }
        };
        let bits = batch.bits[at];
        let value = match Kind::from_u8(batch.kinds[at]).expect("a known kind") {
            Kind::Float => {
                assert!(f64::from_bits(bits).is_finite(), "an infinity came through");
                format!("float {:?}", f64::from_bits(bits))
            }
            Kind::Int => format!("int {}", bits as i64),
            Kind::UInt => format!("uint {bits}"),
            Kind::Bool => format!("bool {}", bits == 1),
            Kind::Text => {
                let text = std::str::from_utf8(&batch.strings[bits as usize]).expect("texts are UTF-8");
                format!("text {text:?}")
            }
        };
        match batch.timestamps_ns[at] {
            NO_TIMESTAMP => format!("{name} {value} @none"),
            ns => format!("{name} {value} @{ns}"),
        }
    };
    (0..batch.len()).map(render).collect()
}

/// Points, counts by reason, and the words.
pub type Decoded = (Vec<String>, [u32; Reason::COUNT], Vec<Rejection>);

pub fn decode_line(body: &[u8], unit: TimestampUnit, bounds: &Bounds, series: &mut MemorySeries) -> Decoded {
    let (mut batch, mut rejected) = (Batch::default(), Rejections::default());
    line::LineDecoder::new().decode(body, unit, bounds, series, &mut batch, &mut rejected);
    (render_points(&batch, series), rejected.by_reason, rejected.first)
}

pub fn decode_json(
    body: &[u8],
    unit: TimestampUnit,
    bounds: &Bounds,
    series: &mut MemorySeries,
) -> Result<Decoded, json::JsonError> {
    let (mut batch, mut rejected) = (Batch::default(), Rejections::default());
    json::JsonDecoder::new().decode(body, unit, bounds, series, &mut batch, &mut rejected)?;
    Ok((render_points(&batch, series), rejected.by_reason, rejected.first))
}

fn check_words(rejected: &Decoded) {
    assert!(rejected.2.is_sorted_by_key(|rejection| rejection.index), "refusals out of order");
    assert_eq!(rejected.1.iter().all(|&count| count == 0), rejected.2.is_empty());
    for rejection in &rejected.2 {
        assert!(rejected.1[rejection.reason as usize] > 0, "words without a count");
        assert!(!rejection.message.chars().any(char::is_control), "{:?}", rejection.message);
    }
}

/// A body means the same to the reference, and to a decoder that has seen it before.
pub fn check_line(
    body: &[u8],
    reference: impl Fn(&[u8], TimestampUnit, &Bounds) -> (Vec<String>, [u32; Reason::COUNT]),
) {
    let small = Bounds {
        points_max: 3,
        name_bytes_max: 8,
        tag_bytes_max: 4,
        tags_max: 2,
        series_bytes_max: 24,
        text_bytes_max: 5,
        ..Bounds::default()
    };
    for (unit, bounds) in [(TimestampUnit::Ns, Bounds::default()), (TimestampUnit::ByMagnitude, small)] {
        let mut series = MemorySeries::default();
        let first = decode_line(body, unit, &bounds, &mut series);
        check_words(&first);
        let second = decode_line(body, unit, &bounds, &mut series);
        assert_eq!(first, second, "known series changed the outcome of {:?}", body.escape_ascii().to_string());
        let expected = reference(body, unit, &bounds);
        assert_eq!((first.0, first.1), expected, "body {:?}", body.escape_ascii().to_string());
    }
}

/// A body is JSON exactly when serde_json says so, and its points are those that serde_json's tree has.
pub fn check_json(body: &[u8]) {
    let bounds = Bounds::default();
    let mut series = MemorySeries::default();
    let first = decode_json(body, TimestampUnit::Ns, &bounds, &mut series);
    let second = decode_json(body, TimestampUnit::Ns, &bounds, &mut series);
    assert_eq!(first, second, "known series changed the outcome");
    let shown = body.escape_ascii().to_string();
    // serde_json stops at a depth of 128, ours is 64
    match (&first, serde_json::from_slice::<serde_json::Value>(body)) {
        (Err(error), Ok(tree)) => {
            assert!(error.offset <= body.len());
            if !error.message.contains("inside each other") {
                assert!(error.message.starts_with("the document must"), "{shown}: {error}");
                let known = |object: &serde_json::Map<_, _>| {
                    ["name", "value", "fields"].iter().any(|key| object.contains_key(*key))
                };
                let accepted = match &tree {
                    serde_json::Value::Array(_) => true,
                    serde_json::Value::Object(object) => match object.get("metrics") {
                        Some(metrics) => metrics.is_array(),
                        None => known(object),
                    },
                    _ => false,
                };
                assert!(!accepted, "{shown}: {error}");
            }
        }
        (Ok(decoded), Ok(tree)) => {
            check_words(decoded);
            let (points, rejected) = json_reference(&tree);
            if let Some(points) = points {
                assert_eq!(decoded.0, points, "{shown}");
                assert_eq!(decoded.1.iter().sum::<u32>(), rejected, "{shown}");
            }
        }
        (Err(error), Err(_)) => assert!(error.offset <= body.len(), "{shown}: {error}"),
        // serde_json refuses a number that overflows, and we refuse but its point
        (Ok(_), Err(error)) => assert!(error.to_string().starts_with("number out of range"), "{shown}: {error}"),
    }
}

/// The points of a tree and the number of refused ones; `None` where the tree has forgotten what decides: how a number
/// in a timestamp or a tag was written, or that a key came twice.
fn json_reference(tree: &serde_json::Value) -> (Option<Vec<String>>, u32) {
    use serde_json::Value;
    let elements = match tree {
        Value::Array(elements) => elements.as_slice(),
        Value::Object(object) => match object.get("metrics") {
            Some(Value::Array(elements)) => elements.as_slice(),
            _ => std::slice::from_ref(tree),
        },
        _ => return (None, 0),
    };
    let (mut points, mut rejected) = (Vec::new(), 0);
    for element in elements {
        match json_element(element) {
            Ok(Some(mut found)) => points.append(&mut found),
            Ok(None) => return (None, 0),
            Err(count) => rejected += count,
        }
    }
    (Some(points), rejected)
}

fn json_element(element: &serde_json::Value) -> Result<Option<Vec<String>>, u32> {
    use serde_json::Value;
    let good = |text: &str| text.len() <= 1024 && !text.chars().any(char::is_control);
    let mut refused = false;
    let mut tags = Vec::new();
    let fields = match (element.get("value"), element.get("fields")) {
        (Some(value), _) => {
            refused |= !value.is_number();
            vec![("value", value)]
        }
        (None, Some(Value::Object(fields))) if !fields.is_empty() => {
            fields.iter().map(|(k, v)| (k.as_str(), v)).collect()
        }
        _ => return Err(1),
    };
    match element.get("tags") {
        None | Some(Value::Null) => {}
        Some(Value::Object(object)) => {
            for (key, value) in object {
                match value {
                    Value::String(value) => tags.push((key.as_bytes(), value.as_bytes())),
                    _ => return Ok(None),
                }
                refused |= key.is_empty() || !good(key) || value.as_str().is_some_and(|value| !good(value));
            }
        }
        Some(_) => return Err(1),
    }
    if tags.len() > 60 || fields.len() > 1 {
        return Ok(None); // the tree sorts fields, and has dropped what came twice
    }
    let time = match element.get("timestamp") {
        None | Some(Value::Null) => "none".to_owned(),
        Some(Value::Number(number)) if number.is_i64() && number.as_i64() != Some(i64::MIN) => number.to_string(),
        Some(Value::Number(number)) if number.is_f64() => return Ok(None),
        Some(_) => return Err(1),
    };
    let name = element.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()).ok_or(1_u32)?;
    let mut points = Vec::new();
    for (field, value) in &fields {
        let name = if *field == "value" { name.to_owned() } else { format!("{name}_{field}") };
        refused |= !good(&name);
        let value = match value {
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(n), _) if n.unsigned_abs() <= 1 << 53 => format!("float {:?}", n as f64),
                (Some(n), _) => format!("int {n}"),
                (None, Some(n)) => format!("uint {n}"),
                (None, None) => format!("float {:?}", number.as_f64().expect("a number")),
            },
            Value::Bool(value) => format!("bool {value}"),
            Value::String(value) => format!("text {value:?}"),
            _ => {
                refused = true;
                continue;
            }
        };
        if !refused {
            points.push(format!("{} {value} @{time}", render_series(name.as_bytes(), &tags)));
        }
    }
    if refused { Err(1) } else { Ok(Some(points)) }
}
