//! Segments of the shards' logs: made ready ahead of use, and taken back when nothing needs them.

mod prepare;
mod retention;
#[cfg(test)]
mod tests;

pub use self::prepare::remove_half_filled;
pub use self::retention::counted_bytes;

use std::cell::Cell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use metricstream_shards::log::PreparedSegment;
use metricstream_shards::shard::settings::{LogNotice, Shared, Wake};

use self::prepare::prepare;
use self::retention::{release, used_bytes};
use super::executor;
use crate::forward::share::LogShare;

/// A log as its keeper knows it.
pub struct Kept {
    pub dir: PathBuf,
    pub segment_bytes: u64,
    pub bytes_max: u64,
    pub retention: Duration,
    /// At the bound the oldest goes although a window may need it: the operator chose to lose it rather than refuse
    pub drop_oldest: bool,
    pub next_segment_id: u64,
    /// With blocks, oldest first
    pub segments: VecDeque<Segment>,
    /// Files that can be used again
    pub unused: Vec<PathBuf>,
    /// `None`: the log of a shard that no longer exists, only emptied
    pub shard: Option<Ports>,
    pub gauges: Arc<Gauges>,
    /// What sinks still need of it
    pub share: Arc<LogShare>,
}

/// A segment that holds records.
pub struct Segment {
    pub id: u64,
    pub path: PathBuf,
    /// What it counts for
    pub bytes: u64,
    /// No record is younger
    pub last_stamp_ns: i64,
    /// No point that windows hold is newer; `i64::MAX` until it is folded to its end
    pub newest_ns: i64,
}

pub struct Ports {
    pub prepared: Arc<ArrayQueue<PreparedSegment>>,
    pub notices: Arc<ArrayQueue<LogNotice>>,
    /// Told to the shard while no further segment can be made
    pub no_more: Arc<AtomicBool>,
    pub wake: Arc<Wake>,
}

/// For `/metrics`.
#[derive(Default)]
pub struct Gauges {
    pub segments: AtomicU64,
    pub bytes: AtomicU64,
    pub prepared: AtomicU64,
    pub recycled: AtomicU64,
    /// Segments that went before their time (`when_full = "drop_oldest"`)
    pub dropped: AtomicU64,
    pub prepare_failures: AtomicU64,
    /// 1 while the log is at its bound and nothing may be recycled
    pub at_bound: AtomicU64,
    /// Points that damage in the recovered or rebuilt part had cost
    pub damaged_points: AtomicU64,
}

const LOOK_EVERY: Duration = Duration::from_millis(50);
const AFTER_FAILURE: Duration = Duration::from_millis(500);
/// A burst of connections beyond the bound holds descriptors until the shards have turned it away. For so many looks in a
/// row that is not yet a failure: nothing is refused for it.
const NO_DESCRIPTOR_LOOKS: u32 = 40;

/// Keeps one log until `stop`.
pub async fn keep(mut log: Kept, shared: Arc<Shared>, stop: Rc<Cell<bool>>) {
    // Prepared and not yet seen to be opened by the shard
    let mut ready: VecDeque<(u64, PathBuf)> = VecDeque::new();
    let mut no_descriptor = 0;
    while !stop.get() {
        let mut opened = false;
        while let Some(notice) = log.shard.as_ref().and_then(|ports| ports.notices.pop()) {
            opened = true;
            take_notice(&mut log, &mut ready, notice);
        }
        let floor_ns = shared.durable_floor_ns.load(Ordering::Relaxed);
        // Wall time is good enough for ages of hours.
        release(&mut log, crate::reducer::thread::wall_ns(), floor_ns, ready.len());
        // The shard takes them at once; what counts is how many it has not opened.
        let wants = log.shard.as_ref().is_some_and(|ports| ready.len() < ports.prepared.capacity());
        let gauges = log.gauges.clone();
        let mut pause = LOOK_EVERY;
        if wants {
            let prepared = prepare(&mut log, ready.len(), &stop).await;
            if prepared.as_ref().is_err_and(is_no_descriptor) && no_descriptor < NO_DESCRIPTOR_LOOKS {
                no_descriptor += 1;
                executor::sleep(LOOK_EVERY).await;
                continue;
            }
            no_descriptor = 0;
            if let Some(ports) = &log.shard {
                ports.no_more.store(!matches!(prepared, Ok(Some(_))), Ordering::Relaxed);
            }
            match prepared {
                Ok(Some(segment)) => {
                    gauges.at_bound.store(0, Ordering::Relaxed);
                    log.share.blame(0);
                    gauges.prepared.fetch_add(1, Ordering::Relaxed);
                    ready.push_back((segment.segment_id, segment.path.clone()));
                    let ports = log.shard.as_ref().expect("it wanted one");
                    if ports.prepared.push(segment).is_err() {
                        unreachable!("only this task fills the queue, and it had room");
                    }
                    ports.wake.ring();
                    pause = Duration::ZERO;
                }
                Ok(None) => {
                    at_bound(&log, &shared);
                    pause = AFTER_FAILURE;
                }
                Err(_) if stop.get() => {}
                Err(error) => {
                    gauges.prepare_failures.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(
                        cause = "prepare", dir = %log.dir.display(), %error,
                        "no new segment can be made; when those at hand are full, clients get 503. Trying again"
                    );
                    pause = AFTER_FAILURE;
                }
            }
        }
        gauges.segments.store(log.segments.len() as u64, Ordering::Relaxed);
        let others = (ready.len() + log.unused.len()) as u64 * log.segment_bytes;
        gauges.bytes.store(used_bytes(&log) + others, Ordering::Relaxed);
        if log.shard.is_none() && log.segments.is_empty() && log.unused.is_empty() {
            let _ = std::fs::remove_dir(&log.dir);
            tracing::info!(dir = %log.dir.display(), "the log of a shard that no longer exists is done with");
            return;
        }
        if !opened && !pause.is_zero() {
            executor::sleep(pause).await;
        }
    }
}

/// All descriptors of this process, or of the host, are taken.
fn is_no_descriptor(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// The log is at its bound and nothing may go: says why, and asks for what can be asked.
fn at_bound(log: &Kept, shared: &Shared) {
    let oldest = log.segments.front().map_or(0, |segment| segment.id);
    let holders = log.share.holders(oldest).join(", ");
    log.share.blame(oldest);
    if holders.is_empty() {
        // The oldest segment could go if its windows were frozen: ask for that.
        let newest_ns = log.segments.front().map_or(i64::MAX, |segment| segment.newest_ns);
        if newest_ns != i64::MAX {
            shared.wanted_floor_ns.fetch_max(newest_ns.saturating_add(1), Ordering::Relaxed);
        }
    }
    if log.gauges.at_bound.swap(1, Ordering::Relaxed) == 1 {
        return;
    }
    if holders.is_empty() {
        tracing::warn!(
            cause = "log_bound", dir = %log.dir.display(), bytes_max = log.bytes_max,
            "the log is at its bound and nothing in it may go yet; when it is full, clients get 503"
        );
    } else {
        tracing::warn!(
            cause = "log_bound", dir = %log.dir.display(), bytes_max = log.bytes_max, sinks = holders,
            "the log is at its bound because these sinks have not read it; when it is full, clients get 503"
        );
    }
}

fn take_notice(log: &mut Kept, ready: &mut VecDeque<(u64, PathBuf)>, notice: LogNotice) {
    match notice {
        LogNotice::Opened { segment_id, stamp_ns } => {
            if let Some(before) = log.segments.back_mut() {
                before.last_stamp_ns = before.last_stamp_ns.min(stamp_ns);
            }
            while let Some((id, path)) = ready.pop_front() {
                if id == segment_id {
                    let bytes = log.segment_bytes;
                    let (last_stamp_ns, newest_ns) = (i64::MAX, i64::MAX);
                    log.segments.push_back(Segment { id, path, bytes, last_stamp_ns, newest_ns });
                    break;
                }
                // Passed over: the shard refused it.
                log.unused.push(path);
            }
        }
        LogNotice::Folded { segment_id, newest_ns } => {
            if let Some(segment) = log.segments.iter_mut().find(|segment| segment.id == segment_id) {
                segment.newest_ns = newest_ns;
            }
        }
    }
}
