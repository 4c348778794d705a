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

/// A segment from before the start is counted by what it takes on the disk: its unused end is given back. But at least so
/// many make a whole one, or their number would know no bound.
const SMALL_SEGMENTS_A_WHOLE: u64 = 64;

/// What a segment that a start has found counts for against the log's bound.
pub fn counted_bytes(disk_bytes: u64, segment_bytes: u64) -> u64 {
    disk_bytes.clamp(segment_bytes / SMALL_SEGMENTS_A_WHOLE, segment_bytes)
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

/// Segments past their time become unused; more unused files than are soon needed are deleted.
fn release(log: &mut Kept, clock_ns: i64, floor_ns: i64, ready: usize) {
    let oldest_kept_ns = clock_ns.saturating_sub(log.retention.as_nanos() as i64);
    while let Some(oldest) = log.segments.front()
        && oldest.is_done(floor_ns)
        && oldest.id < log.share.held_from()
        // The last one is being written, or holds the place where recovery begins.
        && (log.segments.len() > 1 || log.shard.is_none())
        && (oldest.last_stamp_ns < oldest_kept_ns || over(log, ready))
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
    used_bytes(log) + (ready as u64 + 1) * log.segment_bytes > log.bytes_max
}

fn used_bytes(log: &Kept) -> u64 {
    log.segments.iter().map(|segment| segment.bytes).sum()
}

async fn prepare(log: &mut Kept, ready: usize, stop: &Cell<bool>) -> std::io::Result<Option<PreparedSegment>> {
    let mut recycle = log.unused.pop();
    // `release` has taken what may go.
    if recycle.is_none() && over(log, ready) {
        if !log.drop_oldest || log.segments.len() < 2 {
            return Ok(None);
        }
        let oldest = log.segments.pop_front().expect("at least two");
        let sinks = log.share.holders(oldest.id).join(", ");
        // Before the file is touched: a reader in it then knows what has become of it.
        log.share.drop_below(oldest.id + 1);
        recycle = Some(oldest.path);
        log.gauges.dropped.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            cause = "log_dropped", dir = %log.dir.display(), bytes_max = log.bytes_max, sinks,
            "the log is at its bound: its oldest segment goes although windows or the named sinks may still need it"
        );
    }
    let (dir, segment_id, bytes) = (log.dir.clone(), log.next_segment_id, log.segment_bytes);
    let fill = fill_path(&dir, segment_id);
    if recycle.is_none() {
        // Elsewhere: where the disk hangs these calls hang with it, and this thread answers operators.
        let made = dir.clone();
        executor::unblock(move || std::fs::create_dir_all(made)).await?;
        if let Err(error) = executor::zero_fill(&fill, bytes, stop).await {
            let _ = std::fs::remove_file(&fill);
            return Err(error);
        }
        recycle = Some(fill);
    }
    let file = recycle.clone();
    let segment = executor::unblock(move || {
        prepare_segment(Prepare { dir: &dir, segment_id, bytes, recycle: recycle.as_deref() })
    })
    .await;
    // Whatever became of it, the number is spent.
    log.next_segment_id += 1;
    if segment.is_err() {
        // Still there under its old name: it takes space, so it stays known.
        log.unused.extend(file.filter(|path| path.exists()));
    }
    segment.map(Some)
}

/// Where a new segment is filled before it gets its name: no reader takes it for a segment.
fn fill_path(dir: &Path, segment_id: u64) -> PathBuf {
    dir.join(format!("{}.{FILLING}", segment_file_name(segment_id)))
}

/// Removes what a fill that was cut short by the end of the process has left in `dir`. Answers how many files.
pub fn remove_half_filled(dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_str().is_some_and(|path| path.ends_with(&format!(".seg.{FILLING}"))))
        .filter(|path| std::fs::remove_file(path).is_ok())
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const S: i64 = 1_000_000_000;

    /// Segments of 1 MiB with these last stamps, in seconds, their newest points as old; a shard's log unless `orphan`.
    fn kept(dir: &Path, last_s: &[i64], unused: usize, orphan: bool) -> Kept {
        let file = |n: usize| {
            let path = dir.join(segment_file_name(n as u64 + 1));
            std::fs::write(&path, vec![0; MIB as usize]).expect("written");
            path
        };
        let segment = |(n, &s): (usize, &i64)| {
            let ns = s.saturating_mul(S);
            Segment { id: n as u64 + 1, path: file(n), bytes: MIB, last_stamp_ns: ns, newest_ns: ns }
        };
        let segments = last_s.iter().enumerate().map(segment).collect();
        let ports = || Ports {
            prepared: Arc::new(ArrayQueue::new(2)),
            notices: Arc::new(ArrayQueue::new(2)),
            no_more: Arc::default(),
            wake: Arc::new(Wake::new().expect("an eventfd")),
        };
        let kept = Kept {
            dir: dir.to_path_buf(),
            segment_bytes: MIB,
            bytes_max: 5 * MIB,
            retention: Duration::from_secs(1000),
            drop_oldest: false,
            next_segment_id: 100,
            segments,
            unused: (0..unused).map(|n| file(50 + n)).collect(),
            shard: (!orphan).then(ports),
            gauges: Arc::default(),
            share: Arc::new(LogShare::new(0, dir, MIB, Arc::default(), orphan, &["slow".into()])),
        };
        kept.share.hold_from("slow", u64::MAX);
        kept
    }

    fn ids(log: &Kept) -> Vec<u64> {
        log.segments.iter().map(|segment| segment.id).collect()
    }

    #[test]
    fn segments_go_when_they_are_old_and_no_window_needs_them() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut log = kept(dir.path(), &[100, 200, i64::MAX], 0, false);
        release(&mut log, 1150 * S, 50 * S, 0);
        assert_eq!(ids(&log), [1, 2, 3], "old enough, but a window may need them");
        release(&mut log, 1050 * S, 1000 * S, 0);
        assert_eq!(ids(&log), [1, 2, 3], "not needed, but younger than the retention");
        release(&mut log, 1150 * S, 1000 * S, 0);
        assert_eq!((ids(&log), log.unused.len()), (vec![2, 3], 1));
        release(&mut log, 9999 * S, 9999 * S, 0);
        assert_eq!(ids(&log), [3], "the one being written stays");
        assert_eq!(log.unused.len(), 1, "one file is kept for the next segment, the others are deleted");
    }

    #[test]
    fn at_the_bound_the_retention_gives_way_and_windows_do_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut log = kept(dir.path(), &[100, 200, 300, i64::MAX], 0, false);
        release(&mut log, 400 * S, 150 * S, 0);
        assert_eq!(ids(&log).len(), 4, "one more fits");
        release(&mut log, 400 * S, 150 * S, 1);
        assert_eq!(ids(&log), [2, 3, 4]);
        log.unused.clear();
        release(&mut log, 400 * S, 150 * S, 3);
        assert_eq!(ids(&log), [2, 3, 4], "the second is needed: from here on clients get 503");
    }

    #[test]
    fn segments_that_gave_their_end_back_count_for_what_they_take() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut log = kept(dir.path(), &[100, 200, 300, 400, i64::MAX], 0, false);
        assert!(over(&log, 0));
        for segment in log.segments.iter_mut().take(4) {
            segment.bytes = counted_bytes(8192, MIB);
        }
        assert_eq!(used_bytes(&log), MIB + 4 * (MIB / SMALL_SEGMENTS_A_WHOLE));
        assert!(!over(&log, 1) && over(&log, 3));
        release(&mut log, 500 * S, i64::MAX - 1, 1);
        assert_eq!(log.segments.len(), 5, "there is room: none has to go");
        assert_eq!(counted_bytes(3 * MIB, MIB), MIB);
    }

    #[test]
    fn what_a_sink_has_not_got_stays_whatever_its_age_and_the_bound() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut log = kept(dir.path(), &[100, 200, 300, i64::MAX], 0, false);
        log.share.hold_from("slow", 2);
        release(&mut log, 9999 * S, 9999 * S, 3);
        assert_eq!(ids(&log), [2, 3, 4]);
        let shared = Shared::new([1; 4], 16, 0);
        at_bound(&log, &shared);
        assert!(log.share.is_blamed("slow"));
        let floor_ns = shared.wanted_floor_ns.load(Ordering::Relaxed);
        assert_eq!(floor_ns, i64::MIN, "freezing windows would not make room");
        log.share.hold_from("slow", 4);
        release(&mut log, 9999 * S, 9999 * S, 3);
        assert_eq!(ids(&log), [4]);
    }

    #[test]
    fn the_log_of_a_shard_that_is_gone_is_kept_as_long_as_the_others() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut log = kept(dir.path(), &[100, 200], 1, true);
        release(&mut log, 1150 * S, 1000 * S, 0);
        assert_eq!(ids(&log), [2], "recycled before its retention was over, because its shard was gone");
        release(&mut log, 1250 * S, 1000 * S, 0);
        assert!(log.segments.is_empty() && log.unused.is_empty());
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0);
    }

    #[test]
    fn a_segment_may_go_once_its_windows_are_frozen_and_not_before_it_is_folded() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut log = kept(dir.path(), &[i64::MAX], 0, false);
        let mut ready = VecDeque::from([(2, dir.path().join("2")), (3, dir.path().join("3"))]);
        take_notice(&mut log, &mut ready, LogNotice::Opened { segment_id: 3, stamp_ns: 100 * S });
        assert_eq!((ids(&log), log.unused.len()), (vec![1, 3], 1), "the shard refused 2");
        assert_eq!(log.segments[0].last_stamp_ns, 100 * S);
        release(&mut log, 5000 * S, 4000 * S, 0);
        assert_eq!(ids(&log), [1, 3], "not folded to its end");
        take_notice(&mut log, &mut ready, LogNotice::Folded { segment_id: 1, newest_ns: 3999 * S });
        release(&mut log, 5000 * S, 3999 * S, 0);
        assert_eq!(ids(&log), [1, 3], "a window above the floor has its points");
        release(&mut log, 5000 * S, 4000 * S, 0);
        assert_eq!(ids(&log), [3]);
    }

    #[test]
    fn a_recycled_file_whose_preparation_failed_is_not_forgotten() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut log = kept(dir.path(), &[100, i64::MAX], 1, false);
        // The name that the new segment would get is taken.
        std::fs::write(dir.path().join(segment_file_name(100)), "").expect("written");
        let mut log = executor::run(None, |_| async move {
            let error = prepare(&mut log, 0, &Cell::new(false)).await.expect_err("the name is taken");
            assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
            log
        })
        .expect("the executor starts");
        assert_eq!((log.unused.len(), log.next_segment_id), (1, 101));
        log = executor::run(None, |_| async move {
            let segment = prepare(&mut log, 0, &Cell::new(false)).await.expect("made").expect("not at the bound");
            assert_eq!(segment.segment_id, 101);
            log
        })
        .expect("the executor starts");
        assert!(log.unused.is_empty());
    }

    #[test]
    fn drop_oldest_makes_room_where_refuse_does_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut log = kept(dir.path(), &[100, 200, i64::MAX], 0, false);
        log.bytes_max = 3 * MIB;
        let log = executor::run(None, |_| async move {
            let stop = Cell::new(false);
            assert!(prepare(&mut log, 0, &stop).await.expect("no error").is_none());
            log.drop_oldest = true;
            log.share.hold_from("slow", 1);
            assert!(prepare(&mut log, 0, &stop).await.expect("no error").is_some());
            log
        })
        .expect("the executor starts");
        assert_eq!((ids(&log), log.gauges.dropped.load(Ordering::Relaxed)), (vec![2, 3], 1));
        assert_eq!(log.share.dropped_below(), 2, "the sink that had not read it is told");
    }

    #[test]
    fn what_a_cut_off_fill_left_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(fill_path(dir.path(), 7), "half").expect("written");
        std::fs::write(dir.path().join(segment_file_name(6)), "whole").expect("written");
        std::fs::write(dir.path().join("notes.filling"), "a person's").expect("written");
        assert_eq!(remove_half_filled(dir.path()), 1);
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 2);
        assert_eq!(remove_half_filled(&dir.path().join("missing")), 0);
    }
}
