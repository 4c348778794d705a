//! `metricstream run`: the order of a start and of a stop.
//!
//! Start: judge the machine, take the data directory and the ports ([`doors`]), recover the tails of the logs ([`recovery`]),
//! find where time stands ([`fold_time`]), lay the queues ([`wiring`]), start the threads ([`threads`]), then serve
//! ([`running`]); windows are rebuilt from the logs beside live traffic. Stop (SIGTERM, SIGINT): accept no more, answer what
//! was received, flush, fold, let the reducer log what is closed, give the sinks their time, exit 0. A second signal ends the
//! process at once, which loses nothing that was acknowledged from disk.

mod aggregate_log;
mod doors;
mod fold_time;
mod recovery;
mod running;
mod threads;
mod wiring;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use metricstream_shards::counters::Distributions;
use metricstream_shards::log::{AGGREGATE_LOG_ID, WriteMode};
use metricstream_shards::ring::{probe, uring};
use metricstream_shards::shard::FLUSHES_LEFT_OUT;
use metricstream_shards::shard::settings::{Settings, Shared};

use self::doors::Doors;
use self::fold_time::FoldTime;
use self::recovery::{Logs, share_of};
use self::running::{Running, Stops};
use self::wiring::Wiring;
use crate::config::{Config, ResolvedClient};
use crate::data_dir::{self, DataDir, DataDirError};
use crate::forward::Forward;
use crate::forward::cursor::CursorError;
use crate::logging::LogLines;
use crate::placement::Placement;
use crate::reducer::thread::{Reducer, wall_ns};
use crate::when::rfc3339;
use crate::{admin, flush_probe, placement, translate};

/// Why `run` did not begin, or ended badly. Each is one sentence; `args::Exit` has the codes.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Unfit(#[from] probe::Unfit),
    #[error("{0}")]
    DataDir(#[from] DataDirError),
    #[error("{0}; it is not touched: start the newer version, or mend the disk")]
    Cursor(#[from] CursorError),
    #[error("{address} is in use by another process: stop it, or choose another address with {option}")]
    PortInUse { address: SocketAddr, option: &'static str },
    #[error("cannot listen on {address}: {error}")]
    Listen { address: SocketAddr, error: io::Error },
    #[error("the log in {path} cannot be read: {error}")]
    Recover { path: PathBuf, error: io::Error },
    #[error("{what}: {error}")]
    Io { what: &'static str, error: io::Error },
}

pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What all parts of a start ask for.
struct Stage<'a> {
    config: &'a Config,
    data: &'a DataDir,
    /// When the process began
    origin: Instant,
    place: Placement,
    mode: WriteMode,
    settings: Arc<Settings>,
    shared: Arc<Shared>,
}

pub fn run(config: &Config, clients: &[ResolvedClient], lines: &LogLines) -> Result<(), RunError> {
    let origin = Instant::now();
    // Signals first: one that comes during the start must not be lost, nor kill.
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])
        .map_err(|error| RunError::Io { what: "signals cannot be handled", error })?;
    if FLUSHES_LEFT_OUT {
        tracing::error!("built with the planted fault `fault-without-flush`: what is acknowledged is NOT on disk");
    }
    let place = placement::place(&placement::cores(), config.node.shards as usize, config.node.pin);
    let shard_count = place.shards.len();
    probe::probe(probe::memlock_need_bytes(shard_count, uring::SQ_ENTRIES, uring::CQ_ENTRIES, uring::BUFFER_ENTRIES))?;
    let connections_max = doors::raise_descriptor_limit(config.http.connections_max);
    let data = DataDir::open(&config.node.data_dir)?;
    let Doors { listeners, addresses, admin: admin_socket } = Doors::open(config, shard_count)?;
    for sentence in doors::open_doors(config) {
        tracing::warn!("{sentence}");
    }

    let logs = Logs::recover(config, &data, shard_count)?;
    let FoldTime { clock, event, floor_ns, refold_from_ns } = FoldTime::begin(config, origin, &logs);
    let seeds = random_seeds();
    let shared = Arc::new(Shared::new(seeds, config.limiter.clients_max as usize, clock.published()));
    shared.floor_ns.store(floor_ns, Ordering::Relaxed);
    shared.durable_floor_ns.store(floor_ns, Ordering::Relaxed);
    let process = translate::Process { version: VERSION, seeds, started: rfc3339(wall_ns()) };
    let settings = Settings { connections_max, ..translate::settings(config, clients, shard_count, process) };
    let stage = Stage {
        config,
        data: &data,
        origin,
        place,
        mode: logs.mode,
        settings: Arc::new(settings),
        shared: shared.clone(),
    };

    // What the sinks hold, before anything could be let go.
    let shares = logs.shares(config, &data, shard_count);
    let forwarding = Forward::new(config, &config.node.data_dir, data.node_id(), &shares)?;
    let forward_books = forwarding.books.clone();

    let Logs { shards: shard_logs, aggregate, closed, mode } = logs;
    let wiring = Wiring::lay(&stage, shard_logs, &shares, listeners, refold_from_ns)?;
    let Wiring { bell, sources, rebuilds, shards, keepers, gauges } = wiring;
    let stops = Stops::default();

    let view = aggregate_log::first_view(&aggregate, &closed, floor_ns, !rebuilds.is_empty());
    let reducer = {
        let settings = translate::reducer(config, shard_count, rebuilds.len(), aggregate.start.epoch);
        let history = aggregate.start.history.clone();
        let store = aggregate_log::store(config, &data, aggregate, share_of(&shares, AGGREGATE_LOG_ID));
        let (shared, view, stop) = (shared.clone(), view.clone(), stops.reducer.clone());
        let make = move |core| Reducer {
            core,
            clock,
            origin,
            sources,
            bell,
            shared,
            view,
            stop,
            started: event,
            rendered: None,
        };
        threads::spawn_reducer(&stage, settings, history, floor_ns, make, store)?
    };
    let rebuilding =
        threads::spawn_rebuild(&stage, rebuilds, &gauges, floor_ns, refold_from_ns, stops.rebuild.clone())?;

    let wakes = shards.iter().map(|shard| shard.ports.wake.clone()).collect();
    let counters: Vec<_> = shards.iter().map(|shard| shard.ports.counters.clone()).collect();
    let mailboxes: Vec<_> = shards.iter().map(|shard| shard.ports.reducer.clone()).collect();
    let shards: Vec<_> =
        shards.into_iter().map(|ends| threads::spawn_shard(&stage, ends, floor_ns)).collect::<Result<_, _>>()?;

    let backplane = {
        let (shared, forward, node_id) = (shared.clone(), forward_books.clone(), data.node_id());
        let state = move || admin::State {
            version: VERSION,
            node_id,
            origin,
            shared,
            distributions: RefCell::new(counters.iter().map(|_| Distributions::new()).collect()),
            zones: RefCell::default(),
            counters,
            logs: gauges,
            mailboxes: mailboxes
                .into_iter()
                .map(|mailbox| Box::new(move || (mailbox.depth(), mailbox.capacity())) as Box<dyn Fn() -> _>)
                .collect(),
            view,
            forward,
            listeners: addresses,
            flush_mode: flush_probe::mode_name(mode),
            kernel: kernel_release(),
        };
        threads::spawn_backplane(&stage, keepers, forward_books, admin_socket, state, stops.backplane.clone())?
    };
    let sinks = forwarding
        .start(stage.place.backplane)
        .map_err(|error| RunError::Io { what: "a sink's thread cannot be started", error })?;
    tracing::info!(
        version = VERSION,
        shards = shard_count,
        admin = %config.admin.listen,
        data_dir = %config.node.data_dir.display(),
        ms = origin.elapsed().as_millis() as u64,
        "serving"
    );
    let running = Running { shared, wakes, stops, shards, rebuilding, reducer, backplane, sinks };
    running.serve(&mut signals, config.node.drain_within, lines);
    Ok(())
}

fn random_seeds() -> [u64; 4] {
    let bytes: [u8; 32] = data_dir::random();
    std::array::from_fn(|n| u64::from_le_bytes(std::array::from_fn(|i| bytes[n * 8 + i])))
}

fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map(|text| text.trim().to_string()).unwrap_or_default()
}
