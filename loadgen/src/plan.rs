//! The load as asked for. Bytes and intended times are a pure function of it: the ledger keeps it instead of the points.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub seed: u64,
    /// Unix ns that the run's time 0 stands for in timestamps; the wall clock at the start unless stated.
    pub epoch_ns: i64,
    pub workload: Workload,
    pub shape: Shape,
    pub transport: Transport,
}

/// What is in the bodies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    pub protocol: Protocol,
    /// Senders with an identity of their own; each has its own series.
    pub clients: u32,
    /// In all, spread evenly over the clients (each has at least one).
    pub series: u64,
    /// Tags of a series beside `host`.
    pub tags: u32,
    /// Points of one batch.
    pub batch_points: u32,
    /// Share of the series replaced by new ones each minute, 0 to 1.
    pub churn_per_minute: f64,
    pub values: Values,
    pub timestamps: Timestamps,
    /// Share of points rendered so that a server must refuse them, 0 to 1.
    pub bad_share: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// InfluxDB line protocol, timestamps in ns
    Line,
    /// MetricStream's native JSON
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Values {
    /// A bounded random walk per series
    Gauge,
    /// Rises by a random step
    Counter,
    /// Log-normal, in ms
    Latency,
}

/// How a point's timestamp relates to the intended moment of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timestamps {
    Now,
    /// Each client's clock is off by a constant within ±`by_ms`.
    Skewed {
        by_ms: u64,
    },
    /// That share of points is older by up to `by_ms`.
    Late {
        share: f64,
        by_ms: u64,
    },
    /// Points come in random order within `within_ms`.
    Shuffled {
        within_ms: u64,
    },
}

/// When requests are due.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Closed loop: each connection sends as soon as its last request is answered.
    Closed {
        duration_ms: u64,
    },
    /// Open loop; rates are requests a second. `soak` is a long `Constant`.
    Constant {
        rate: f64,
        duration_ms: u64,
    },
    Steps {
        rates: Vec<f64>,
        each_ms: u64,
    },
    Ramp {
        from: f64,
        to: f64,
        duration_ms: u64,
    },
    /// `base` with `peak` for `burst_ms` at the start of every `every_ms`.
    Burst {
        base: f64,
        peak: f64,
        every_ms: u64,
        burst_ms: u64,
        duration_ms: u64,
    },
    /// Every client sends a batch each `interval_ms`, phases spread by the seed.
    Fleet {
        interval_ms: u64,
        duration_ms: u64,
    },
}

/// How bodies travel. Does not change points, only bytes on the wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transport {
    /// Request path with its query.
    pub path: String,
    pub connections: u32,
    pub connection: Connection,
    pub compression: Compression,
    pub identity: Identity,
    /// Sent as `Authorization: Token …` when present.
    pub token: Option<String>,
    pub retry: Retry,
    pub timeout_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Connection {
    KeepAlive,
    /// A new connection for every request.
    Reconnect,
    /// Up to this many requests of a connection under way.
    Pipelined {
        depth: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// Nothing: all clients look alike.
    None,
    /// `X-Client-ID: client-NNNNNN`
    Header,
    /// A source address of 127.0.0.0/8 for each client.
    Address,
}

/// What becomes of a batch that was refused with 429 or 5xx, or not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    Never,
    /// The same bytes again, over a new connection, after Retry-After or a backoff.
    Same {
        attempts: u32,
    },
    /// Joined with the client's next batch, as Telegraf does.
    Joined {
        attempts: u32,
    },
}
