//! `metricstream run`: the order of a start and of a stop.
//!
//! Start: judge the machine, take the data directory and the ports, recover the tails of the logs, then serve; windows
//! are rebuilt from the logs beside live traffic. Stop (SIGTERM, SIGINT): accept no more, answer what was received,
//! flush, fold, let the reducer log what is closed, give the sinks their time, exit 0. A second signal ends the process at once, which loses
//! nothing that was acknowledged from disk.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use metricstream_shards::counters::{Counters, Distributions};
use metricstream_shards::http::{Route, Router};
use metricstream_shards::log::{
    AGGREGATE_LOG_ID, BlockingLog, DurableMark, LogStart, LogWriter, Mark, NotGivenBack, PAGE_BYTES, Recovered,
    WriteMode, WriterConfig, recover,
};
use metricstream_shards::mailbox::{Doorbell, Mailbox};
use metricstream_shards::ring::{probe, uring};
use metricstream_shards::shard::settings::{Listener, Ports, Settings, Shared, Wake};
use metricstream_shards::shard::{FLUSHES_LEFT_OUT, Shard};
use metricstream_shards::window::ShardMessage;
use metricstream_shards::window::protocol::{ClockEvent, FoldClock};

use crate::backplane::{executor, segments};
use crate::config::{Config, Durability, FlushMode, ResolvedClient, Steering, WhenFull};
use crate::data_dir::{self, DataDir, DataDirError};
use crate::forward::cursor::CursorError;
use crate::forward::share::LogShare;
use crate::forward::{self, Forward, reader};
use crate::logging::LogLines;
use crate::reducer::core::Closed;
use crate::reducer::thread::{Reducer, Retention, Segment, SharedView, Store, View, wall_ns};
use crate::reducer::{Books, ReducerCore, Source, segment_log};
use crate::sockets;
use crate::{admin, flush_probe, placement, rebuild, translate};

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
const MAILBOX_MESSAGES: usize = 1024;
const NOTICES: usize = 256;
/// The aggregate log is written by one thread, in larger blocks.
const AGGREGATE_SEGMENT_BYTES_MAX: u64 = 64 << 20;
const STOP_PATIENCE: Duration = Duration::from_secs(30);

pub fn run(config: &Config, clients: &[ResolvedClient], lines: &LogLines) -> Result<(), RunError> {
    let origin = Instant::now();
    // Signals first: one that comes during the start must not be lost, nor kill.
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])
        .map_err(|error| RunError::Io { what: "signals cannot be handled", error })?;

    if FLUSHES_LEFT_OUT {
        tracing::error!("built with the planted fault `fault-without-flush`: what is acknowledged is NOT on disk");
    }
    let cores = placement::cores();
    let place = placement::place(&cores, config.node.shards as usize, config.node.pin);
    let shard_count = place.shards.len();
    probe::probe(probe::memlock_need_bytes(shard_count, uring::SQ_ENTRIES, uring::CQ_ENTRIES, uring::BUFFER_ENTRIES))?;
    let connections_max = raise_descriptor_limit(config.http.connections_max);

    let data = DataDir::open(&config.node.data_dir)?;
    let data_node_id = data.node_id();
    let groups = listen(config, shard_count)?;
    let admin_address = config.admin.listen;
    let addresses: Vec<String> = groups
        .iter()
        .map(|(_, sockets)| sockets::local_address(&sockets[0]).map(|address| address.to_string()).unwrap_or_default())
        .collect();
    let admin_socket = match sockets::listen_alone(admin_address) {
        Ok(socket) => socket,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            return Err(RunError::PortInUse { address: admin_address, option: "--admin" });
        }
        Err(error) => return Err(RunError::Listen { address: admin_address, error }),
    };

    for sentence in open_doors(config) {
        tracing::warn!("{sentence}");
    }

    // Recovery: the tails of all logs, also of shards that no longer exist, side by side; clients wait for this.
    let mut numbers = data.shards().map_err(|error| RunError::Io { what: "the logs cannot be listed", error })?;
    numbers.extend((0..shard_count as u32).filter(|n| !numbers.contains(n)).collect::<Vec<_>>());
    numbers.sort_unstable();
    let aggregate_dir = data.aggregate_log();
    let (mode, mut recovered, mut aggregate, place_in_time) = std::thread::scope(|scope| {
        let mode = scope.spawn(|| flush_mode(config));
        let logs: Vec<_> = numbers
            .iter()
            .map(|&number| {
                let dir = data.shard_log(number);
                scope.spawn(move || {
                    segments::remove_half_filled(&dir);
                    recover_log(&dir, number, data_node_id).map(|log| (number, log))
                })
            })
            .collect();
        segments::remove_half_filled(&aggregate_dir);
        let aggregate = recover_log(&aggregate_dir, AGGREGATE_LOG_ID, data_node_id)?;
        let place_in_time = segment_log::recover_place(&aggregate.start.history);
        let joined = logs.into_iter().map(|log| log.join().expect("recovery does not panic"));
        let recovered = joined.collect::<Result<Vec<_>, RunError>>()?;
        Ok::<_, RunError>((mode.join().expect("the probe does not panic"), recovered, aggregate, place_in_time))
    })?;
    warn_of_kept_space(recovered.iter().map(|(_, log)| log).chain([&aggregate]), config);
    let starts = recovered.iter_mut().map(|(_, log)| &mut log.start).chain([&mut aggregate.start]);
    one_epoch(starts);
    let last_stamp_ns =
        recovered.iter().map(|(_, log)| log).chain([&aggregate]).filter_map(|log| log.last_stamp_ns).max();
    let spans = translate::spans(config);
    let (clock, event) =
        FoldClock::start(origin.elapsed().as_nanos() as i64, wall_ns(), last_stamp_ns, place_in_time.era, spans);

    let seeds = random_seeds();
    let shared = Arc::new(Shared::new(seeds, config.limiter.clients_max as usize, clock.published()));
    let settings = Arc::new(Settings {
        connections_max,
        ..translate::settings(
            config,
            clients,
            shard_count,
            translate::Process { version: VERSION, seeds, started: rfc3339(wall_ns()) },
        )
    });

    // The floor: from the log, else what the horizon reaches back from now.
    let now_ns = clock.now(origin.elapsed().as_nanos() as i64);
    let from_now_ns = now_ns - spans.lateness_ns - spans.horizon_ns;
    let from_now_ns = from_now_ns - from_now_ns.rem_euclid(3_600_000_000_000.min(longest_window_ns(config)));
    let floor_ns = match place_in_time.floor_ns {
        i64::MIN => from_now_ns,
        // The floor of an era whose clock was ahead would call everything late until that time has come.
        logged if matches!(event, ClockEvent::EraStarted { .. }) => logged.min(from_now_ns),
        logged => logged,
    };
    shared.floor_ns.store(floor_ns, Ordering::Relaxed);
    shared.durable_floor_ns.store(floor_ns, Ordering::Relaxed);
    let refold_from_ns = floor_ns.saturating_sub(settings.fold.future_bound_ns);

    // What the sinks hold, before anything could be let go.
    let of_log = |number: u32, dir: &std::path::Path, segment_bytes: u64, mark: Mark| {
        let sinks = forward::readers_of(config, number == AGGREGATE_LOG_ID);
        let is_orphan = number != AGGREGATE_LOG_ID && number >= shard_count as u32;
        Arc::new(LogShare::new(number, dir, segment_bytes, Arc::new(DurableMark::new(mark)), is_orphan, &sinks))
    };
    let segment_bytes = config.log.segment_bytes.bytes();
    let mut shares: Vec<Arc<LogShare>> = recovered
        .iter()
        .map(|(number, log)| of_log(*number, &data.shard_log(*number), segment_bytes, log.start.mark()))
        .collect();
    shares.push(of_log(AGGREGATE_LOG_ID, &aggregate_dir, aggregate_segment_bytes(config), aggregate.start.mark()));
    let forwarding = Forward::new(config, &config.node.data_dir, data_node_id, &shares)?;
    let forward_books = forwarding.books.clone();
    let share_of = |number: u32| shares.iter().find(|share| share.log_id == number).expect("made above").clone();

    // Who talks to whom.
    let bell = Doorbell::new();
    let stop_rebuild = Arc::new(AtomicBool::new(false));
    let stop_reducer = Arc::new(AtomicBool::new(false));
    let mut sources = Vec::new();
    let mut rebuilds = Vec::new();
    for (number, log) in &recovered {
        let spans: Vec<_> = log
            .start
            .history
            .iter()
            .filter(|span| {
                let info = log.segments.iter().find(|info| info.segment_id == span.segment_id);
                info.and_then(|info| info.last_stamp_ns).is_none_or(|last| last >= refold_from_ns)
            })
            .cloned()
            .collect();
        if spans.is_empty() {
            continue;
        }
        let mailbox = Mailbox::new(MAILBOX_MESSAGES, bell.clone());
        sources.push((Source::Rebuild(rebuilds.len() as u16), mailbox.clone()));
        rebuilds.push(rebuild::Log { log_id: *number, spans, mailbox });
    }
    let epoch = aggregate.start.epoch;
    let history = aggregate.start.history.clone();
    let rebuild_count = rebuilds.len();

    let mut shards = Vec::new();
    let mut keepers = Vec::new();
    let mut counters = Vec::new();
    let mut wakes = Vec::new();
    let mut depths: Vec<Arc<Mailbox<ShardMessage>>> = Vec::new();
    let mut gauges = Vec::new();
    let mut sockets_of: Vec<Vec<Listener>> = (0..shard_count).map(|_| Vec::new()).collect();
    for (block, sockets) in groups {
        let configured = &config.listen[block];
        for (shard, socket) in sockets.into_iter().enumerate() {
            sockets_of[shard].push(Listener {
                socket,
                router: Router::new(&configured.path_prefix),
                memory: configured.durability == Durability::Memory,
                trust_client_id: configured.trust_client_id_header,
            });
        }
    }
    let mut sockets_of = sockets_of.into_iter();
    for (number, log) in recovered {
        let log_gauges = Arc::new(segments::Gauges::default());
        gauges.push((number, log_gauges.clone()));
        log_gauges.damaged_points.store(log.damage.iter().map(|damage| damage.points).sum(), Ordering::Relaxed);
        let mut keeper = segments::Kept {
            dir: data.shard_log(number),
            segment_bytes: config.log.segment_bytes.bytes(),
            bytes_max: config.log.bytes_max.bytes(),
            retention: config.log.retention,
            drop_oldest: config.log.when_full == WhenFull::DropOldest,
            next_segment_id: log.start.next_segment_id,
            segments: log
                .segments
                .iter()
                .map(|info| segments::Segment {
                    id: info.segment_id,
                    path: info.path.clone(),
                    bytes: segments::counted_bytes(info.disk_bytes, config.log.segment_bytes.bytes()),
                    last_stamp_ns: info.last_stamp_ns.unwrap_or(i64::MAX),
                    // What its points reach is known only by folding them; no further than this.
                    newest_ns: info
                        .last_stamp_ns
                        .map_or(i64::MAX, |last| last.saturating_add(settings.fold.future_bound_ns)),
                })
                .collect(),
            unused: log.unused.clone(),
            shard: None,
            gauges: log_gauges,
            share: share_of(number),
        };
        if number < shard_count as u32 {
            let listeners = sockets_of.next().expect("one set of sockets a shard");
            let wake = Arc::new(Wake::new().map_err(|error| RunError::Io { what: "no eventfd", error })?);
            let prepared = Arc::new(ArrayQueue::new(config.log.spare_segments as usize));
            let notices = Arc::new(ArrayQueue::new(NOTICES));
            let no_more = Arc::new(AtomicBool::new(false));
            let mailbox = Mailbox::new(MAILBOX_MESSAGES, bell.clone());
            let shard_counters = Arc::new(Counters::new(Route::ALL.len() + 1));
            counters.push(shard_counters.clone());
            wakes.push(wake.clone());
            depths.push(mailbox.clone());
            sources.push((Source::Shard(number as u16), mailbox.clone()));
            keeper.shard = Some(segments::Ports {
                prepared: prepared.clone(),
                notices: notices.clone(),
                no_more: no_more.clone(),
                wake: wake.clone(),
            });
            let writer = LogWriter::new(
                WriterConfig {
                    segment_bytes: config.log.segment_bytes.bytes(),
                    block_bytes: ((config.log.segment_bytes.bytes() / 16) as usize).clamp(PAGE_BYTES, 1 << 20),
                    undurable_bytes_max: config.log.unflushed_bytes_max.bytes() as usize,
                    mode,
                    ..WriterConfig::new(number, data.node_id(), random_seeds()[0])
                },
                log.start,
            )
            .publish_to(share_of(number).mark.clone());
            let ports = Ports {
                segments: prepared,
                notices,
                no_more_segments: no_more,
                reducer: mailbox,
                wake,
                counters: shard_counters,
            };
            shards.push((number, writer, ports, listeners));
        }
        keepers.push(keeper);
    }

    // The reducer.
    let view: SharedView = Arc::new(Mutex::new(View {
        books: Books::default(),
        closed: Closed { era: place_in_time.era, m_ns: place_in_time.m_ns, floor_ns },
        series: 0,
        windows: 0,
        bytes: 0,
        rebuilding: rebuild_count > 0,
        log_end_block: 0,
        log_segments: 0,
        log_bytes: 0,
        log_unavailable: false,
        spans: aggregate
            .start
            .history
            .iter()
            .map(|span| {
                let info = aggregate.segments.iter().find(|info| info.segment_id == span.segment_id);
                (span.clone(), info.and_then(|info| info.last_stamp_ns).unwrap_or(i64::MAX))
            })
            .collect(),
        newest: "".into(),
    }));
    let aggregate_segment_bytes = aggregate_segment_bytes(config);
    let store = Store {
        retention: Retention {
            bytes_max: config.log.aggregate_bytes_max.bytes(),
            age_max: config.log.aggregate_retention,
        },
        unused: aggregate.unused.clone(),
        old: aggregate
            .segments
            .iter()
            .map(|info| Segment {
                id: info.segment_id,
                path: info.path.clone(),
                last_stamp_ns: info.last_stamp_ns.unwrap_or(i64::MAX),
                bytes: segments::counted_bytes(info.disk_bytes, aggregate_segment_bytes),
            })
            .collect(),
        log: BlockingLog::new(
            &aggregate_dir,
            LogWriter::new(
                WriterConfig {
                    segment_bytes: aggregate_segment_bytes,
                    block_bytes: ((aggregate_segment_bytes / 16) as usize).clamp(PAGE_BYTES, 1 << 20),
                    durable_bytes_max: 0,
                    mode: WriteMode::WriteThenFlush,
                    ..WriterConfig::new(AGGREGATE_LOG_ID, data.node_id(), random_seeds()[0])
                },
                aggregate.start,
            )
            .publish_to(share_of(AGGREGATE_LOG_ID).mark.clone()),
        ),
        share: share_of(AGGREGATE_LOG_ID),
        drop_oldest: config.log.when_full == WhenFull::DropOldest,
    };
    let reducer = {
        let settings = translate::reducer(config, shard_count, rebuild_count, epoch);
        let (shared, view, stop) = (shared.clone(), view.clone(), stop_reducer.clone());
        spawn("ms-reducer", move || {
            // Read here, not before: the results of the last minutes can be many, and no client waits for them.
            let (mut recovered, unreadable) = segment_log::recover(&history);
            if unreadable != segment_log::Unreadable::default() {
                tracing::error!(
                    ?unreadable,
                    "parts of the aggregate log cannot be read; their windows are made again from the logs"
                );
            }
            recovered.floor_ns = floor_ns;
            let core = ReducerCore::new(settings, recovered, origin.elapsed().as_nanos() as i64);
            Reducer { core, clock, origin, sources, bell, shared, view, stop, started: event, rendered: None }
                .run(store);
        })?
    };

    // The rebuild, beside everything else.
    let fold = translate::fold(config, 1);
    let stop = stop_rebuild.clone();
    let gauges_of: std::collections::HashMap<u32, _> = gauges.iter().cloned().collect();
    let rebuilding = spawn("ms-rebuild", move || {
        for log in rebuilds {
            let (begun, number) = (Instant::now(), log.log_id);
            let rebuilt = rebuild::rebuild(log, fold, floor_ns, refold_from_ns, &stop);
            // The tail, which recovery has read, is a part of what is rebuilt.
            gauges_of[&number].damaged_points.fetch_max(rebuilt.damaged_points, Ordering::Relaxed);
            tracing::info!(
                shard = number,
                blocks = rebuilt.blocks,
                points = rebuilt.points,
                damaged_points = rebuilt.damaged_points,
                ms = begun.elapsed().as_millis() as u64,
                "windows rebuilt from the log"
            );
        }
    })?;

    // The shards.
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    for (number, writer, ports, listeners) in shards {
        let (settings, shared): (Arc<Settings>, Arc<Shared>) = (settings.clone(), shared.clone());
        let core = place.shards[number as usize];
        threads.push(spawn(&format!("ms-shard-{number}"), move || {
            if let Some(core) = core
                && !placement::pin_this_thread(core)
            {
                tracing::warn!(shard = number, core, "this shard cannot be bound to its core; it runs where it may");
            }
            let ring = uring::Ring::new(origin).expect("the probe made a ring like this one");
            if let Some(core) = core {
                let _ = ring.pin_workers(core);
            }
            Shard::new(ring, settings, shared, ports, listeners, writer, floor_ns).expect("memory for a shard").run();
        })?);
    }

    // The backplane: segments and the admin listener.
    let stop_backplane = Arc::new(AtomicBool::new(false));
    let backplane = {
        let (shared, stop_all) = (shared.clone(), stop_backplane.clone());
        let core = place.backplane;
        let node_id = data.node_id();
        let view = view.clone();
        let forward = forward_books.clone();
        let probe_dir = config.node.data_dir.clone();
        spawn("ms-backplane", move || {
            let state = admin::State {
                version: VERSION,
                node_id,
                origin,
                shared: shared.clone(),
                distributions: RefCell::new(counters.iter().map(|_| Distributions::new()).collect()),
                zones: RefCell::default(),
                counters,
                logs: gauges,
                mailboxes: depths
                    .into_iter()
                    .map(|mailbox| Box::new(move || (mailbox.depth(), mailbox.capacity())) as Box<dyn Fn() -> _>)
                    .collect(),
                view,
                forward: forward.clone(),
                listeners: addresses,
                flush_mode: flush_probe::mode_name(mode),
                kernel: kernel_release(),
            };
            let ended = executor::run(core, |backplane| async move {
                let stop = Rc::new(Cell::new(false));
                if let Err(error) = executor::learn_disk(&probe_dir).await {
                    tracing::warn!(%error, "the disk's abilities cannot be tried");
                }
                for keeper in keepers {
                    let task = segments::keep(keeper, shared.clone(), stop.clone());
                    backplane.spawn(executor::Queue::Disk, task);
                }
                if !forward.sinks.is_empty() {
                    backplane.spawn(executor::Queue::Disk, reader::run(forward.reader.clone(), stop.clone()));
                }
                let listener = executor::Listener::from_socket(admin_socket);
                backplane
                    .spawn(executor::Queue::Admin, admin::serve(backplane, listener, Rc::new(state), stop.clone()));
                while !stop_all.load(Ordering::Acquire) {
                    executor::sleep(Duration::from_millis(20)).await;
                }
                stop.set(true);
            });
            if let Err(error) = ended {
                tracing::error!(%error, "the backplane ended");
            }
        })?
    };
    let sinks = forwarding
        .start(place.backplane)
        .map_err(|error| RunError::Io { what: "a sink's thread cannot be started", error })?;
    tracing::info!(
        version = VERSION,
        shards = shard_count,
        admin = %admin_address,
        data_dir = %config.node.data_dir.display(),
        ms = origin.elapsed().as_millis() as u64,
        "serving"
    );

    // Serve until told to stop.
    let mut stopping_since: Option<Instant> = None;
    loop {
        for signal in signals.pending() {
            if stopping_since.is_some() {
                tracing::warn!(signal, "a second signal: ending at once");
                std::process::exit(1);
            }
            tracing::info!(signal, "stopping: no new connections, answering and flushing what was received");
            stopping_since = Some(Instant::now());
            shared.draining.store(true, Ordering::Release);
            stop_rebuild.store(true, Ordering::Release);
            for wake in &wakes {
                wake.ring();
            }
        }
        lines.report_suppressed();
        if stopping_since.is_none()
            && (threads.iter().any(JoinHandle::is_finished)
                || reducer.is_finished()
                || backplane.is_finished()
                || sinks.has_ended())
        {
            // Serving on without a shard, without windows or without segments would look well and be none of it.
            tracing::error!("a thread of this process has ended; ending the process, so that it is started again");
            std::process::exit(1);
        }
        if stopping_since.is_some() && threads.iter().all(JoinHandle::is_finished) {
            break;
        }
        if stopping_since.is_some_and(|since| since.elapsed() > config.node.drain_within + STOP_PATIENCE) {
            tracing::error!("the shards do not end in time; what they had acknowledged from disk is safe");
            std::process::exit(1);
        }
        std::thread::sleep(Duration::from_millis(if stopping_since.is_some() { 5 } else { 50 }));
    }
    for thread in threads {
        let _ = thread.join();
    }
    let _ = rebuilding.join();
    stop_reducer.store(true, Ordering::Release);
    let _ = reducer.join();
    // The logs have got their last block: the sinks have their time to take what is left.
    sinks.stop();
    stop_backplane.store(true, Ordering::Release);
    let _ = backplane.join();
    tracing::info!(
        ms = stopping_since.map_or(0, |since| since.elapsed().as_millis() as u64),
        "stopped; everything acknowledged is on disk"
    );
    lines.report_suppressed();
    Ok(())
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, RunError> {
    std::thread::Builder::new()
        .name(name.to_string())
        .spawn(body)
        .map_err(|error| RunError::Io { what: "a thread cannot be started", error })
}

type Group = (usize, Vec<std::os::fd::OwnedFd>);

/// All configured addresses: which `[[listen]]` block each belongs to, and a socket a shard.
fn listen(config: &Config, shards: usize) -> Result<Vec<Group>, RunError> {
    let steering = match config.limiter.steering {
        Steering::Hash => sockets::Steering::Hash,
        Steering::Address => sockets::Steering::Address,
    };
    let mut groups = Vec::new();
    for (block, listen) in config.listen.iter().enumerate() {
        for &address in &listen.addresses {
            match sockets::listen(address, shards, steering) {
                Ok(sockets) => groups.push((block, sockets)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    return Err(RunError::PortInUse { address, option: "--listen" });
                }
                Err(error) => return Err(RunError::Listen { address, error }),
            }
        }
    }
    Ok(groups)
}

fn aggregate_segment_bytes(config: &Config) -> u64 {
    (config.log.aggregate_bytes_max.bytes() / 4).min(AGGREGATE_SEGMENT_BYTES_MAX) / (64 << 10) * (64 << 10)
}

/// How commits reach stable storage: as configured, or what is faster here.
fn flush_mode(config: &Config) -> WriteMode {
    match config.log.flush {
        FlushMode::Fdatasync => WriteMode::WriteThenFlush,
        FlushMode::Dsync => WriteMode::Dsync,
        FlushMode::Auto => match flush_probe::probe(&config.node.data_dir) {
            Ok(probed) => {
                tracing::info!(
                    fdatasync_us = probed.fdatasync.as_micros() as u64,
                    dsync_us = probed.dsync.as_micros() as u64,
                    taken = flush_probe::mode_name(probed.mode),
                    "tried how this disk flushes"
                );
                probed.mode
            }
            Err(error) => {
                tracing::info!(%error, "this disk's flushes cannot be timed; taking fdatasync");
                WriteMode::WriteThenFlush
            }
        },
    }
}

fn recover_log(path: &std::path::Path, log_id: u32, node_id: u128) -> Result<Recovered, RunError> {
    let recovered =
        recover(path, log_id, node_id).map_err(|error| RunError::Recover { path: path.to_path_buf(), error })?;
    for note in &recovered.notes {
        tracing::warn!(log = %path.display(), "{note}");
    }
    for damage in &recovered.damage {
        tracing::error!(
            log = %path.display(),
            segment_id = damage.segment_id,
            from = damage.from,
            to = damage.to,
            points = damage.points,
            "acknowledged data is damaged; everything around it is kept. See `metricstream log verify`"
        );
    }
    if recovered.torn {
        tracing::info!(log = %path.display(), "the last write of the previous run was cut off before its flush; dropped");
    }
    Ok(recovered)
}

/// One line a start: where the file system makes no holes, each segment of earlier runs has something to tell.
fn warn_of_kept_space<'a>(logs: impl Iterator<Item = &'a Recovered>, config: &Config) {
    let mut kept = NotGivenBack::default();
    logs.for_each(|log| kept.add(log.not_given_back.clone()));
    if kept.segments > 0 {
        tracing::warn!(
            segments = kept.segments,
            bytes = kept.bytes,
            data_dir = %config.node.data_dir.display(),
            error = kept.why,
            "the unused ends of old segments cannot be given back, so each start takes a whole segment of the log's bound: \
             keep the data directory on a file system that can make holes (ext4, XFS, Btrfs), or make log.segment_bytes \
             smaller"
        );
    }
}

/// What a newcomer may not mean: doors open to other hosts that ask nobody who they are.
fn open_doors(config: &Config) -> Vec<String> {
    let mut sentences = Vec::new();
    if !config.auth.required {
        for address in config.listen.iter().flat_map(|listen| &listen.addresses).filter(|a| !a.ip().is_loopback()) {
            sentences.push(format!(
                "{address} can be reached from other hosts and anybody may write: set required = true in [auth] and \
                 give each sender a token in a [[client]] block, unless the network keeps strangers out"
            ));
        }
    }
    if !config.admin.listen.ip().is_loopback() {
        sentences.push(format!(
            "the admin listener {} can be reached from other hosts and asks for no password: everybody there may read \
             all windows and counters",
            config.admin.listen
        ));
    }
    sentences
}

fn longest_window_ns(config: &Config) -> i64 {
    config.windows.windows.iter().map(|window| window.as_nanos() as i64).max().unwrap_or(60_000_000_000)
}

/// The soft limit of descriptors, raised as far as allowed. Answers how many of `connections_max` it allows: some are
/// kept for the logs and the admin listener, which connections must never take.
fn raise_descriptor_limit(connections_max: u32) -> usize {
    let (connections_max, own) = (u64::from(connections_max), 256);
    let wanted = connections_max + own;
    let limit = match sockets::raise_descriptor_limit(wanted) {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "the limit of descriptors cannot be read");
            wanted
        }
    };
    let connections = connections_max.min(limit.saturating_sub(own).max(limit / 2));
    if connections < connections_max {
        tracing::warn!(
            limit,
            wanted,
            connections,
            "fewer descriptors than http.connections_max needs, so fewer connections: raise LimitNOFILE= (or \
             `ulimit -n`), or lower the setting"
        );
    }
    connections as usize
}

fn random_seeds() -> [u64; 4] {
    let bytes: [u8; 32] = data_dir::random();
    std::array::from_fn(|n| u64::from_le_bytes(std::array::from_fn(|i| bytes[n * 8 + i])))
}

fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map(|text| text.trim().to_string()).unwrap_or_default()
}

/// The same epoch for all logs, that no start of this directory has had: ids rest on it ([`forward::id`]). The log of a
/// shard that was gone is empty and would begin with epoch 1 again, as it begins with point 0 again.
fn one_epoch<'a>(starts: impl Iterator<Item = &'a mut LogStart>) {
    let starts: Vec<_> = starts.collect();
    let epoch = starts.iter().map(|start| start.epoch).max().unwrap_or(1);
    for start in starts {
        start.epoch = epoch;
    }
}

/// Civil time of a Unix time, in UTC (days-to-date after Howard Hinnant's `civil_from_days`).
pub(crate) fn rfc3339(ns: i64) -> String {
    let s = ns.div_euclid(1_000_000_000);
    let (days, second) = (s.div_euclid(86_400), s.rem_euclid(86_400));
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let mp = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shard that went and came back had epoch 1 and number 0 again, and its new points the ids of its old ones.
    #[test]
    fn a_log_that_begins_anew_has_an_epoch_that_no_start_had() {
        let mut starts = [LogStart::empty(), LogStart::empty(), LogStart::empty()];
        (starts[0].epoch, starts[2].epoch) = (9, 7);
        one_epoch(starts.iter_mut());
        assert_eq!(starts.map(|start| start.epoch), [9, 9, 9]);
    }

    #[test]
    fn open_doors_are_told_and_closed_ones_are_not() {
        let config = |text: &str| Config::parse(text, "test.toml").expect("valid");
        assert_eq!(open_doors(&config("")), Vec::<String>::new());
        let open = "[[listen]]\naddresses = [\"127.0.0.1:1\", \"[::]:2\"]\n[admin]\nlisten = \"0.0.0.0:3\"\n";
        let told = open_doors(&config(open));
        assert!(told.len() == 2 && told[0].starts_with("[::]:2 ") && told[1].contains("0.0.0.0:3 "), "{told:?}");
        let locked = format!("{open}[auth]\nrequired = true\n[[client]]\nname = \"a\"\ntoken = \"0123456789abcdef\"\n");
        assert_eq!(open_doors(&config(&locked)).len(), 1, "the admin listener stays open");
    }

    #[test]
    fn a_unix_time_becomes_a_date() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_700_000_000_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339(951_782_400_000_000_000), "2000-02-29T00:00:00Z");
    }
}
