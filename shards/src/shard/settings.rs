//! What a shard is told when it starts: proved by the configuration, not judged again here.

use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;

use crate::counters::Counters;
use crate::decode::TimestampUnit;
use crate::http::reply::OverQuota;
use crate::http::{Bounds, Router};
use crate::limiter::{self, ClientLimits};
use crate::log::PreparedSegment;
use crate::mailbox::Mailbox;
use crate::series::SeriesBounds;
use crate::window::{FoldConfig, ShardMessage};

/// One configured listener, this shard's socket of it.
pub struct Listener {
    pub socket: OwnedFd,
    pub router: Router,
    /// Acknowledge after the append, before the flush
    pub memory: bool,
    /// Take a client's own word for who it is (`X-Client-ID`)
    pub trust_client_id: bool,
}

/// A client the operator has named.
#[derive(Clone, Debug)]
pub struct NamedClient {
    pub name: String,
    pub token: Option<Box<[u8]>>,
    pub limits: ClientLimits,
    pub tags: Vec<(String, String)>,
    pub same_timestamp_all: Option<bool>,
}

/// The same for every shard.
#[derive(Clone, Debug)]
pub struct Settings {
    pub version: String,
    pub bounds: Bounds,
    pub decode: crate::decode::Bounds,
    pub json_unit: TimestampUnit,
    pub json_same_timestamp_all: bool,
    pub influx_same_timestamp_all: bool,
    pub over_quota: OverQuota,
    pub databases: Vec<String>,
    pub auth_required: bool,
    pub clients: Vec<NamedClient>,
    pub default_limits: ClientLimits,
    pub clients_max: usize,
    pub static_tags: Vec<(String, String)>,
    pub series: SeriesBounds,
    pub series_idle_after_s: u32,
    pub fold: FoldConfig,
    pub pipelined_bytes_max: usize,
    pub unread_reply_bytes_max: usize,
    pub connections_max: usize,
    pub connections_per_address_max: u32,
    pub io_deadline_ns: u64,
    pub memory_flush_within_ns: u64,
    pub unflushed_bytes_max: usize,
    pub drain_within_ns: u64,
    /// Random, the same for all shards of a process
    pub seeds: [u64; 4],
    /// RFC 3339, for `/ready`
    pub started: String,
}

/// What all threads of the process look at. Written rarely, read often.
pub struct Shared {
    /// The published fold clock: see `window::protocol::FoldClock::published`.
    pub clock: AtomicI64,
    /// F: windows that end at or before it are frozen
    pub floor_ns: AtomicI64,
    /// The same once it is durable: only what lies below it may be recycled
    pub durable_floor_ns: AtomicI64,
    /// F that a log at its byte bound asks for
    pub wanted_floor_ns: AtomicI64,
    pub draining: AtomicBool,
    pub connections: AtomicUsize,
    /// Connections by a hash of their address: colliding addresses share a count, which can only refuse early.
    addresses: Vec<AtomicU32>,
    address_seed: ahash::RandomState,
    pub limiter: Arc<limiter::Shared>,
}

const ADDRESS_SLOTS: usize = 1 << 16;

impl Shared {
    pub fn new(seeds: [u64; 4], clients_max: usize, clock: i64) -> Shared {
        Shared {
            clock: AtomicI64::new(clock),
            floor_ns: AtomicI64::new(i64::MIN),
            durable_floor_ns: AtomicI64::new(i64::MIN),
            wanted_floor_ns: AtomicI64::new(i64::MIN),
            draining: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            addresses: (0..ADDRESS_SLOTS).map(|_| AtomicU32::new(0)).collect(),
            address_seed: ahash::RandomState::with_seeds(seeds[3], seeds[2], seeds[1], seeds[0]),
            limiter: Arc::new(limiter::Shared::new(clients_max)),
        }
    }

    fn address(&self, address: std::net::IpAddr) -> &AtomicU32 {
        &self.addresses[self.address_seed.hash_one(address) as usize % ADDRESS_SLOTS]
    }

    /// Counts one more connection, unless that is one too many.
    pub fn connect(&self, address: std::net::IpAddr, settings: &Settings) -> bool {
        let all = self.connections.fetch_add(1, Ordering::Relaxed);
        let of_address = self.address(address).fetch_add(1, Ordering::Relaxed);
        if all >= settings.connections_max || of_address >= settings.connections_per_address_max {
            self.disconnect(address);
            return false;
        }
        true
    }

    pub fn disconnect(&self, address: std::net::IpAddr) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.address(address).fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a shard tells the backplane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogNotice {
    /// The shard writes in this segment now; all before it are closed. Receive stamp of the moment.
    Opened { segment_id: u64, stamp_ns: i64 },
    /// All of this segment is folded; no point in it that windows hold is newer than this.
    Folded { segment_id: u64, newest_ns: i64 },
}

/// How a shard is connected to the rest of the process.
pub struct Ports {
    /// Segments made ready by the backplane
    pub segments: Arc<ArrayQueue<PreparedSegment>>,
    pub notices: Arc<ArrayQueue<LogNotice>>,
    /// Set while the backplane cannot make another segment
    pub no_more_segments: Arc<AtomicBool>,
    pub reducer: Arc<Mailbox<ShardMessage>>,
    /// Rung by other threads
    pub wake: Arc<Wake>,
    pub counters: Arc<Counters>,
}

/// An eventfd that ends a shard's wait.
pub struct Wake(std::fs::File);

impl Wake {
    pub fn new() -> std::io::Result<Wake> {
        Ok(Wake(crate::ring::uring::eventfd()?.into()))
    }
    pub fn fd(&self) -> RawFd {
        use std::os::fd::AsRawFd;
        self.0.as_raw_fd()
    }
    pub fn ring(&self) {
        use std::io::Write;
        let _ = (&self.0).write_all(&1u64.to_ne_bytes());
    }
}
