//! What every request costs before and after its points: the head (beside httparse alone), the limiter, the log
//! without its disk, the CRC, and the whole of it as a shard serves it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use metricstream_bench::inputs::{self, Format};
use metricstream_bench::paths::{Admit, Append, REQUESTS_A_COMMIT, Requests};
use metricstream_shards::http::{Assembler, Bounds, HEADERS_MAX};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn head(c: &mut Criterion) {
    let request = inputs::request(Format::Line, &inputs::bodies(Format::Line, 1, 1, 1)[0]);
    let head_bytes = request.windows(4).position(|four| four == b"\r\n\r\n").expect("a head ends") + 4;
    let mut group = c.benchmark_group("http_head");
    group.throughput(Throughput::ElementsAndBytes { elements: 1, bytes: head_bytes as u64 });
    let (mut assembler, bounds) = (Assembler::new(0), Bounds::default());
    group.bench_function("metricstream", |b| b.iter(|| assembler.push(black_box(&request), 0, &bounds)));
    group.bench_function("httparse", |b| {
        b.iter(|| {
            let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let mut parsed = httparse::Request::new(&mut headers);
            parsed.parse(black_box(&request)).expect("a good head").is_complete()
        })
    });
    group.finish();
}

fn limiter(c: &mut Criterion) {
    let mut group = c.benchmark_group("limiter/admit");
    group.throughput(Throughput::Elements(1));
    for clients in [1, 100, 10_000] {
        let mut path = Admit::new(clients);
        group.bench_function(BenchmarkId::from_parameter(clients), |b| b.iter(|| path.step()));
    }
    group.finish();
}

fn log(c: &mut Criterion) {
    let mut group = c.benchmark_group("log/append");
    for points in [1, 10, 100, 1000] {
        group.throughput(Throughput::Elements(points as u64));
        let mut path = Append::new(points, 10_000);
        group.bench_function(BenchmarkId::from_parameter(points), |b| {
            b.iter_custom(|iterations| {
                let mut took = Duration::ZERO;
                for n in 0..iterations {
                    path.prepare();
                    let start = Instant::now();
                    black_box(path.append());
                    took += start.elapsed();
                    if n % REQUESTS_A_COMMIT as u64 == 0 {
                        path.commit();
                    }
                }
                path.commit();
                took
            })
        });
    }
    group.finish();

    // Sealing, CRC, header and bookkeeping of 64 requests of 100 points
    let mut path = Append::new(100, 10_000);
    let fill = |path: &mut Append| {
        (0..REQUESTS_A_COMMIT).for_each(|_| {
            path.prepare();
            path.append();
        })
    };
    fill(&mut path);
    let bytes = path.commit();
    let mut group = c.benchmark_group("log/commit");
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function(format!("{} KiB", bytes >> 10), |b| {
        b.iter_custom(|iterations| {
            let mut took = Duration::ZERO;
            for _ in 0..iterations {
                fill(&mut path);
                let start = Instant::now();
                black_box(path.commit());
                took += start.elapsed();
            }
            took
        })
    });
    group.finish();
}

fn crc(c: &mut Criterion) {
    let mut group = c.benchmark_group("crc32c");
    let mut random = inputs::Random::new(4);
    let bytes: Vec<u8> = (0..1 << 20).map(|_| random.draw() as u8).collect();
    for length in [4 << 10, 64 << 10, 1 << 20] {
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{} KiB", length >> 10)), |b| {
            b.iter(|| crc32c::crc32c(black_box(&bytes[..length])))
        });
    }
    group.finish();
}

fn whole(c: &mut Criterion) {
    for format in Format::BOTH {
        let mut group = c.benchmark_group(format!("request/{}", format.name()));
        for points in [1, 100] {
            group.throughput(Throughput::Elements(points as u64));
            let mut path = Requests::new(format, points, 10_000);
            let mut served = 0;
            group.bench_function(BenchmarkId::from_parameter(points), |b| {
                b.iter(|| {
                    served += 1;
                    if served % REQUESTS_A_COMMIT == 0 {
                        path.commit();
                    }
                    path.serve()
                })
            });
        }
        group.finish();
    }
}

criterion_group!(benches, head, limiter, log, crc, whole);
criterion_main!(benches);
