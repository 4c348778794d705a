//! The table of live series: look-ups of known series, 100 a request in an order of their own, and series met for the
//! first time. Past some 10,000 series what is measured is the memory.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use metricstream_bench::paths::SeriesLookup;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn hit(c: &mut Criterion) {
    let mut group = c.benchmark_group("series/hit");
    group.throughput(Throughput::Elements(SeriesLookup::REQUEST_POINTS as u64));
    for series in [1_000, 10_000, 100_000, 1_000_000] {
        let mut path = SeriesLookup::known(series);
        group.bench_function(BenchmarkId::from_parameter(series), |b| b.iter(|| black_box(path.hit())));
    }
    group.finish();
}

fn miss(c: &mut Criterion) {
    let mut group = c.benchmark_group("series/miss");
    group.throughput(Throughput::Elements(SeriesLookup::REQUEST_POINTS as u64));
    for series in [10_000, 100_000] {
        // A series is new once: whole tables are filled, and a request's share of that is the figure.
        let requests = (series / SeriesLookup::REQUEST_POINTS) as u32;
        group.bench_function(BenchmarkId::from_parameter(series), |b| {
            b.iter_custom(|iterations| {
                let mut took = Duration::ZERO;
                let tables = iterations.div_ceil(u64::from(requests));
                for _ in 0..tables {
                    let mut path = SeriesLookup::empty(series);
                    let start = Instant::now();
                    (0..requests).for_each(|_| {
                        black_box(path.make());
                    });
                    took += start.elapsed();
                }
                took.mul_f64(iterations as f64 / (tables * u64::from(requests)) as f64)
            })
        });
    }
    group.finish();
}

criterion_group!(benches, hit, miss);
criterion_main!(benches);
