//! A result made by code, for the tests of everything that shows results.

use std::collections::BTreeMap;

use super::*;
use crate::plan;

/// 1,000 requests/s, latency around 800 us with a tail, a few refusals.
pub fn steady(label: &str, seconds: u32) -> RunResult {
    let mut latency = Recorded::default();
    let mut service = Recorded::default();
    let mut lateness = Recorded::default();
    let mut lines = Vec::new();
    let mut server = BTreeMap::new();
    for second in 0..seconds {
        let mut here = Recorded::default();
        for n in 0..1_000u64 {
            // A long-tailed shape without a random number: 1/(1-q) stretched.
            let q = ((n * 617 + u64::from(second)) % 1_000) as f64 / 1_000.0;
            let us = (500.0 + 150.0 / (1.0 - q).sqrt()) as u64;
            here.0.record(us).unwrap();
            service.0.record(us - 40).unwrap();
            lateness.0.record(5 + n % 30).unwrap();
            *server.entry(us.next_power_of_two()).or_insert(0) += 1;
        }
        lines.push(Second {
            at_s: f64::from(second),
            due: 1_000,
            sent: 1_000,
            acknowledged: 998,
            refused: 2,
            unknown: 0,
            p50_us: here.at(0.5),
            p99_us: here.at(0.99),
            max_us: here.0.max(),
            lateness_p99_us: 34,
        });
        latency.add(&here);
    }
    let count = u64::from(seconds) * 1_000;
    RunResult {
        version: VERSION,
        tool: "metricstream-loadgen 0.1.0".into(),
        command: format!("metricstream-loadgen run --label {label}"),
        machine: Machine {
            host: "fixture".into(),
            cpu: "A Processor".into(),
            cores: 2,
            memory_mib: 8_192,
            kernel: "6.1.0".into(),
        },
        started_unix_ms: 1_767_225_600_000,
        target: "http://127.0.0.1:8186".into(),
        plan: plan(),
        totals: Totals {
            duration_s: f64::from(seconds),
            due: count,
            sent: count,
            acknowledged: count - 2 * u64::from(seconds),
            refused: [(429, 2 * u64::from(seconds))].into(),
            points_sent: count * 100,
            points_acknowledged: (count - 2 * u64::from(seconds)) * 100,
            sent_bytes: count * 12_000,
            received_bytes: count * 150,
            connections_opened: 32,
            generator_cpu_s: f64::from(seconds) * 0.42,
            ..Totals::default()
        },
        histograms: Histograms { latency_us: latency, service_us: service, lateness_us: lateness },
        seconds: lines,
        steps: Vec::new(),
        server: Some(ServerSide {
            acknowledge: server.into_iter().map(|(us, count)| (us as f64 / 1e6, count)).collect(),
            cpu_s: Some(f64::from(seconds) * 0.31),
            rss_bytes: Some(48 << 20),
        }),
        notes: Vec::new(),
    }
}

/// Six steps of 5 s towards a knee.
pub fn sweep(label: &str) -> RunResult {
    let mut result = steady(label, 30);
    for (n, rate) in [1_000.0, 2_000.0, 4_000.0, 8_000.0, 12_000.0, 16_000.0].into_iter().enumerate() {
        let mut latency_us = Recorded::default();
        for n in 0..1_000u64 {
            let us = 400.0 * (1.0 + n as f64 / 500.0) / (1.0 - rate / 16_500.0);
            latency_us.0.record(us as u64).unwrap();
        }
        let due = (rate * 5.0) as u64;
        result.steps.push(Stretch {
            rate,
            from_s: n as f64 * 5.0,
            to_s: n as f64 * 5.0 + 5.0,
            due,
            acknowledged: due,
            errors: 0,
            latency_us,
        });
    }
    result
}

pub fn plan() -> Plan {
    Plan {
        seed: 7,
        epoch_ns: 1_767_225_600_000_000_000,
        workload: plan::Workload {
            protocol: plan::Protocol::Line,
            clients: 10,
            series: 1_000,
            tags: 3,
            batch_points: 100,
            churn_per_minute: 0.0,
            values: plan::Values::Gauge,
            timestamps: plan::Timestamps::Now,
            bad_share: 0.0,
        },
        shape: Shape::Constant { rate: 1_000.0, duration_ms: 30_000 },
        transport: plan::Transport {
            path: "/write?db=bench".into(),
            connections: 32,
            connection: plan::Connection::KeepAlive,
            compression: plan::Compression::None,
            identity: plan::Identity::None,
            token: None,
            retry: plan::Retry::Never,
            timeout_ms: 10_000,
        },
    }
}
