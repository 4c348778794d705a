//! A log as its writer's keeper, the reader and the sinks see it together: how far it is durable, and which segments a
//! sink still needs.
//!
//! Nothing here waits: marks and holds are atomics, each with one writer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use metricstream_shards::log::{AGGREGATE_LOG_ID, DurableMark, segment_id_of};

/// One log. The keeper asks what it may let go, says what it has dropped; the sinks say what they hold.
pub struct LogShare {
    pub log_id: u32,
    pub dir: PathBuf,
    pub segment_bytes: u64,
    pub mark: Arc<DurableMark>,
    /// Of a shard that no longer exists: nothing is added to it any more
    pub is_orphan: bool,
    holds: Vec<Hold>,
    /// Segments below it were taken although a sink may not have read them
    dropped_below: AtomicU64,
}

/// What one sink needs of a log.
struct Hold {
    sink: Arc<str>,
    /// The segment that its durable cursor stands in: this one and later ones stay. `u64::MAX`: none
    from_segment: AtomicU64,
    /// Said once each time that the log is at its bound because of it
    blamed: AtomicBool,
}

impl LogShare {
    /// `sinks`: those that read this log. They hold all of it until they have said where they stand.
    pub fn new(
        log_id: u32,
        dir: &Path,
        segment_bytes: u64,
        mark: Arc<DurableMark>,
        is_orphan: bool,
        sinks: &[Arc<str>],
    ) -> LogShare {
        LogShare {
            log_id,
            dir: dir.to_path_buf(),
            segment_bytes,
            mark,
            is_orphan,
            holds: sinks
                .iter()
                .map(|sink| Hold {
                    sink: sink.clone(),
                    from_segment: AtomicU64::new(0),
                    blamed: AtomicBool::new(false),
                })
                .collect(),
            dropped_below: AtomicU64::new(0),
        }
    }

    pub fn is_aggregate(&self) -> bool {
        self.log_id == AGGREGATE_LOG_ID
    }

    pub fn name(&self) -> String {
        log_name(self.log_id)
    }

    pub fn is_read_by(&self, sink: &str) -> bool {
        self.holds.iter().any(|hold| &*hold.sink == sink)
    }

    /// Segments below it are needed by no sink.
    pub fn held_from(&self) -> u64 {
        self.holds.iter().map(|hold| hold.from_segment.load(Ordering::Acquire)).min().unwrap_or(u64::MAX)
    }

    /// The sinks that need this segment.
    pub fn holders(&self, segment_id: u64) -> Vec<&str> {
        let needs = |hold: &&Hold| hold.from_segment.load(Ordering::Acquire) <= segment_id;
        self.holds.iter().filter(needs).map(|hold| &*hold.sink).collect()
    }

    /// A sink's cursor is durable in this segment.
    pub fn hold_from(&self, sink: &str, segment_id: u64) {
        if let Some(hold) = self.holds.iter().find(|hold| &*hold.sink == sink) {
            hold.from_segment.store(segment_id, Ordering::Release);
        }
    }

    /// The log is at its bound, and these sinks alone keep it there.
    pub fn blame(&self, segment_id: u64) {
        for hold in &self.holds {
            let to_blame = segment_id != 0 && hold.from_segment.load(Ordering::Acquire) <= segment_id;
            hold.blamed.store(to_blame, Ordering::Relaxed);
        }
    }

    pub fn is_blamed(&self, sink: &str) -> bool {
        self.holds.iter().any(|hold| &*hold.sink == sink && hold.blamed.load(Ordering::Relaxed))
    }

    /// To be called before the file of the segment below is touched.
    pub fn drop_below(&self, segment_id: u64) {
        self.dropped_below.fetch_max(segment_id, Ordering::AcqRel);
    }

    pub fn dropped_below(&self) -> u64 {
        self.dropped_below.load(Ordering::Acquire)
    }
}

/// As the log's directory and cursor files are called.
pub fn log_name(log_id: u32) -> String {
    if log_id == AGGREGATE_LOG_ID { "aggregate".to_owned() } else { log_id.to_string() }
}

/// The segment files of a log, oldest first; prepared ones that hold nothing yet are among them.
pub fn list_segments(dir: &Path) -> std::io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        found.extend(segment_id_of(&path).map(|id| (id, path)));
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_sink_decides_what_may_go() {
        let share = LogShare::new(0, Path::new("log"), 1 << 20, Arc::default(), false, &["a".into(), "b".into()]);
        assert_eq!(share.held_from(), 0, "until it is known where the sinks stand, all of it stays");
        share.hold_from("a", 7);
        assert_eq!(share.held_from(), 0);
        share.hold_from("b", 4);
        assert_eq!((share.held_from(), share.holders(5)), (4, vec!["b"]));
        share.blame(5);
        assert!(share.is_blamed("b") && !share.is_blamed("a"));
        share.blame(0);
        assert!(!share.is_blamed("b"));
        share.hold_from("b", u64::MAX);
        assert_eq!(share.held_from(), 7);
        let unread = LogShare::new(0, Path::new("log"), 1 << 20, Arc::default(), false, &[]);
        assert_eq!(unread.held_from(), u64::MAX, "without sinks nothing is held");
    }
}
