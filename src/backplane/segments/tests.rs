//! What goes and what stays, by age, bound, windows and sinks; and segments whose making fails.

use super::prepare::fill_path;
use super::retention::{SMALL_SEGMENTS_A_WHOLE, over};
use super::*;
use metricstream_shards::log::segment_file_name;
use std::path::Path;

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
