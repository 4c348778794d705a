//! Time a point in `Fold::fold` and a cell in `Fold::take_ready`: `cargo run --release --example fold_speed`.

#![allow(clippy::disallowed_methods)] // it measures: the real clock is the point

use metricstream_shards::point::{Batch, FoldInput, Kind, Protocol, SeriesId, SeriesRef};
use metricstream_shards::window::{
    fold::{Fold, FoldConfig},
    partial::ShardMessage,
};
use std::time::Instant;

const S_NS: i64 = 1_000_000_000;
const BATCH: usize = 1000;

fn main() {
    println!("series    points/window  order      fold ns/point  take ns/cell  MiB open");
    for (series, per_window) in
        [(300, 300), (10_000, 1), (10_000, 10), (10_000, 300), (100_000, 1), (100_000, 10), (1_000_000, 1)]
    {
        for shuffled in [false, true] {
            run(series, per_window, shuffled);
        }
    }
}

fn run(series: u32, per_window: i64, shuffled: bool) {
    let mut fold = Fold::new(FoldConfig { points_bytes_max: 4 << 30, ..FoldConfig::default() }, 0);
    let mut order: Vec<u32> = (0..series).collect();
    let mut random = 1u64;
    let mut next = move || {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        random >> 33
    };
    if shuffled {
        for at in (1..order.len()).rev() {
            order.swap(at, next() as usize % (at + 1));
        }
    }
    let mut batch = Batch::default();
    let (mut fold_ns, mut take_ns, mut points, mut cells, mut open_bytes) = (0, 0, 0u64, 0, 0);
    let windows = (8_000_000 / (series as i64 * per_window)).clamp(4, 30);
    for window in 0..windows {
        let start_ns = 1_700_000_000 * S_NS + window * 10 * S_NS;
        for n in 0..per_window {
            let timestamp_ns = start_ns + n * 10 * S_NS / per_window;
            for part in order.chunks(BATCH) {
                batch.clear();
                for &id in part {
                    let value = 50.0 + (next() % 100_000) as f64 / 1000.0;
                    batch.push(SeriesRef::Known(SeriesId(id)), timestamp_ns, Kind::Float, value.to_bits());
                }
                let input = FoldInput {
                    protocol: Protocol::Json,
                    client: "c",
                    stamp_ns: timestamp_ns,
                    same_timestamp_all: false,
                    batch: &batch,
                };
                let started = Instant::now();
                let counts = fold.fold(&input);
                if window >= 2 {
                    fold_ns += started.elapsed().as_nanos() as u64;
                    points += counts.folded;
                }
            }
        }
        open_bytes = open_bytes.max(fold.memory_bytes());
        // Two windows stay open, as with 15 s of lateness.
        let started = Instant::now();
        let mut taken = 0;
        while let Some(ShardMessage::Partials(partials)) = fold.take_ready(start_ns - 5 * S_NS, 512) {
            taken += partials.cells.len() as u64;
            std::hint::black_box(partials);
        }
        if window >= 2 {
            take_ns += started.elapsed().as_nanos() as u64;
            cells += taken;
        }
    }
    println!(
        "{series:<9} {per_window:<14} {:<10} {:<14.1} {:<13.1} {}",
        if shuffled { "shuffled" } else { "ascending" },
        fold_ns as f64 / points as f64,
        take_ns as f64 / cells.max(1) as f64,
        open_bytes >> 20
    );
}
