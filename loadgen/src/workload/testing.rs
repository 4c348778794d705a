//! Plans for tests.

use crate::plan::*;

pub fn plan() -> Plan {
    Plan {
        seed: 42,
        epoch_ns: 1_767_225_600_000_000_000,
        workload: Workload {
            protocol: Protocol::Line,
            clients: 3,
            series: 100,
            tags: 3,
            batch_points: 50,
            churn_per_minute: 0.0,
            values: Values::Gauge,
            timestamps: Timestamps::Now,
            bad_share: 0.0,
        },
        shape: Shape::Constant { rate: 100.0, duration_ms: 10_000 },
        transport: Transport {
            path: "/write".to_string(),
            connections: 3,
            connection: Connection::KeepAlive,
            compression: Compression::None,
            identity: Identity::Header,
            token: None,
            retry: Retry::Never,
            timeout_ms: 5_000,
        },
    }
}
