//! Segments of the shards' logs: made ready ahead of use, and taken back when nothing needs them.

use std::cell::Cell;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use metricstream_shards::log::{FILLING, Prepare, PreparedSegment, prepare_segment, segment_file_name};
use metricstream_shards::shard::settings::{LogNotice, Shared, Wake};

use super::executor;

/// A log as its keeper knows it.
pub struct Kept {
    pub dir: PathBuf,
    pub segment_bytes: u64,
    pub bytes_max: u64,
    pub retention: Duration,
    pub next_segment_id: u64,
    /// With blocks, oldest first
    pub segments: VecDeque<Segment>,
    /// Files that can be used again
    pub unused: Vec<PathBuf>,
    /// `None`: the log of a shard that no longer exists, only emptied
    pub shard: Option<Ports>,
    pub gauges: Arc<Gauges>,
}

/// A segment that holds records.
pub struct Segment {
    pub id: u64,
    pub path: PathBuf,
    /// No record is younger
    pub last_stamp_ns: i64,
    /// No point that windows hold is newer; `i64::MAX` until it is folded to its end
    pub newest_ns: i64,
}

impl Segment {
    /// Windows below the floor are frozen: nothing will be rebuilt from this segment any more.
    fn is_done(&self, floor_ns: i64) -> bool {
        self.newest_ns < floor_ns
    }
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
    pub prepare_failures: AtomicU64,
    /// 1 while the log is at its bound and nothing may be recycled
    pub at_bound: AtomicU64,
    /// Points that damage in the recovered or rebuilt part had cost
    pub damaged_points: AtomicU64,
}

const LOOK_EVERY: Duration = Duration::from_millis(50);
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// Keeps one log until `stop`.
pub async fn keep(mut log: Kept, shared: Arc<Shared>, stop: Rc<Cell<bool>>) {
    // Prepared and not yet seen to be opened by the shard
    let mut ready: VecDeque<(u64, PathBuf)> = VecDeque::new();
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
            if let Some(ports) = &log.shard {
                ports.no_more.store(!matches!(prepared, Ok(Some(_))), Ordering::Relaxed);
            }
            match prepared {
                Ok(Some(segment)) => {
                    gauges.at_bound.store(0, Ordering::Relaxed);
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
                    // The oldest segment could go if its windows were frozen: ask for that.
                    let newest_ns = log.segments.front().map_or(i64::MAX, |segment| segment.newest_ns);
                    if newest_ns != i64::MAX {
                        shared.wanted_floor_ns.fetch_max(newest_ns.saturating_add(1), Ordering::Relaxed);
                    }
                    if gauges.at_bound.swap(1, Ordering::Relaxed) == 0 {
                        tracing::warn!(
                            cause = "log_bound", dir = %log.dir.display(), bytes_max = log.bytes_max,
                            "the log is at its bound and nothing in it may go yet; when it is full, clients get 503"
                        );
                    }
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
        let files = log.segments.len() + ready.len() + log.unused.len();
        gauges.bytes.store(files as u64 * log.segment_bytes, Ordering::Relaxed);
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

fn take_notice(log: &mut Kept, ready: &mut VecDeque<(u64, PathBuf)>, notice: LogNotice) {
    match notice {
        LogNotice::Opened { segment_id, stamp_ns } => {
            if let Some(before) = log.segments.back_mut() {
                before.last_stamp_ns = before.last_stamp_ns.min(stamp_ns);
            }
            while let Some((id, path)) = ready.pop_front() {
                if id == segment_id {
                    log.segments.push_back(Segment { id, path, last_stamp_ns: i64::MAX, newest_ns: i64::MAX });
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

/// Segments past their time become unused; more unused files than are soon needed are deleted.
fn release(log: &mut Kept, clock_ns: i64, floor_ns: i64, ready: usize) {
    let oldest_kept_ns = clock_ns.saturating_sub(log.retention.as_nanos() as i64);
    while let Some(oldest) = log.segments.front()
        && oldest.is_done(floor_ns)
        // The last one is being written, or holds the place where recovery begins.
        && (log.segments.len() > 1 || log.shard.is_none())
        && (oldest.last_stamp_ns < oldest_kept_ns || log.shard.is_none() || over(log, ready))
    {
        let oldest = log.segments.pop_front().expect("looked at");
        log.gauges.recycled.fetch_add(1, Ordering::Relaxed);
        log.unused.push(oldest.path);
    }
    let spare = if log.shard.is_some() { 1 } else { 0 };
    while log.unused.len() > spare {
        let path = log.unused.pop().expect("more than some");
        let _ = std::fs::remove_file(path);
    }
}

/// Whether one more segment would be too many. A spare file does not count: it becomes that segment.
fn over(log: &Kept, ready: usize) -> bool {
    (log.segments.len() + ready + 1) as u64 * log.segment_bytes > log.bytes_max
}

async fn prepare(log: &mut Kept, ready: usize, stop: &Cell<bool>) -> std::io::Result<Option<PreparedSegment>> {
    let recycle = log.unused.pop();
    // `release` has taken what may go.
    if recycle.is_none() && over(log, ready) {
        return Ok(None);
    }
    let mut recycle = recycle;
    let (dir, segment_id, bytes) = (log.dir.clone(), log.next_segment_id, log.segment_bytes);
    let fill = fill_path(&dir, segment_id);
    if recycle.is_none() {
        std::fs::create_dir_all(&dir)?;
        if let Err(error) = executor::zero_fill(&fill, bytes, stop).await {
            let _ = std::fs::remove_file(&fill);
            return Err(error);
        }
        recycle = Some(fill);
    }
    let segment = executor::unblock(move || {
        prepare_segment(Prepare { dir: &dir, segment_id, bytes, recycle: recycle.as_deref() })
    })
    .await;
    // Whatever became of it, the number is spent.
    log.next_segment_id += 1;
    segment.map(Some)
}

/// Where a new segment is filled before it gets its name: no reader takes it for a segment.
fn fill_path(dir: &Path, segment_id: u64) -> PathBuf {
    dir.join(format!("{}.{FILLING}", segment_file_name(segment_id)))
}
