//! Single steps of the reducer; whole schedules are in `simulation`.

use super::{
    aggregate_log::{Kind, MemoryLog},
    core::{Closed, Progress, ReducerCore, Settings, Source},
    encode,
    recovery::{Recovered, Recovery},
    rules::{Glob, Group, Rule},
};
use metricstream_shards::window::{
    partial::{OverflowPartials, Partials, ShardMessage},
    protocol::{SECOND_NS, Spans},
    set::{Cell, Identity},
    summary::Detail,
};

const S: i64 = SECOND_NS;
const KEY: &[u8] = b"c\xFFapi.latency\xFFhost\xFEh1\xFFregion\xFEeu";

fn core(shards: u16, per_series: bool) -> ReducerCore {
    ReducerCore::new(settings(shards, per_series), Recovered::default(), 0)
}

fn settings(shards: u16, per_series: bool) -> Settings {
    let rule = Rule {
        id: "r".into(),
        name: None,
        match_name: Glob::new("*"),
        match_tags: vec![],
        group: Group::By(vec!["region".into()]),
        windows_s: vec![10],
    };
    Settings {
        spans: Spans::default(),
        base_s: 10,
        windows_s: vec![10, 60],
        per_series,
        rules: vec![rule],
        detail: Detail::Quantiles,
        keep_state: false,
        memory_bytes_max: usize::MAX,
        shards,
        rebuilds: 0,
        epoch: 1,
    }
}

fn partial(core: &mut ReducerCore, shard: u16, start_s: i64, offset_ns: u64, value: f64) {
    let source = Source::Shard(shard);
    core.apply(source, ShardMessage::NewSeries { id: 3, key: KEY.into() }, 0, i64::MAX);
    let cells = vec![(3, Cell::one(Identity::at_offset(offset_ns), value))];
    let partials = Partials { window_start_ns: start_s * S, cells };
    core.apply(source, ShardMessage::Partials(partials), 0, i64::MAX);
}

fn mark(core: &mut ReducerCore, shard: u16, mark_s: i64, monotonic_s: i64) {
    core.apply(Source::Shard(shard), ShardMessage::Mark { mark_ns: mark_s * S }, monotonic_s * S, i64::MAX);
}

/// (window, start, rule?, revision, count, series, incomplete)
fn results(log: &MemoryLog, from: usize) -> Vec<(u32, i64, bool, u32, u64, u64, bool)> {
    let mut out = Vec::new();
    for (kind, bytes) in &log.records[from..] {
        if *kind == Kind::Aggregates {
            encode::decode_aggregates(bytes, &mut |v| {
                let start_s = v.start_ms / 1000;
                let count = v.aggregates.count;
                out.push((v.window_s, start_s, v.rule.is_some(), v.revision, count, v.series, v.flags.incomplete));
            })
            .expect("our own");
        }
    }
    out
}

#[test]
fn a_window_closes_once_m_has_passed_its_end_and_is_visible_once_durable() {
    let (mut core, mut log) = (core(1, true), MemoryLog::default());
    partial(&mut core, 0, 0, 1, 2.0);
    mark(&mut core, 0, 9, 0);
    core.advance(0, 0, &mut log, 100);
    assert!(results(&log, 0).is_empty());
    mark(&mut core, 0, 10, 0);
    assert_eq!(core.advance(0, 0, &mut log, 1), Progress::More);
    assert_eq!(core.newest_of_rules().count(), 0);
    (log.refusals, log.flush_refusals) = (2, 2);
    for _ in 0..4 {
        assert_eq!(core.advance(0, 0, &mut log, 100), Progress::Blocked);
    }
    assert!(core.closed().m_ns < 10 * S);
    assert_eq!(core.advance(0, 0, &mut log, 100), Progress::Idle);
    assert_eq!(core.closed().m_ns, 10 * S);
    assert_eq!(results(&log, 0), vec![(10, 0, false, 0, 1, 1, false), (10, 0, true, 0, 1, 1, false)]);
    assert_eq!(core.newest_of_rules().count(), 1);
}

#[test]
fn late_partials_make_revisions_and_pure_repeats_change_nothing() {
    let (mut core, mut log) = (core(1, true), MemoryLog::default());
    partial(&mut core, 0, 0, 1, 2.0);
    mark(&mut core, 0, 60, 0);
    core.advance(0, 0, &mut log, 100);
    let before = log.records.len();
    partial(&mut core, 0, 0, 1, 2.0);
    mark(&mut core, 0, 61, 0);
    core.advance(0, 0, &mut log, 100);
    assert_eq!(results(&log, before), vec![]);
    partial(&mut core, 0, 0, 2, 5.0);
    mark(&mut core, 0, 62, 0);
    core.advance(0, 0, &mut log, 100);
    let expected = [(10, 0, false, 1, 2, 1, false), (10, 0, true, 1, 2, 1, false), (60, 0, false, 1, 2, 1, false)];
    assert_eq!(results(&log, before), expected);
    let books = core.books();
    assert_eq!((books.counted, books.repeated, books.results, books.revisions), (2, 1, 3, 3));
}

#[test]
fn a_stalled_shard_leaves_windows_incomplete_until_it_returns() {
    let (mut core, mut log) = (core(2, false), MemoryLog::default());
    mark(&mut core, 1, 5, 0);
    partial(&mut core, 0, 0, 1, 2.0);
    mark(&mut core, 0, 20, 11);
    core.advance(11 * S, 0, &mut log, 100);
    assert_eq!(results(&log, 0), vec![(10, 0, true, 0, 1, 1, true)]);
    let before = log.records.len();
    partial(&mut core, 1, 0, 2, 3.0);
    mark(&mut core, 1, 21, 12);
    mark(&mut core, 0, 21, 12);
    core.advance(12 * S, 0, &mut log, 100);
    assert_eq!(results(&log, before), vec![(10, 0, true, 1, 2, 1, false)]);
}

#[test]
fn what_comes_below_the_floor_is_counted_and_changes_nothing() {
    let (mut core, mut log) = (core(1, true), MemoryLog::default());
    partial(&mut core, 0, 0, 1, 2.0);
    mark(&mut core, 0, 1000, 0);
    core.advance(0, 0, &mut log, 100);
    assert_eq!((core.closed().floor_ns, core.window_count()), (660 * S, 0));
    let before = log.records.len();
    partial(&mut core, 0, 0, 2, 3.0);
    mark(&mut core, 0, 1001, 0);
    core.advance(0, 0, &mut log, 100);
    assert_eq!((results(&log, before).len(), core.books().late_beyond), (0, 1));
}

#[test]
fn overflow_is_a_series_of_its_own_and_of_no_rule() {
    let (mut core, mut log) = (core(1, true), MemoryLog::default());
    let cells = vec![(Box::from("c"), Cell::one(Identity::at_offset(1), 1.0))];
    let message = ShardMessage::OverflowPartials(OverflowPartials { window_start_ns: 0, cells });
    core.apply(Source::Shard(0), message, 0, i64::MAX);
    mark(&mut core, 0, 10, 0);
    core.advance(0, 0, &mut log, 100);
    assert_eq!(results(&log, 0), vec![(10, 0, false, 0, 1, 1, false)]);
}

#[test]
fn a_new_era_takes_m_and_f_back_with_the_clock_and_closes_windows_again() {
    let (mut core, mut log) = (core(1, false), MemoryLog::default());
    partial(&mut core, 0, 0, 1, 2.0);
    mark(&mut core, 0, 10_000, 0);
    core.advance(0, 0, &mut log, 100);
    log.refusals = 1;
    assert!(core.start_era(1, 10_015 * S, 1_015 * S, 0, &mut log).is_err());
    assert!(core.start_era(1, 10_015 * S, 1_015 * S, 0, &mut log).is_ok());
    assert_eq!(core.closed(), Closed { era: 1, m_ns: 1000 * S, floor_ns: 700 * S });
    let mut recovery = Recovery::default();
    for (kind, bytes) in &log.records {
        recovery.feed(*kind, bytes).expect("our own");
    }
    let recovered = recovery.finish();
    assert_eq!((recovered.era, recovered.m_ns, recovered.floor_ns), (1, 1000 * S, 700 * S));
    let before = log.records.len();
    partial(&mut core, 0, 1000, 1, 2.0);
    core.apply(Source::Shard(0), ShardMessage::Mark { mark_ns: 10_001 * S }, 0, 1_016 * S);
    core.advance(0, 0, &mut log, 100);
    assert_eq!(results(&log, before), vec![], "a mark of the old era closes nothing");
    core.apply(Source::Shard(0), ShardMessage::Mark { mark_ns: 1010 * S }, 0, 1_025 * S);
    core.advance(0, 0, &mut log, 100);
    assert_eq!(results(&log, before), vec![(10, 1000, true, 0, 1, 1, false)]);
}

#[test]
fn a_series_that_was_forgotten_goes_with_its_last_window() {
    let (mut core, mut log) = (core(1, true), MemoryLog::default());
    partial(&mut core, 0, 0, 1, 2.0);
    core.apply(Source::Shard(0), ShardMessage::ForgetSeries { id: 3 }, 0, i64::MAX);
    mark(&mut core, 0, 300, 0);
    core.advance(0, 0, &mut log, 100);
    assert_eq!((core.series_count(), core.window_count()), (1, 1));
    mark(&mut core, 0, 1000, 0);
    core.advance(0, 0, &mut log, 100);
    assert_eq!((core.series_count(), core.window_count()), (0, 0));
}

/// Another process with the same log, folding one earlier shard's points again.
fn restarted(log: &MemoryLog, detail: Detail, points: &[(i64, u64, f64)]) -> ReducerCore {
    let mut recovery = Recovery::default();
    for (kind, bytes) in &log.records {
        recovery.feed(*kind, bytes).expect("our own");
    }
    let settings = Settings { detail, rebuilds: 1, ..settings(1, true) };
    let mut core = ReducerCore::new(settings, recovery.finish(), 0);
    let source = Source::Rebuild(0);
    core.apply(source, ShardMessage::NewSeries { id: 0, key: KEY.into() }, 0, i64::MAX);
    for &(start_s, offset_ns, value) in points {
        let cells = vec![(0, Cell::one(Identity::at_offset(offset_ns), value))];
        core.apply(source, ShardMessage::Partials(Partials { window_start_ns: start_s * S, cells }), 0, i64::MAX);
    }
    core.apply(source, ShardMessage::Drained, 0, i64::MAX);
    core
}

#[test]
fn a_change_of_the_setting_of_quantiles_leaves_closed_windows_until_their_points_change() {
    // (start, revision, count, p99) of a series' own 10 s windows
    let own = |log: &MemoryLog, from: usize| {
        let mut out = Vec::new();
        for (_, bytes) in log.records[from..].iter().filter(|(kind, _)| *kind == Kind::Aggregates) {
            encode::decode_aggregates(bytes, &mut |v| {
                if v.window_s == 10 && v.rule.is_none() {
                    let p99 = v.aggregates.quantiles.map(|q| q.p99);
                    out.push((v.start_ms / 1000, v.revision, v.aggregates.count, p99));
                }
            })
            .expect("our own");
        }
        out
    };
    let exposed = |core: &ReducerCore| {
        let mut newest = core.newest_of_rules().map(|(r, _)| (r.start_ms / 1000, r.aggregates.quantiles.is_some()));
        (newest.next(), newest.next())
    };
    let (mut first, mut log) = (core(1, true), MemoryLog::default());
    partial(&mut first, 0, 0, 1, 2.0);
    partial(&mut first, 0, 10, 1, 3.0);
    mark(&mut first, 0, 20, 0);
    first.advance(0, 0, &mut log, 100);
    assert_eq!(own(&log, 0), [(0, 0, 1, Some(2.0)), (10, 0, 1, Some(3.0))]);

    // Off: what was closed is not written again, and is exposed as it is in the log.
    let (mut points, before) = (vec![(0, 1, 2.0), (10, 1, 3.0)], log.records.len());
    let mut off = restarted(&log, Detail::Plain, &points);
    mark(&mut off, 0, 21, 1);
    off.advance(S, 0, &mut log, 100);
    assert_eq!((own(&log, before), exposed(&off)), (vec![], (Some((10, true)), None)));
    // A late point revises one window, the next one closes: both without.
    partial(&mut off, 0, 0, 2, 5.0);
    partial(&mut off, 0, 20, 1, 7.0);
    mark(&mut off, 0, 30, 2);
    off.advance(2 * S, 0, &mut log, 100);
    assert_eq!(own(&log, before), [(0, 1, 2, None), (20, 0, 1, None)]);
    assert_eq!(exposed(&off), (Some((20, false)), None));

    // On again: the same the other way.
    points.extend([(0, 2, 5.0), (20, 1, 7.0)]);
    let before = log.records.len();
    let mut on = restarted(&log, Detail::Quantiles, &points);
    mark(&mut on, 0, 31, 1);
    on.advance(S, 0, &mut log, 100);
    assert_eq!((own(&log, before), exposed(&on)), (vec![], (Some((20, false)), None)));
    partial(&mut on, 0, 0, 3, 5.0);
    mark(&mut on, 0, 32, 2);
    on.advance(2 * S, 0, &mut log, 100);
    assert_eq!(own(&log, before), [(0, 2, 3, Some(5.0))]);

    // Points that were lost: the larger count stays, without the quantiles that are not wanted.
    let before = log.records.len();
    let mut damaged = restarted(&log, Detail::Plain, &[(0, 1, 2.0), (10, 1, 3.0), (20, 1, 7.0)]);
    mark(&mut damaged, 0, 33, 1);
    damaged.advance(S, 0, &mut log, 100);
    assert_eq!(own(&log, before), [(0, 3, 3, None)]);
}
