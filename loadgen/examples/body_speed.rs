//! How long a point takes to make: `cargo run --release -p metricstream-loadgen --example body_speed`.

use std::time::Instant;

use metricstream_loadgen::plan::*;
use metricstream_loadgen::workload::{Batch, Workload as Points};

fn main() {
    println!("{:<46} {:>10} {:>12} {:>9}", "load", "ns/point", "points/s", "bytes");
    for protocol in [Protocol::Line, Protocol::Json] {
        for (batch_points, series) in [(1, 10_000), (10, 10_000), (1_000, 10_000), (1_000, 1_000_000)] {
            for values in [Values::Gauge, Values::Counter, Values::Latency] {
                measure(protocol, batch_points, series, values, Timestamps::Now, 0.0);
            }
        }
        measure(protocol, 1_000, 10_000, Values::Gauge, Timestamps::Late { share: 0.1, by_ms: 10_000 }, 0.0);
        measure(protocol, 1_000, 10_000, Values::Gauge, Timestamps::Now, 0.1);
    }
}

fn measure(protocol: Protocol, points: u32, series: u64, values: Values, timestamps: Timestamps, churn: f64) {
    let plan = Plan {
        seed: 1,
        epoch_ns: 1_767_225_600_000_000_000,
        workload: Workload {
            protocol,
            clients: 32,
            series,
            tags: 3,
            batch_points: points,
            churn_per_minute: churn,
            values,
            timestamps,
            bad_share: 0.0,
        },
        shape: Shape::Closed { duration_ms: 1_000 },
        transport: Transport {
            path: "/write".into(),
            connections: 32,
            connection: Connection::KeepAlive,
            compression: Compression::None,
            identity: Identity::None,
            token: None,
            retry: Retry::Never,
            timeout_ms: 1_000,
        },
    };
    let workload = Points::new(&plan);
    let mut out = Vec::new();
    let mut best_ns = f64::MAX;
    let mut bytes = 0;
    let bodies = 600_000 / points;
    for round in 0..5 {
        let start = Instant::now();
        for n in 0..bodies {
            out.clear();
            let number = u64::from(round * bodies + n) / 32;
            let batch = Batch { client: n % 32, number, stamp_ns: plan.epoch_ns + i64::from(n) * 1_000 };
            workload.body(&mut out, &[batch]);
            bytes = out.len();
        }
        best_ns = best_ns.min(start.elapsed().as_nanos() as f64 / f64::from(bodies * points));
    }
    let load = format!(
        "{protocol:?} {points} of {series} {values:?} {}",
        match timestamps {
            Timestamps::Now if churn > 0.0 => "churn",
            Timestamps::Now => "",
            _ => "late",
        }
    );
    println!("{load:<46} {best_ns:>10.1} {:>12.0} {bytes:>9}", 1e9 / best_ns);
}
