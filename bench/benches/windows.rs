//! Durable batches into windows, windows out, and the sketches in them, beside the crate sketches-ddsketch.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use metricstream_bench::inputs;
use metricstream_bench::paths::Windows;
use metricstream_shards::window::sketch::Sketch;
use sketches_ddsketch::{Config, DDSketch};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Series, and points of each in a window.
const SHAPES: [(usize, i64); 4] = [(1_000, 300), (10_000, 10), (100_000, 10), (1_000_000, 1)];

fn fold(c: &mut Criterion) {
    let mut group = c.benchmark_group("window/apply");
    group.throughput(Throughput::Elements(Windows::BATCH_POINTS as u64));
    for (series, points) in SHAPES {
        let mut path = Windows::new(series, points);
        let batches_a_window = (series as u64).div_ceil(Windows::BATCH_POINTS as u64) * points as u64;
        let mut batches = 0;
        group.bench_function(BenchmarkId::from_parameter(format!("{series}x{points}")), |b| {
            b.iter_custom(|iterations| {
                let mut took = Duration::ZERO;
                for _ in 0..iterations {
                    path.prepare();
                    let start = Instant::now();
                    black_box(path.fold());
                    took += start.elapsed();
                    batches += 1;
                    if batches % batches_a_window == 0 {
                        path.take_window();
                    }
                }
                took
            })
        });
    }
    group.finish();
}

fn close(c: &mut Criterion) {
    let mut group = c.benchmark_group("window/close");
    group.sample_size(10);
    for (series, points) in SHAPES {
        group.throughput(Throughput::Elements(series as u64));
        let mut path = Windows::new(series, points);
        group.bench_function(BenchmarkId::from_parameter(format!("{series}x{points}")), |b| {
            b.iter_custom(|iterations| {
                let mut took = Duration::ZERO;
                for _ in 0..iterations {
                    path.fill_window();
                    let start = Instant::now();
                    assert_eq!(black_box(path.take_window()), series as u64);
                    took += start.elapsed();
                }
                took
            })
        });
    }
    group.finish();
}

fn sketch(c: &mut Criterion) {
    const VALUES: usize = 10_000;
    let values = inputs::values(2 * VALUES);
    let ours = |values: &[f64]| {
        let mut sketch = Sketch::new();
        values.iter().for_each(|&value| sketch.add(value));
        sketch
    };
    // 1 % too; ours has bins of 2^(1/35).
    let theirs = |values: &[f64]| {
        let mut sketch = DDSketch::new(Config::new(0.01, 2048, 1e-9));
        values.iter().for_each(|&value| sketch.add(value));
        sketch
    };
    let (first, second) = values.split_at(VALUES);

    let mut group = c.benchmark_group("sketch/add");
    group.throughput(Throughput::Elements(VALUES as u64));
    group.bench_function("metricstream", |b| b.iter(|| ours(black_box(first)).count()));
    group.bench_function("sketches-ddsketch", |b| b.iter(|| theirs(black_box(first)).count()));
    group.finish();

    let mut group = c.benchmark_group("sketch/merge");
    group.throughput(Throughput::Elements(1));
    let (part, other) = (ours(second), theirs(second));
    group.bench_function("metricstream", |b| {
        b.iter_batched_ref(|| ours(first), |sketch| sketch.merge(black_box(&part)), BatchSize::SmallInput)
    });
    group.bench_function("sketches-ddsketch", |b| {
        let merge = |sketch: &mut DDSketch| sketch.merge(black_box(&other)).expect("of one configuration");
        b.iter_batched_ref(|| theirs(first), merge, BatchSize::SmallInput)
    });
    group.finish();
}

criterion_group!(benches, fold, close, sketch);
criterion_main!(benches);
