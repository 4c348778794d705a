//! A crude timing of the decoders: nanoseconds a point, for bodies of 100 points over 10,000 series whose raw keys are
//! all known. `cargo run --release -p metricstream-shards --example decode_speed`
//!
//! Bodies differ in values and times, so branches are not learnt by heart. The table is a plain map with ahash.

use std::time::Instant;

use hashbrown::HashTable;
use metricstream_shards::decode::json::JsonDecoder;
use metricstream_shards::decode::line::LineDecoder;
use metricstream_shards::decode::{Bounds, TimestampUnit};
use metricstream_shards::point::{Batch, Rejections, SeriesId, SeriesResolver};

struct Table {
    state: ahash::RandomState,
    raw: Vec<Box<[u8]>>,
    ids: HashTable<(u64, u32)>,
}

impl SeriesResolver for Table {
    fn hash(&self, raw: &[u8]) -> u64 {
        self.state.hash_one(raw)
    }
    fn prefetch(&self, _hash: u64) {}
    fn get(&mut self, hash: u64, raw: &[u8]) -> Option<SeriesId> {
        let found = self.ids.find(hash, |&(other, id)| other == hash && *self.raw[id as usize] == *raw)?;
        Some(SeriesId(found.1))
    }
    fn insert(
        &mut self,
        hash: u64,
        raw: &[u8],
        _name: &[u8],
        _tags: &mut Vec<(&[u8], &[u8])>,
        _overflow_key: &mut Vec<u8>,
    ) -> Option<SeriesId> {
        let id = self.raw.len() as u32;
        self.raw.push(raw.into());
        self.ids.insert_unique(hash, (hash, id), |&(hash, _)| hash);
        Some(SeriesId(id))
    }
}

const SERIES: u64 = 10_000;
const POINTS: u64 = 100;
const BODIES: u64 = 400;

fn bodies(mut point: impl FnMut(&mut String, u64, u64, u64)) -> Vec<Vec<u8>> {
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    (0..BODIES)
        .map(|body| {
            let mut text = String::new();
            for n in 0..POINTS {
                point(&mut text, n, next() % SERIES, next());
                let _ = body;
            }
            text.into_bytes()
        })
        .collect()
}

fn main() {
    use std::fmt::Write as _;
    let value = |random: u64| format!("{}.{}", random % 1000, random / 1000 % 1000);
    let one_field = bodies(|text, _, series, random| {
        let time = 1_700_000_000_000_000_000 + random % 1_000_000_000_000;
        let region = series % 7;
        writeln!(text, "api.latency,host=web-{series},region=eu-{region} value={} {time}", value(random)).unwrap();
    });
    let five_fields = bodies(|text, n, series, random| {
        if n % 5 == 0 {
            let time = 1_700_000_000_000_000_000 + random % 1_000_000_000_000;
            let value = value(random);
            let _ = writeln!(
                text,
                "cpu,cpu=cpu{},host=web-{series} usage_user={value},usage_system=0.7,usage_idle=96.91,usage_iowait={value},usage_steal=0 {time}",
                series % 8
            );
        }
    });
    let mut json = bodies(|text, n, series, random| {
        let (comma, region) = (if n == 0 { "{\"metrics\":[" } else { "," }, series % 7);
        let time = 1_700_000_000_000 + random % 1_000_000_000;
        let value = value(random);
        write!(text, r#"{comma}{{"name":"api.latency","value":{value},"timestamp":{time},"tags":{{"host":"web-{series}","region":"eu-{region}"}}}}"#).unwrap();
    });
    json.iter_mut().for_each(|body| body.extend(b"]}"));

    let (mut lines, mut documents) = (LineDecoder::new(), JsonDecoder::new());
    let bounds = Bounds::default();
    let (mut out, mut rejected) = (Batch::default(), Rejections::default());
    for (name, bodies) in [("line, one field", one_field), ("line, five fields", five_fields), ("json", json)] {
        let mut table = Table { state: ahash::RandomState::new(), raw: Vec::new(), ids: HashTable::new() };
        let bytes: usize = bodies.iter().map(Vec::len).sum();
        let mut best = f64::MAX;
        for _ in 0..40 {
            let mut points = 0;
            #[allow(clippy::disallowed_methods)]
            let start = Instant::now();
            for body in &bodies {
                out.clear();
                rejected.clear();
                if name == "json" {
                    documents
                        .decode(body, TimestampUnit::ByMagnitude, &bounds, &mut table, &mut out, &mut rejected)
                        .expect("a good document");
                } else {
                    lines.decode(body, TimestampUnit::Ns, &bounds, &mut table, &mut out, &mut rejected);
                }
                points += out.len();
            }
            best = best.min(start.elapsed().as_nanos() as f64 / points as f64);
            assert_eq!((points as u64, rejected.total()), (BODIES * POINTS, 0));
        }
        println!("{name}: {best:.1} ns a point, {} bytes a point", bytes as u64 / BODIES / POINTS);
    }
}
