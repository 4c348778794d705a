//! The threads of the process: what each is given, and how it begins.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metricstream_shards::log::ReadSpan;
use metricstream_shards::ring::uring;
use metricstream_shards::shard::Shard;

use super::wiring::ShardEnds;
use super::{RunError, Stage};
use crate::backplane::executor;
use crate::backplane::segments::{self, Gauges, Kept};
use crate::forward::books::ForwardBooks;
use crate::forward::reader;
use crate::reducer::thread::{Reducer, Store};
use crate::reducer::{self, ReducerCore, segment_log};
use crate::{admin, placement, rebuild, translate};

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, RunError> {
    std::thread::Builder::new()
        .name(name.to_string())
        .spawn(body)
        .map_err(|error| RunError::Io { what: "a thread cannot be started", error })
}

/// `make` gets the core that knows what the aggregate log says.
pub(super) fn spawn_reducer(
    stage: &Stage<'_>,
    settings: reducer::Settings,
    history: Vec<ReadSpan>,
    floor_ns: i64,
    make: impl FnOnce(ReducerCore) -> Reducer + Send + 'static,
    store: Store,
) -> Result<JoinHandle<()>, RunError> {
    let origin = stage.origin;
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
        make(ReducerCore::new(settings, recovered, origin.elapsed().as_nanos() as i64)).run(store);
    })
}

/// Folds what open windows need, log by log, beside everything else.
pub(super) fn spawn_rebuild(
    stage: &Stage<'_>,
    logs: Vec<rebuild::Log>,
    gauges: &[(u32, Arc<Gauges>)],
    floor_ns: i64,
    from_ns: i64,
    stop: Arc<AtomicBool>,
) -> Result<JoinHandle<()>, RunError> {
    let fold = translate::fold(stage.config, 1);
    let gauges_of: HashMap<u32, _> = gauges.iter().cloned().collect();
    spawn("ms-rebuild", move || {
        for log in logs {
            let (begun, number) = (Instant::now(), log.log_id);
            let rebuilt = rebuild::rebuild(log, fold, floor_ns, from_ns, &stop);
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
    })
}

pub(super) fn spawn_shard(stage: &Stage<'_>, ends: ShardEnds, floor_ns: i64) -> Result<JoinHandle<()>, RunError> {
    let ShardEnds { number, writer, ports, listeners } = ends;
    let (settings, shared, origin) = (stage.settings.clone(), stage.shared.clone(), stage.origin);
    let core = stage.place.shards[number as usize];
    spawn(&format!("ms-shard-{number}"), move || {
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
    })
}

/// Segment keeping, reading for sinks, and the admin listener. `state` is made there, because it never leaves the thread.
pub(super) fn spawn_backplane(
    stage: &Stage<'_>,
    keepers: Vec<Kept>,
    forward: Arc<ForwardBooks>,
    admin_socket: OwnedFd,
    state: impl FnOnce() -> admin::State + Send + 'static,
    stop_all: Arc<AtomicBool>,
) -> Result<JoinHandle<()>, RunError> {
    let shared = stage.shared.clone();
    let core = stage.place.backplane;
    let probe_dir = stage.config.node.data_dir.clone();
    spawn("ms-backplane", move || {
        let state = Rc::new(state());
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
            backplane.spawn(executor::Queue::Admin, admin::serve(backplane, listener, state, stop.clone()));
            while !stop_all.load(Ordering::Acquire) {
                executor::sleep(Duration::from_millis(20)).await;
            }
            stop.set(true);
        });
        if let Err(error) = ended {
            tracing::error!(%error, "the backplane ended");
        }
    })
}
