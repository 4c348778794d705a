//! Bodies to columns, series looked up: our decoders, and for JSON the libraries that parse into structs, followed by
//! the same look-ups and the same columns. 10,000 series, all known.

use std::borrow::Cow;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use metricstream_bench::inputs::{self, Format, SEEDS};
use metricstream_bench::paths::Decode;
use metricstream_shards::point::{Batch, Kind, SeriesId, SeriesRef, SeriesResolver as _};
use metricstream_shards::series::{ClientProfile, ClientTable, SeriesBounds, SeriesTable};
use serde::Deserialize;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SERIES: usize = 10_000;
const POINTS: [usize; 4] = [1, 10, 100, 1000];

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    metrics: Vec<Point<'a>>,
}

#[derive(Deserialize)]
struct Point<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    value: f64,
    timestamp: i64,
    #[serde(borrow)]
    tags: Tags<'a>,
}

#[derive(Deserialize)]
struct Tags<'a> {
    #[serde(borrow)]
    host: Cow<'a, str>,
    #[serde(borrow)]
    region: Cow<'a, str>,
}

/// What a decoder owes after the parse, for documents of another library.
struct Columns {
    series: SeriesTable,
    clients: ClientTable,
    keys: Vec<u8>,
    found: Vec<(u64, usize)>,
    batch: Batch,
}

impl Columns {
    fn new() -> Columns {
        let bounds = SeriesBounds { series_max: SERIES, series_per_client_max: SERIES, ..SeriesBounds::default() };
        Columns {
            series: SeriesTable::new(SEEDS, bounds, &[]),
            clients: ClientTable::new(SEEDS, 16),
            keys: Vec::new(),
            found: Vec::new(),
            batch: Batch::default(),
        }
    }

    /// All keys hashed and asked for before the first is compared, as our decoders do in groups.
    fn take(&mut self, document: &Document<'_>) -> usize {
        let client = self.clients.resolve("10.0.0.1", 1, |_| ClientProfile::default()).expect("a fine id");
        self.series.begin_request(client, 1);
        self.keys.clear();
        self.found.clear();
        self.batch.clear();
        for point in &document.metrics {
            let from = self.keys.len();
            for part in [&point.name, &point.tags.host, &point.tags.region] {
                self.keys.extend_from_slice(part.as_bytes());
                self.keys.push(0xFF);
            }
            let hash = self.series.hash(&self.keys[from..]);
            self.series.prefetch(hash);
            self.found.push((hash, self.keys.len()));
        }
        let mut from = 0;
        for (point, &(hash, to)) in document.metrics.iter().zip(&self.found) {
            let raw = &self.keys[from..to];
            from = to;
            let id: SeriesId = match self.series.get(hash, raw) {
                Some(id) => id,
                None => {
                    let mut tags: Vec<(&[u8], &[u8])> =
                        vec![(b"host", point.tags.host.as_bytes()), (b"region", point.tags.region.as_bytes())];
                    let made = self.series.insert(hash, raw, point.name.as_bytes(), &mut tags, &mut Vec::new());
                    made.expect("below the limit")
                }
            };
            let timestamp_ns = point.timestamp * 1_000_000;
            self.batch.push(SeriesRef::Known(id), timestamp_ns, Kind::Float, point.value.to_bits());
        }
        self.batch.len()
    }
}

fn decode(c: &mut Criterion) {
    for format in Format::BOTH {
        let mut group = c.benchmark_group(format!("decode/{}", format.name()));
        for points in POINTS {
            let mut path = Decode::new(format, points, SERIES);
            group.throughput(Throughput::ElementsAndBytes { elements: points as u64, bytes: path.body_bytes() });
            group.bench_function(BenchmarkId::new("metricstream", points), |b| b.iter(|| black_box(path.step())));
            if format == Format::Json {
                others(&mut group, points);
            }
        }
        group.finish();
    }
}

/// Lines of five fields: name and tags stand once for five points.
fn five_fields(c: &mut Criterion) {
    const POINTS: usize = 100;
    let bodies = inputs::five_field_bodies(SERIES / POINTS, POINTS, SERIES / 5);
    let mut path = Decode::of(Format::Line, bodies, POINTS, SERIES);
    let mut group = c.benchmark_group("decode/line_five_fields");
    group.throughput(Throughput::ElementsAndBytes { elements: POINTS as u64, bytes: path.body_bytes() });
    group.bench_function(BenchmarkId::new("metricstream", POINTS), |b| b.iter(|| black_box(path.step())));
    group.finish();
}

fn others(group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>, points: usize) {
    let bodies = inputs::bodies(Format::Json, SERIES.div_ceil(points), points, SERIES);
    type Parse = fn(&[u8], &mut Vec<u8>, &mut Columns) -> usize;
    let libraries: [(&str, Parse); 3] = [
        ("serde_json", |body, _, columns| columns.take(&serde_json::from_slice(body).expect("a good document"))),
        ("sonic-rs", |body, _, columns| columns.take(&sonic_rs::from_slice(body).expect("a good document"))),
        // It parses in place, so the body is copied first, as our decoder does for the same reason.
        ("simd-json_serde", |body, copy, columns| {
            copy.clear();
            copy.extend_from_slice(body);
            columns.take(&simd_json::serde::from_slice(copy).expect("a good document"))
        }),
    ];
    for (name, parse) in libraries {
        let (mut columns, mut copy) = (Columns::new(), Vec::new());
        for body in &bodies {
            assert_eq!(parse(body, &mut copy, &mut columns), points, "{name} finds all points");
        }
        let mut next = 0;
        group.bench_function(BenchmarkId::new(name, points), |b| {
            b.iter(|| {
                next = (next + 1) % bodies.len();
                black_box(parse(&bodies[next], &mut copy, &mut columns))
            })
        });
    }
}

criterion_group!(benches, decode, five_fields);
criterion_main!(benches);
