//! What `verify` must say of records in Kafka: ids, identities, partitions and revisions, on a few points.

use serde_json::{Value, json};

use super::exact::Sum;
use super::expected::Expected;
use super::tests::{Scene, has};
use super::verdict::{FaultKind, Verdict};
use super::{Options, kafka};
use crate::ledger::NoAnswer;

/// As kcat prints it; `id` and `point` are headers.
fn record(partition: u32, offset: u64, id: &str, point: Option<&str>, payload: &Value) -> Value {
    let mut headers = vec![json!("id"), json!(id)];
    headers.extend(point.iter().flat_map(|point| [json!("point"), json!(point)]));
    headers.extend([json!("empty"), Value::Null]);
    json!({
        "topic": "metrics-raw", "partition": partition, "offset": offset, "tstype": "create", "ts": 1, "broker": 1,
        "headers": headers, "key": "client-000000", "payload": payload.to_string(),
    })
}

/// A line of the log as the sink writes it.
fn payload(line: &Value) -> Value {
    json!({
        "name": line["name"], "client_id": line["client_id"], "tags": line["tags"], "value": line["value"],
        "timestamp": line["timestamp_ns"].as_i64().expect("a time").div_euclid(1_000_000),
        "timestamp_ns": line["timestamp_ns"],
    })
}

/// Every line once, in one partition.
fn records(lines: &[Value]) -> Vec<Value> {
    let all = lines.iter().enumerate();
    all.map(|(n, line)| record(0, n as u64, &format!("id-{n}"), Some(&format!("point-{n}")), &payload(line))).collect()
}

fn text(records: &[Value]) -> String {
    records.iter().map(|record| format!("{record}\n")).collect()
}

fn compare(expected: &Expected, records: &[Value]) -> Verdict {
    kafka::compare_points(expected, &Options::default(), text(records).as_bytes()).expect("compared")
}

/// One batch that was sent twice: unanswered, and acknowledged.
fn retried() -> (Scene, Vec<Value>) {
    let mut scene = Scene::new();
    scene.make(0);
    let first = scene.sent(0, 1);
    scene.writer.unknown(first, NoAnswer::Timeout);
    let again = scene.sent(0, 1);
    scene.writer.acknowledged(again, 204);
    let lines = scene.lines(&[0]);
    (scene, lines)
}

#[test]
fn a_record_that_came_again_counts_once() {
    let mut scene = Scene::new();
    scene.acknowledged(0);
    let expected = scene.expected();
    let mut all = records(&scene.lines(&[0]));
    for n in 4..10 {
        let mut again = all[n].clone();
        again["offset"] = (n + 6).into();
        all.push(again);
    }
    let verdict = compare(&expected, &all);
    has(&verdict, &[]);
    assert_eq!(verdict.total_of("points found"), 16);
    assert_eq!(verdict.total_of("points found and sent"), 10);
    assert_eq!(verdict.total_of("records with an id seen before"), 6);
    // The same id with another value, another time, another client.
    for (field, to) in [("value", json!(1)), ("timestamp_ns", json!(5)), ("client_id", json!("mallory"))] {
        let mut other = payload(&scene.lines(&[0])[4]);
        other[field] = to;
        let mut lied = all.clone();
        lied[10]["payload"] = other.to_string().into();
        has(&compare(&expected, &lied), &[(FaultKind::Altered, 1)]);
    }
}

#[test]
fn a_second_id_needs_a_clients_retry_and_its_identity() {
    let (mut scene, lines) = retried();
    let expected = scene.expected();
    let once = records(&lines);
    let with = |id: &str, point: Option<&str>| {
        let mut all = once.clone();
        all.push(record(0, 10, id, point, &payload(&lines[3])));
        compare(&expected, &all)
    };
    let verdict = with("id-99", Some("point-3"));
    has(&verdict, &[]);
    assert_eq!(verdict.total_of("repeats by retries"), 1);
    let other = with("id-99", Some("point-99"));
    has(&other, &[(FaultKind::Doubled, 1)]);
    assert!(other.to_text().contains("found another identity, point-99"), "{}", other.to_text());
    has(&with("id-99", None), &[(FaultKind::Doubled, 1)]);
    has(&with("id-99", Some("point-4")), &[(FaultKind::Altered, 1)]);

    // The client did not send it twice.
    let mut scene = Scene::new();
    scene.acknowledged(0);
    let mut all = once.clone();
    all.push(record(0, 10, "id-99", Some("point-3"), &payload(&lines[3])));
    has(&compare(&scene.expected(), &all), &[(FaultKind::Doubled, 1)]);
}

#[test]
fn two_points_with_one_identity_are_caught() {
    let mut scene = Scene::new();
    scene.acknowledged(0);
    let mut all = records(&scene.lines(&[0]));
    all[7]["headers"][3] = "point-2".into();
    has(&compare(&scene.expected(), &all), &[(FaultKind::Altered, 1)]);
}

#[test]
fn order_holds_in_a_partition() {
    let mut scene = Scene::new();
    scene.acknowledged(0);
    scene.acknowledged(1);
    let expected = scene.expected();
    let mut all = records(&scene.lines(&[1, 0]));
    assert!(compare(&expected, &all).count_of(FaultKind::OutOfOrder) > 0);
    let any = Options { any_order: true, ..Options::default() };
    has(&kafka::compare_points(&expected, &any, text(&all).as_bytes()).expect("compared"), &[]);
    // Between partitions there is none.
    all[10..].iter_mut().for_each(|record| record["partition"] = 1.into());
    has(&compare(&expected, &all), &[]);
}

#[test]
fn what_kcat_did_not_print_or_printed_twice_is_told_in_a_sentence() {
    let mut scene = Scene::new();
    scene.acknowledged(0);
    let expected = scene.expected();
    let all = records(&scene.lines(&[0]));
    let mut without_id = all.clone();
    without_id[2]["headers"] = Value::Null;
    let mut no_json = all.clone();
    no_json[2]["payload"] = "no".into();
    let mut empty = all.clone();
    empty[2]["payload"] = Value::Null;
    let mut other = all.clone();
    other[2]["payload"] = "{\"value\":1}".into();
    let twice = [&all[..], &all[..]].concat();
    for (records, part) in [
        (&without_id, "the record at offset 2 of metrics-raw/0 has no header `id`"),
        (&no_json, "the record at offset 2 of metrics-raw/0 is not a point as JSON"),
        (&empty, "the record at offset 2 of metrics-raw/0 is not a point as JSON"),
        (&other, "is not a point: it has no `name` or no `timestamp`"),
        (&twice, "offset 0 of metrics-raw/0 comes after offset 9: the topic was read twice"),
        (&scene.lines(&[0]), "line 1 is no record as JSON"),
    ] {
        let error = kafka::compare_points(&expected, &Options::default(), text(records).as_bytes()).err();
        assert!(error.as_ref().is_some_and(|error| error.to_string().contains(part)), "{part}: {error:?}");
    }
}

/// The window of the first series, whose points are all in one batch, as a record says it; and how many points that are.
fn first_window(scene: &Scene) -> (Value, usize) {
    let lines = scene.lines(&[0]);
    let of_series: Vec<&Value> = lines.iter().filter(|line| line["name"] == lines[0]["name"]).collect();
    let start_ms = of_series[0]["timestamp_ns"].as_i64().expect("a time").div_euclid(10_000_000_000) * 10_000;
    let points = scene.points(0);
    let mut sum = Sum::default();
    points.iter().filter(|point| point.slot == points[0].slot).for_each(|point| sum.add(point.value));
    let values = || of_series.iter().filter_map(|line| line["value"].as_f64());
    let window = json!({
        "name": lines[0]["name"], "client_id": "client-000000", "rule": null, "tags": lines[0]["tags"],
        "start_ms": start_ms, "window_s": 10, "era": 0, "revision": 0, "series": 1, "count": of_series.len(),
        "sum": sum.rounded(points[0].value.decimals),
        "min": values().fold(f64::INFINITY, f64::min), "max": values().fold(f64::NEG_INFINITY, f64::max),
    });
    (window, of_series.len())
}

fn window_options() -> Options {
    Options { horizon_ms: u64::MAX / 4_000_000, window_lengths_s: vec![10], ..Options::default() }
}

fn with(window: &Value, members: &[(&str, usize)]) -> Value {
    let mut window = window.clone();
    members.iter().for_each(|&(name, value)| window[name] = value.into());
    window
}

#[test]
fn the_greatest_revision_is_what_holds_and_one_revision_says_one_thing() {
    let mut scene = Scene::new();
    scene.acknowledged(0);
    let (expected, options) = (scene.expected(), window_options());
    let (whole, all) = first_window(&scene);
    let window =
        |era: usize, revision: usize, count| with(&whole, &[("era", era), ("revision", revision), ("count", count)]);
    let others = FaultKind::Missing;
    // What came, how many windows beside the three of the other series are wrong, and what is wrong with it.
    for (windows, missing, altered, again, older) in [
        (vec![(0, 0, all)], 3, 0, 0, 0),
        (vec![(0, 0, all), (0, 0, all)], 3, 0, 1, 0),
        (vec![(0, 0, all - 1), (0, 1, all)], 3, 0, 0, 0),
        (vec![(0, 1, all), (0, 0, all - 1)], 3, 0, 0, 1),
        (vec![(1, 0, all), (0, 7, all - 1)], 3, 0, 0, 1),
        (vec![(0, 0, all), (1, 0, all - 1)], 4, 0, 0, 0),
        (vec![(0, 0, all - 1), (0, 0, all)], 3, 1, 1, 0),
    ] {
        let records: Vec<Value> = windows
            .iter()
            .enumerate()
            .map(|(n, (era, revision, count))| record(0, n as u64, "id", None, &window(*era, *revision, *count)))
            .collect();
        let verdict = kafka::compare_windows(&expected, &options, text(&records).as_bytes()).expect("compared");
        assert_eq!(verdict.count_of(others), missing, "{windows:?}: {}", verdict.to_text());
        assert_eq!(verdict.count_of(FaultKind::Altered), altered, "{windows:?}: {}", verdict.to_text());
        assert_eq!(verdict.total_of("revisions sent again"), again, "{windows:?}");
        assert_eq!(verdict.total_of("older revisions passed over"), older, "{windows:?}");
    }
}

#[test]
fn a_window_in_parts_is_one_when_all_of_them_are_there() {
    let mut scene = Scene::new();
    scene.acknowledged(0);
    let (expected, options) = (scene.expected(), window_options());
    let (whole, all) = first_window(&scene);
    assert!(all >= 2, "enough to divide");
    let part = |part: usize, parts: usize, count: usize| {
        let document = with(&whole, &[("part", part), ("parts", parts), ("count", count)]);
        if part == 1 { document } else { with(&document, &[("sum", 0)]) }
    };
    let compared = |parts: &[Value]| {
        let records: Vec<Value> =
            parts.iter().enumerate().map(|(n, part)| record(0, n as u64, "id", None, part)).collect();
        kafka::compare_windows(&expected, &options, text(&records).as_bytes())
    };
    for (parts, missing) in [
        // The three windows of the other series are missing.
        (vec![part(1, 2, 1), part(2, 2, all - 1)], 3),
        (vec![part(2, 2, all - 1), part(2, 2, all - 1), part(1, 2, 1)], 3),
        (vec![part(1, 4, 1), part(2, 2, all - 1), part(1, 2, 1)], 3),
        // Of nothing whole: no window is known to be closed.
        (vec![part(1, 2, 1), part(3, 4, 1)], 0),
    ] {
        let verdict = compared(&parts).expect("compared");
        assert_eq!(verdict.count_of(FaultKind::Missing), missing, "{parts:?}: {}", verdict.to_text());
        assert_eq!(verdict.count_of(FaultKind::Altered), 0, "{parts:?}: {}", verdict.to_text());
    }
    let wrong = compared(&[part(1, 2, 1), part(2, 2, all)]).expect("compared");
    assert_eq!(wrong.count_of(FaultKind::Missing), 3, "{}", wrong.to_text());
    assert!(wrong.count_of(FaultKind::Doubled) + wrong.count_of(FaultKind::Altered) > 0, "{}", wrong.to_text());
    assert!(compared(&[part(3, 2, 1)]).is_err(), "no such part");
}
