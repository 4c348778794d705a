//! What `verify` must say of each fate of a batch, on a few points.

use std::path::PathBuf;

use super::expected::Expected;
use super::verdict::{FaultKind, Verdict};
use super::*;
use crate::ledger::{NoAnswer, Writer};
use crate::plan::Plan;
use crate::workload::testing::plan;
use crate::workload::{Batch, Point, Workload};

/// A run of one client, of 10 points a batch over 4 series, a second between batches.
pub(super) struct Scene {
    _dir: tempfile::TempDir,
    path: PathBuf,
    plan: Plan,
    workload: Workload,
    pub(super) writer: Writer,
    next: u64,
}

fn small_plan() -> Plan {
    let mut plan = plan();
    plan.workload.clients = 1;
    plan.workload.series = 4;
    plan.workload.batch_points = 10;
    plan
}

impl Scene {
    pub(super) fn new() -> Scene {
        Scene::of(small_plan())
    }

    pub(super) fn of(plan: Plan) -> Scene {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger");
        let writer = Writer::create(&path, &plan).expect("made");
        Scene { path, workload: Workload::new(&plan), plan, writer, _dir: dir, next: 0 }
    }

    fn batch(&self, number: u64) -> Batch {
        Batch { client: 0, number, stamp_ns: self.plan.epoch_ns + number as i64 * 1_000_000_000 }
    }

    pub(super) fn make(&mut self, number: u64) {
        self.writer.batch(self.batch(number));
    }

    /// Answers the request.
    pub(super) fn sent(&mut self, first: u64, count: u32) -> u64 {
        self.next += 1;
        self.writer.sent(self.next, 0, first, count);
        self.next
    }

    /// Batches 1 to 3 in one request, of which 2 was never noted.
    fn make_and_send_beyond(&mut self) {
        self.make(3);
        self.make(1);
        self.sent(1, 3);
    }

    pub(super) fn acknowledged(&mut self, number: u64) {
        self.make(number);
        let request = self.sent(number, 1);
        self.writer.acknowledged(request, 204);
    }

    pub(super) fn expected(&mut self) -> Expected {
        self.writer.flush().expect("written");
        Expected::load(&[&self.path]).expect("a ledger")
    }

    pub(super) fn points(&self, number: u64) -> Vec<Point> {
        let mut points = Vec::new();
        self.workload.points(self.batch(number), |point| points.push(point));
        points
    }

    fn line(&self, point: &Point) -> serde_json::Value {
        let tags: serde_json::Map<String, serde_json::Value> =
            self.workload.tags(point.slot).into_iter().map(|(key, value)| (key, value.into())).collect();
        serde_json::json!({
            "log": "0", "client_id": "client-000000", "name": self.workload.series().name(point.slot), "tags": tags,
            "timestamp_ns": point.timestamp_ns, "value": point.value.to_f64(), "kind": "float",
        })
    }

    pub(super) fn lines(&self, numbers: &[u64]) -> Vec<serde_json::Value> {
        numbers.iter().flat_map(|&number| self.points(number)).map(|point| self.line(&point)).collect()
    }

    fn log_dump(&mut self, lines: &[serde_json::Value]) -> Verdict {
        compare_points(&self.expected(), lines, &Options::default())
    }
}

fn text(lines: &[serde_json::Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn compare_points(expected: &Expected, lines: &[serde_json::Value], options: &Options) -> Verdict {
    lines::compare_points(expected, options, "log dump", text(lines).as_bytes()).expect("compared")
}

/// Exactly these faults.
#[track_caller]
pub(super) fn has(verdict: &Verdict, faults: &[(FaultKind, u64)]) {
    let text = verdict.to_text();
    assert_eq!(verdict.ok, faults.is_empty(), "{text}");
    assert_eq!(verdict.first.len(), faults.len(), "{text}");
    for (kind, count) in faults {
        assert_eq!(verdict.count_of(*kind), *count, "{text}");
    }
}

#[test]
fn the_acknowledged_must_be_there_the_refused_not_and_the_unknown_may() {
    let mut scene = Scene::new();
    scene.acknowledged(0);
    scene.make(1);
    let refused = scene.sent(1, 1);
    scene.writer.refused(refused, 503);
    scene.make(2);
    let unknown = scene.sent(2, 1);
    scene.writer.unknown(unknown, NoAnswer::Reset);
    scene.make(3);
    scene.sent(3, 1); // no outcome: the generator was killed
    scene.make(4); // and never sent
    scene.make(5);
    let nobody = scene.sent(5, 1);
    scene.writer.unknown(nobody, NoAnswer::RefusedConnection);
    for (there, faults) in [
        (&[0][..], &[][..]),
        (&[0, 2, 3], &[]),
        (&[0, 3], &[]),
        (&[2, 3], &[(FaultKind::Missing, 10)]),
        (&[0, 1], &[(FaultKind::Refused, 10)]),
        (&[0, 4], &[(FaultKind::Refused, 10)]),
        (&[0, 5], &[(FaultKind::Refused, 10)]),
        (&[0, 2, 2], &[(FaultKind::Doubled, 10)]),
    ] {
        let lines = scene.lines(there);
        let verdict = scene.log_dump(&lines);
        has(&verdict, faults);
        assert_eq!(verdict.total_of("points acknowledged"), 10);
        assert_eq!(verdict.total_of("points unknown"), 20);
        assert_eq!(verdict.total_of("points refused or never sent"), 30);
    }
    // Half of an unknown batch is as good as all of it.
    let mut lines = scene.lines(&[0, 2]);
    lines.truncate(15);
    has(&scene.log_dump(&lines), &[]);
}

#[test]
fn a_batch_that_was_sent_twice_may_be_there_twice_and_that_is_counted() {
    let mut scene = Scene::new();
    scene.make(0);
    let first = scene.sent(0, 1);
    scene.writer.unknown(first, NoAnswer::Timeout);
    scene.make(1);
    let joined = scene.sent(0, 2);
    scene.writer.acknowledged(joined, 204);
    for (there, repeats) in [(&[0, 1][..], 0), (&[0, 0, 1], 10), (&[0, 1, 0], 10)] {
        let lines = scene.lines(there);
        let verdict = scene.log_dump(&lines);
        has(&verdict, &[]);
        assert_eq!(verdict.total_of("repeats by retries"), repeats);
    }
    let lines = scene.lines(&[0, 0, 0, 1]);
    has(&scene.log_dump(&lines), &[(FaultKind::Doubled, 10)]);
}

#[test]
fn what_was_altered_is_told_with_both() {
    let mut scene = Scene::new();
    scene.acknowledged(0);
    let honest = scene.lines(&[0]);
    let value = honest[3]["value"].as_f64().expect("a number");
    let one_bit = f64::from_bits(value.to_bits() ^ 1);
    for (field, to, faults, part) in [
        (
            "value",
            one_bit.into(),
            &[(FaultKind::Altered, 1)][..],
            format!("expected the value {value}, found the value {one_bit}"),
        ),
        ("value", "text".into(), &[(FaultKind::Altered, 1)], "found the value \"text\"".to_string()),
        ("client_id", "mallory".into(), &[(FaultKind::Altered, 1)], "found the client \"mallory\"".to_string()),
        (
            "name",
            "other".into(),
            &[(FaultKind::Missing, 1), (FaultKind::Foreign, 1)],
            "expected no such series".to_string(),
        ),
        (
            "timestamp_ns",
            5.into(),
            &[(FaultKind::Missing, 1), (FaultKind::Foreign, 1)],
            "at 5: expected no point of it then".to_string(),
        ),
        (
            "tags",
            serde_json::json!({"host": "h"}),
            &[(FaultKind::Missing, 1), (FaultKind::Foreign, 1)],
            "found the value".to_string(),
        ),
    ] {
        let mut lines = honest.clone();
        lines[3][field] = to;
        let verdict = scene.log_dump(&lines);
        has(&verdict, faults);
        assert!(verdict.to_text().contains(&part), "{part} is not in {}", verdict.to_text());
    }
}

#[test]
fn points_of_others_are_faults_unless_allowed() {
    let mut scene = Scene::new();
    scene.acknowledged(0);
    let mut lines = scene.lines(&[0]);
    let mut other = lines[0].clone();
    other["name"] = "theirs".into();
    lines.push(other);
    has(&scene.log_dump(&lines), &[(FaultKind::Foreign, 1)]);
    let options = Options { others_allowed: true, ..Options::default() };
    let verdict = compare_points(&scene.expected(), &lines, &options);
    has(&verdict, &[]);
    assert_eq!(verdict.total_of("points of other series"), 1);
    // A point that our own series never had is no other's.
    lines[3]["timestamp_ns"] = 5.into();
    has(&compare_points(&scene.expected(), &lines, &options), &[(FaultKind::Missing, 1), (FaultKind::Foreign, 1)]);
}

#[test]
fn a_name_for_all_clients_is_learned_from_the_first_or_stated() {
    let mut nameless = small_plan();
    nameless.transport.identity = crate::plan::Identity::None;
    let mut scene = Scene::of(nameless);
    scene.acknowledged(0);
    let mut lines = scene.lines(&[0]);
    for line in &mut lines {
        line["client_id"] = "127.0.0.1".into();
    }
    has(&scene.log_dump(&lines), &[]);
    let stated = Options { client: Some("web".to_string()), ..Options::default() };
    has(&compare_points(&scene.expected(), &lines, &stated), &[(FaultKind::Altered, 10)]);
    lines[9]["client_id"] = "127.0.0.2".into();
    has(&scene.log_dump(&lines), &[(FaultKind::Altered, 1)]);
}

#[test]
fn order_is_that_of_requests_one_after_the_other_and_of_points_in_a_request() {
    let mut scene = Scene::new();
    scene.acknowledged(0);
    scene.acknowledged(1);
    // Two on the way together.
    scene.make(2);
    scene.make(3);
    let (a, b) = (scene.sent(2, 1), scene.sent(3, 1));
    scene.writer.acknowledged(a, 204);
    scene.writer.acknowledged(b, 204);
    // Two in one.
    scene.make(4);
    scene.make(5);
    let joined = scene.sent(4, 2);
    scene.writer.acknowledged(joined, 204);
    for (there, out_of_order) in
        [(&[0, 1, 2, 3, 4, 5][..], 0), (&[0, 1, 3, 2, 4, 5], 0), (&[1, 0, 2, 3, 4, 5], 10), (&[0, 1, 2, 3, 5, 4], 4)]
    {
        let lines = scene.lines(there);
        let verdict = scene.log_dump(&lines);
        if out_of_order == 0 {
            has(&verdict, &[]);
        } else {
            assert!(verdict.count_of(FaultKind::OutOfOrder) >= out_of_order, "{}", verdict.to_text());
            assert!(verdict.to_text().contains("which was sent later"));
        }
    }
    // Points 1 and 5 of a batch are of one series, 1 and 2 are not.
    let mut lines = scene.lines(&[0, 1, 2, 3, 4, 5]);
    lines.swap(1, 2);
    has(&scene.log_dump(&lines), &[]);
    lines.swap(1, 2);
    lines.swap(1, 5);
    has(&scene.log_dump(&lines), &[(FaultKind::OutOfOrder, 1)]);
    let any = Options { any_order: true, ..Options::default() };
    has(&compare_points(&scene.expected(), &lines, &any), &[]);
    // In another shard's log it has no order to be out of.
    lines[1]["log"] = "1".into();
    has(&scene.log_dump(&lines), &[]);
}

#[test]
fn batches_may_be_noted_out_of_turn_and_some_never() {
    let mut scene = Scene::new();
    scene.acknowledged(3);
    scene.acknowledged(0);
    scene.make(6);
    scene.make(5);
    let joined = scene.sent(5, 2);
    scene.writer.acknowledged(joined, 204);
    let lines = scene.lines(&[3, 0, 5, 6]);
    has(&scene.log_dump(&lines), &[]);
    let lines = scene.lines(&[0, 3, 5, 6]);
    assert!(scene.log_dump(&lines).count_of(FaultKind::OutOfOrder) > 0);
    let lines = scene.lines(&[3, 0, 6, 5]);
    assert!(scene.log_dump(&lines).count_of(FaultKind::OutOfOrder) > 0);
}

#[test]
fn records_with_equal_ids_count_once() {
    let mut scene = Scene::new();
    scene.acknowledged(0);
    let mut lines = scene.lines(&[0]);
    for (n, line) in lines.iter_mut().enumerate() {
        line["id"] = format!("node-1-{n}").into();
    }
    lines.extend_from_within(..);
    let verdict = scene.log_dump(&lines);
    has(&verdict, &[]);
    assert_eq!(verdict.total_of("records with an id seen before"), 10);
    lines[15]["id"] = "node-2-5".into();
    has(&scene.log_dump(&lines), &[(FaultKind::Doubled, 1)]);
}

#[test]
fn ledgers_that_cannot_be_compared_with_are_told_in_a_sentence() {
    let mut scene = Scene::new();
    scene.acknowledged(0);
    scene.expected();
    let twice = Expected::load(&[&scene.path, &scene.path]).expect("read");
    let error =
        lines::compare_points(&twice, &Options::default(), "log dump", &b""[..]).expect_err("ambiguous").to_string();
    assert!(error.contains("cannot be told apart; give each process a seed of its own"), "{error}");

    for (spoil, part) in [
        ((|scene| scene.writer.acknowledged(77, 204)) as fn(&mut Scene), "request 77 has an outcome"),
        (|scene| scene.writer.sent(1, 0, 5, 1), "carries batches that were not noted"),
        (|scene| scene.writer.batch(scene.batch(1 << 30)), "batch 1073741824 of client 0 follows 1 batches"),
        (|scene| scene.make(0), "batch 0 of client 0 was noted twice"),
        (|scene| scene.make_and_send_beyond(), "carries batches that were not noted"),
        (|scene| scene.writer.batch(Batch { client: 9, ..scene.batch(1) }), "a batch of client 9"),
    ] {
        let mut scene = Scene::new();
        scene.acknowledged(0);
        spoil(&mut scene);
        scene.writer.flush().expect("written");
        let error = Expected::load(&[&scene.path]).err().expect("a contradiction").to_string();
        assert!(error.contains("contradicts itself") && error.contains(part), "{error}");
    }
    let error = Expected::load(&[scene.path.with_file_name("none")]).err().expect("no file").to_string();
    assert!(error.contains("cannot be opened"), "{error}");
}

#[test]
fn what_is_no_dump_is_told_with_its_line() {
    let mut scene = Scene::new();
    scene.acknowledged(0);
    let expected = scene.expected();
    for (input, part) in [
        ("\n\nnot json\n", "line 3 is not a point as JSON"),
        ("{\"name\":\"a\",\"value\":1}\n", "line 1 is not a point: it has no `name`, or no `timestamp_ns`"),
    ] {
        let error = lines::compare_points(&expected, &Options::default(), "log dump", input.as_bytes()).err();
        assert!(error.as_ref().is_some_and(|error| error.to_string().contains(part)), "{error:?}");
    }
}

mod of_windows {
    use super::*;
    use std::collections::BTreeMap;

    /// The stamps are not the time of the ledger, so that nothing must be late by it.
    fn options() -> Options {
        Options { horizon_ms: u64::MAX / 4_000_000, window_lengths_s: vec![10], ..Options::default() }
    }

    /// Windows of these points. Each second is cut to what is just before it, so ten seconds end with their tenth batch.
    fn windows(scene: &Scene, points: &[Point]) -> Vec<serde_json::Value> {
        let mut all: BTreeMap<(i64, u64), Vec<Point>> = BTreeMap::new();
        for point in points {
            let start = point.timestamp_ns.div_euclid(10_000_000_000) * 10_000;
            all.entry((start, point.slot.number)).or_default().push(*point);
        }
        all.into_iter()
            .map(|((start_ms, _), points)| {
                let line = scene.line(&points[0]);
                let mut sum = exact::Sum::default();
                points.iter().for_each(|point| sum.add(point.value));
                let values = points.iter().map(|point| point.value.to_f64());
                serde_json::json!({
                    "name": line["name"], "tags": line["tags"], "client": "client-000000", "series": 1,
                    "window_s": 10, "start_ms": start_ms, "count": points.len(),
                    "sum": sum.rounded(points[0].value.decimals),
                    "min": values.clone().fold(f64::INFINITY, f64::min),
                    "max": values.fold(f64::NEG_INFINITY, f64::max),
                    "revision": 0, "incomplete": false, "unchecked": false,
                })
            })
            .collect()
    }

    fn mark(scene: &Scene, seconds: i64) -> serde_json::Value {
        serde_json::json!({"era": 0, "floor_ms": 0, "mark_ms": scene.plan.epoch_ns / 1_000_000 + seconds * 1_000})
    }

    fn compare(expected: &Expected, lines: &[serde_json::Value], options: &Options) -> Verdict {
        lines::compare_windows(expected, options, text(lines).as_bytes()).expect("compared")
    }

    fn scene(batches: u64) -> (Scene, Vec<Point>) {
        let mut scene = Scene::new();
        (0..batches).for_each(|number| scene.acknowledged(number));
        let points = (0..batches).flat_map(|number| scene.points(number)).collect();
        (scene, points)
    }

    #[test]
    fn windows_that_have_not_closed_are_left_out_and_counted() {
        let (mut scene, points) = scene(25);
        let all = windows(&scene, &points);
        let expected = scene.expected();
        let closed: Vec<_> = all.iter().take(12).cloned().collect();
        for mark_at in [None, Some(20), Some(29)] {
            let mut lines = closed.clone();
            lines.extend(mark_at.map(|at| mark(&scene, at)));
            let verdict = compare(&expected, &lines, &options());
            has(&verdict, &[]);
            assert_eq!(verdict.total_of("points in closed windows"), 210);
            assert_eq!(verdict.total_of("points in windows not closed yet"), 40);
        }
        // The mark says that the last ones have closed, too.
        let mut lines = closed;
        lines.push(mark(&scene, 30));
        has(&compare(&expected, &lines, &options()), &[(FaultKind::Missing, 4)]);
        let none = compare(&expected, &[], &options());
        has(&none, &[]);
        assert!(none.to_text().contains("no window has closed yet, so nothing was compared"));
    }

    #[test]
    fn every_figure_counts_and_the_last_revision_is_what_holds() {
        let (mut scene, points) = scene(10);
        let honest = windows(&scene, &points);
        let expected = scene.expected();
        has(&compare(&expected, &honest, &options()), &[]);
        let count = honest[2]["count"].as_u64().expect("a count");
        for (field, to, kind) in [
            ("count", (count - 1).into(), FaultKind::Missing),
            ("count", (count + 1).into(), FaultKind::Doubled),
            ("sum", serde_json::Value::Null, FaultKind::Altered),
            ("sum", 1.5.into(), FaultKind::Altered),
            ("min", 1.5.into(), FaultKind::Altered),
            ("max", 1.5.into(), FaultKind::Altered),
            ("client", "mallory".into(), FaultKind::Altered),
        ] {
            let mut wrong = honest[2].clone();
            wrong[field] = to;
            let mut lines = honest.clone();
            lines[2] = wrong.clone();
            let verdict = compare(&expected, &lines, &options());
            has(&verdict, &[(kind, 1)]);
            if field == "client" {
                continue;
            }
            assert!(verdict.first[0].series.contains("s42-host-000000"));
            // Mended by a later revision; or spoiled by one.
            lines.push(honest[2].clone());
            has(&compare(&expected, &lines, &options()), &[]);
            lines.push(wrong);
            has(&compare(&expected, &lines, &options()), &[(kind, 1)]);
        }
        let mut lines = honest.clone();
        lines[1]["start_ms"] = 0.into();
        has(&compare(&expected, &lines, &options()), &[(FaultKind::Missing, 1), (FaultKind::Foreign, 1)]);
        let mut lines = honest.clone();
        lines[1]["series"] = 2.into();
        lines[1]["name"] = "a rule's".into();
        lines.push(honest[1].clone());
        has(&compare(&expected, &lines, &options()), &[]);
    }

    #[test]
    fn an_unknown_batch_makes_a_range() {
        let mut scene = Scene::new();
        scene.acknowledged(0);
        scene.make(1);
        scene.sent(1, 1);
        scene.make(2);
        let refused = scene.sent(2, 1);
        scene.writer.refused(refused, 503);
        let expected = scene.expected();
        let sent = |scene: &Scene, numbers: &[u64]| -> Vec<Point> {
            numbers.iter().flat_map(|&number| scene.points(number)).collect()
        };
        has(&compare(&expected, &windows(&scene, &sent(&scene, &[0])), &options()), &[]);
        let both = sent(&scene, &[0, 1]);
        has(&compare(&expected, &windows(&scene, &both), &options()), &[]);
        has(&compare(&expected, &windows(&scene, &both[..14]), &options()), &[]);
        let doubled = compare(&expected, &windows(&scene, &sent(&scene, &[0, 1, 2])), &options());
        has(&doubled, &[(FaultKind::Doubled, 4)]);
        assert!(doubled.to_text().contains("points more, whose fate is unknown or late"), "{}", doubled.to_text());
        // As many as may be, but not those.
        let mut other = both.clone();
        other[15].value.mantissa += 1;
        has(&compare(&expected, &windows(&scene, &other), &options()), &[(FaultKind::Altered, 1)]);
    }

    #[test]
    fn a_point_beyond_the_horizon_may_be_in_its_window_or_not() {
        let (mut scene, points) = scene(10);
        let expected = scene.expected();
        let fewer = windows(&scene, &points[..99]);
        has(&compare(&expected, &fewer, &options()), &[(FaultKind::Missing, 1)]);
        // By the ledger's clock all this came long after its timestamps.
        let real = Options { horizon_ms: 300_000, ..options() };
        let verdict = compare(&expected, &fewer, &real);
        has(&verdict, &[]);
        assert_eq!(verdict.total_of("points beyond the horizon or too early"), 100);
    }

    #[test]
    fn repeats_in_an_unchecked_window_may_count_and_in_no_other() {
        let mut scene = Scene::new();
        scene.make(0);
        let first = scene.sent(0, 1);
        scene.writer.unknown(first, NoAnswer::Timeout);
        let again = scene.sent(0, 1);
        scene.writer.acknowledged(again, 204);
        let expected = scene.expected();
        let points: Vec<Point> = [scene.points(0), scene.points(0)].concat();
        let mut lines = windows(&scene, &points);
        has(&compare(&expected, &lines, &options()), &[(FaultKind::Doubled, 4)]);
        for line in &mut lines {
            line["unchecked"] = true.into();
        }
        has(&compare(&expected, &lines, &options()), &[]);
        lines[0]["count"] = 77.into();
        has(&compare(&expected, &lines, &options()), &[(FaultKind::Doubled, 1)]);
    }
}
