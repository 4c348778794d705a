//! A plan to start from in tests.

use crate::plan::*;

pub fn plan(shape: Shape) -> Plan {
    Plan {
        seed: 1,
        epoch_ns: 1_700_000_000_000_000_000,
        workload: Workload {
            protocol: Protocol::Line,
            clients: 1,
            series: 10,
            tags: 2,
            batch_points: 1,
            churn_per_minute: 0.0,
            values: Values::Gauge,
            timestamps: Timestamps::Now,
            bad_share: 0.0,
        },
        shape,
        transport: Transport {
            path: "/write?precision=ns".to_owned(),
            connections: 1,
            connection: Connection::KeepAlive,
            compression: Compression::None,
            identity: Identity::None,
            token: None,
            retry: Retry::Never,
            timeout_ms: 1000,
        },
    }
}
