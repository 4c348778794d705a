//! The next segment of a log: from a file that nothing needs any more, or a new one filled with zeros.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use metricstream_shards::log::{FILLING, Prepare, PreparedSegment, prepare_segment, segment_file_name};

use super::Kept;
use super::retention::over;
use crate::backplane::executor;

/// `None`: the log is at its bound.
pub(super) async fn prepare(
    log: &mut Kept,
    ready: usize,
    stop: &Cell<bool>,
) -> std::io::Result<Option<PreparedSegment>> {
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
pub(super) fn fill_path(dir: &Path, segment_id: u64) -> PathBuf {
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
