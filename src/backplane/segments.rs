//! Segments of the shards' logs: made ready ahead of use, and taken back when nothing needs them.

use std::cell::Cell;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use metricstream_shards::log::{Prepare, PreparedSegment, prepare_segment, segment_file_name};
use metricstream_shards::shard::settings::{LogNotice, Shared, Wake};

use super::executor;

/// A log as its keeper knows it.
pub struct Kept {
    pub dir: PathBuf,
    pub segment_bytes: u64,
    pub bytes_max: u64,
    pub retention: Duration,
    pub next_segment_id: u64,
    /// With blocks, oldest first: number, file, last stamp (none younger)
    pub segments: VecDeque<(u64, PathBuf, i64)>,
    /// Files that can be used again
    pub unused: Vec<PathBuf>,
    /// `None`: the log of a shard that no longer exists, only emptied
    pub shard: Option<Ports>,
    pub gauges: Arc<Gauges>,
}

pub struct Ports {
    pub prepared: Arc<ArrayQueue<PreparedSegment>>,
    pub notices: Arc<ArrayQueue<LogNotice>>,
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
}

const LOOK_EVERY: Duration = Duration::from_millis(10);
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// Keeps one log until `stop`. `window_reach_ns`: how far before the floor a record may still be needed by a window.
pub async fn keep(mut log: Kept, shared: Arc<Shared>, window_reach_ns: i64, stop: Rc<Cell<bool>>) {
    // Prepared and not yet seen to be opened by the shard
    let mut ready: VecDeque<(u64, PathBuf)> = VecDeque::new();
    remove_unfinished(&log.dir);
    while !stop.get() {
        let mut opened = false;
        while let Some(LogNotice::Opened { segment_id, last_stamp_before_ns }) =
            log.shard.as_ref().and_then(|ports| ports.notices.pop())
        {
            opened = true;
            if let Some((_, _, last)) = log.segments.back_mut() {
                *last = (*last).min(last_stamp_before_ns);
            }
            while let Some((id, path)) = ready.pop_front() {
                if id == segment_id {
                    log.segments.push_back((id, path, i64::MAX));
                    break;
                }
                // Passed over: the shard refused it.
                log.unused.push(path);
            }
        }
        let floor_ns = shared.floor_ns.load(Ordering::Relaxed);
        // Wall time is good enough for ages of hours.
        let clock_ns = crate::reducer::thread::wall_ns();
        let needed_from_ns = floor_ns.saturating_sub(window_reach_ns);
        release(&mut log, clock_ns, needed_from_ns, ready.len());
        // The shard takes them at once; what counts is how many it has not opened.
        let wants = log.shard.as_ref().is_some_and(|ports| ready.len() < ports.prepared.capacity());
        let gauges = log.gauges.clone();
        let mut pause = LOOK_EVERY;
        if wants {
            match prepare(&mut log, needed_from_ns, ready.len(), &stop).await {
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

/// Segments past their time become unused; more unused files than are soon needed are deleted.
fn release(log: &mut Kept, clock_ns: i64, needed_from_ns: i64, ready: usize) {
    let oldest_kept_ns = clock_ns.saturating_sub(log.retention.as_nanos() as i64);
    while let Some((_, _, last)) = log.segments.front()
        && *last < needed_from_ns
        // The last one is being written, or holds the place where recovery begins.
        && (log.segments.len() > 1 || log.shard.is_none())
        && (*last < oldest_kept_ns || log.shard.is_none() || over(log, ready))
    {
        let (_, path, _) = log.segments.pop_front().expect("looked at");
        log.gauges.recycled.fetch_add(1, Ordering::Relaxed);
        log.unused.push(path);
    }
    let spare = if log.shard.is_some() { 1 } else { 0 };
    while log.unused.len() > spare {
        let path = log.unused.pop().expect("more than some");
        let _ = std::fs::remove_file(path);
    }
}

/// Whether one more segment would be too many.
fn over(log: &Kept, ready: usize) -> bool {
    (log.segments.len() + ready + log.unused.len() + 1) as u64 * log.segment_bytes > log.bytes_max
}

async fn prepare(
    log: &mut Kept,
    needed_from_ns: i64,
    ready: usize,
    stop: &Cell<bool>,
) -> std::io::Result<Option<PreparedSegment>> {
    let mut recycle = log.unused.pop();
    if recycle.is_none() && over(log, ready) {
        // At the bound: the oldest goes before its time, if nothing needs it.
        let free = log.segments.len() > 1 && log.segments.front().is_some_and(|(_, _, last)| *last < needed_from_ns);
        if !free {
            return Ok(None);
        }
        recycle = log.segments.pop_front().map(|(_, path, _)| path);
        log.gauges.recycled.fetch_add(1, Ordering::Relaxed);
    }
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
    let (segment, left) = executor::unblock(move || {
        let segment = prepare_segment(Prepare { dir: &dir, segment_id, bytes, recycle: recycle.as_deref() });
        (segment, recycle.filter(|path| path.exists()))
    })
    .await;
    // A file that did not become a segment takes up space like one: it is the first to be used, or to go.
    log.unused.extend(left);
    // Whatever became of it, the number is spent.
    log.next_segment_id += 1;
    segment.map(Some)
}

/// Where a new segment is filled before it gets its name: no reader takes it for a segment.
fn fill_path(dir: &Path, segment_id: u64) -> PathBuf {
    dir.join(format!("{}.filling", segment_file_name(segment_id)))
}

/// What a process that was killed in the middle of a fill left behind.
fn remove_unfinished(dir: &Path) {
    for path in std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "filling") {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_a_killed_process_was_filling_does_not_stay() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let dir = dir.path();
        let (unfinished, segment) = (fill_path(dir, 7), dir.join(segment_file_name(6)));
        std::fs::write(&unfinished, [0; 10]).expect("written");
        std::fs::write(&segment, [0; 10]).expect("written");
        remove_unfinished(dir);
        assert!(!unfinished.exists() && segment.exists());
        remove_unfinished(&dir.join("never made"));
    }
}
