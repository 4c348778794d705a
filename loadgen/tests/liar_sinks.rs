//! `verify` against what sinks would hold of a server that lies about one point in a million (`common/liar.rs`): as kcat
//! prints Kafka's topics, and as a small server answers InfluxDB's queries.
//!
//! Each lie must be caught in points and windows of both, and an honest server found honest. InfluxDB keeps no order of
//! arrival: a lie about it is caught there in windows only.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use common::liar::{Kind, Liar, Lie, Lines, Window, judge, kcat, options, plan, send};
use metricstream_loadgen::plan::Protocol;
use metricstream_loadgen::verify::expected::Expected;
use metricstream_loadgen::verify::influx::{self, Schema, Target};
use metricstream_loadgen::verify::kafka;
use metricstream_loadgen::verify::verdict::FaultKind;
use metricstream_loadgen::workload::client;
use serde_json::{Value, json};

/// What was sent, and the liar that took it.
fn told(lie: Lie) -> (Expected, Liar) {
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = dir.path().join("ledger");
    let mut liar = Liar::new(lie);
    send(&plan(Protocol::Line), &ledger, |client, body| liar.take(&client::name(client), body));
    (Expected::load(&[&ledger]).expect("a ledger"), liar)
}

/// The windows as the aggregate topic has them.
fn kafka_windows(liar: &Liar) -> Vec<u8> {
    let mut out = Vec::new();
    for (n, window) in liar.closed_windows().into_iter().enumerate() {
        let Window { client, name, tags, length_s, start_ms, count, sum, min, max } = window;
        let payload = json!({
            "name": name, "client_id": client, "rule": null, "tags": tags, "start_ms": start_ms, "window_s": length_s,
            "era": 1, "revision": 0, "incomplete": false, "unchecked": false, "series": 1, "count": count, "sum": sum,
            "min": min, "max": max,
        });
        let headers = [("id", format!("0-a-1-{n}"))];
        writeln!(out, "{}", kcat("metrics-aggregated", client, n, &headers, &payload.to_string())).expect("memory");
    }
    out
}

/// Answers every request with the lines that `answer` makes of the statement, each as a chunk of its own, and a status.
/// Without a last chunk, when `whole` says no.
fn serve(answer: impl Fn(&str) -> (u16, Vec<Value>, bool) + Send + 'static) -> String {
    serve_head(move |_, statement| answer(statement))
}

/// The same with the request's whole head.
fn serve_head(answer: impl Fn(&str, &str) -> (u16, Vec<Value>, bool) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("accepted"));
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                assert!(stream.read_line(&mut head).expect("a head") > 0);
            }
            let target = head.split(' ').nth(1).expect("a target");
            assert!(target.starts_with("/query?") && target.contains("chunked=true") && target.contains("epoch=ns"));
            let statement = target.split(['?', '&']).find_map(|pair| pair.strip_prefix("q=")).expect("a statement");
            let (status, lines, whole) = answer(&head, &decoded(statement));
            let out = stream.get_mut();
            let head = format!("HTTP/1.1 {status} Told\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n");
            let mut bytes = head.into_bytes();
            for line in lines {
                let line = format!("{line}\n");
                bytes.extend_from_slice(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes());
            }
            if whole {
                bytes.extend_from_slice(b"0\r\n\r\n");
            }
            out.write_all(&bytes).expect("answered");
        }
    });
    url
}

fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex = [bytes.next().expect("a digit"), bytes.next().expect("a digit")];
                u8::from_str_radix(std::str::from_utf8(&hex).expect("digits"), 16).expect("hexadecimal")
            }
            byte => byte,
        });
    }
    String::from_utf8(out).expect("text")
}

/// Series in chunks of some rows, as InfluxDB answers with `chunked=true`.
fn chunks(all: Vec<(Value, Vec<&str>, Vec<Value>)>) -> Vec<Value> {
    let mut lines = Vec::new();
    for (head, columns, rows) in all {
        let parts: Vec<&[Value]> = rows.chunks(100).collect();
        for (n, values) in parts.iter().enumerate() {
            let mut series = json!({"name": head["name"], "tags": head["tags"], "columns": columns, "values": values});
            if n + 1 < parts.len() {
                series["partial"] = true.into();
            }
            lines.push(json!({"results": [{"statement_id": 0, "series": [series], "partial": true}]}));
        }
    }
    if let Some(last) = lines.last_mut() {
        last["results"][0].as_object_mut().expect("an object").remove("partial");
    }
    lines
}

/// Name, tags of the schema and of the point.
fn influx_series(
    schema: Schema,
    measurement: &str,
    client: &str,
    name: &str,
    tags: &BTreeMap<String, String>,
) -> Value {
    let mut all: BTreeMap<&str, &str> = tags.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    all.insert("client_id", client);
    // Another series of the measurement has it.
    all.insert("datacenter", "");
    match schema {
        Schema::Platform => {
            all.insert("metric_name", name);
            json!({"name": measurement, "tags": all})
        }
        Schema::Natural => json!({"name": name, "tags": all}),
    }
}

fn influx_points(liar: &Liar, schema: Schema) -> Vec<Value> {
    let mut rows: Vec<Vec<(i64, f64)>> = vec![Vec::new(); liar.series.len()];
    liar.points.iter().for_each(|point| rows[point.series as usize].push((point.timestamp_ns, point.value)));
    let all = liar.series.iter().zip(&mut rows).map(|((client, name, tags), rows)| {
        rows.sort_by_key(|(time, _)| *time);
        let rows = rows.iter().map(|(time, value)| json!([time, value])).collect();
        (influx_series(schema, "server_metrics", client, name, tags), vec!["time", "value"], rows)
    });
    chunks(all.collect())
}

fn influx_windows(liar: &Liar, schema: Schema) -> Vec<Value> {
    let mut all: BTreeMap<String, (Value, Vec<&str>, Vec<Value>)> = BTreeMap::new();
    let columns = || vec!["time", "count", "sum", "min", "max", "series"];
    for window in liar.closed_windows() {
        let mut head = influx_series(schema, "server_metrics_windows", window.client, window.name, window.tags);
        head["tags"]["window"] = format!("{}s", window.length_s).into();
        head["tags"]["rule"] = "".into();
        let time = window.start_ms * 1_000_000;
        let row = json!([time, window.count, window.sum, window.min, window.max, 1]);
        all.entry(head.to_string()).or_insert_with(|| (head, columns(), Vec::new())).2.push(row);
    }
    // What a continuous query makes beside them.
    let tags = json!({"client_id": "client-000000", "host": "h", "window": "", "rule": ""});
    let head = json!({"name": "server_metrics_windows", "tags": tags});
    all.insert(String::new(), (head, columns(), vec![json!([5, 1, 1.5, 1.5, 1.5, null])]));
    chunks(all.into_values().collect())
}

fn target(url: &str, schema: Schema) -> Target<'_> {
    Target { url, database: "metrics", retention_policy: "raw", schema, credentials: None, tls_ca: None }
}

fn catch(lie: Lie) {
    let (expected, liar) = told(lie);
    let told = |verdict: Result<_, metricstream_loadgen::commands::Failure>| {
        judge(&verdict.unwrap_or_else(|error| panic!("{lie:?}: {error}")), lie);
    };
    told(kafka::compare_points(&expected, &options(), Lines::new(&liar, Kind::Kafka)));
    told(kafka::compare_windows(&expected, &options(), &kafka_windows(&liar)[..]));
    let schema = if lie == Lie::Drop { Schema::Natural } else { Schema::Platform };
    let windows = influx_windows(&liar, schema);
    let points = influx_points(&liar, schema);
    drop(liar);
    let url = serve(move |statement| {
        let (fields, from) = statement.split_once(" FROM ").expect("a query");
        let measurement = match schema {
            Schema::Natural => "/.*/",
            Schema::Platform if fields == "SELECT \"value\"" => "\"server_metrics\"",
            Schema::Platform => "\"server_metrics_windows\"",
        };
        assert_eq!(from, format!("\"metrics\".\"raw\".{measurement} GROUP BY *"));
        (200, if fields == "SELECT \"value\"" { points.clone() } else { windows.clone() }, true)
    });
    told(influx::compare_windows(&expected, &options(), &target(&url, schema)));
    if lie != Lie::Reorder {
        told(influx::compare_points(&expected, &options(), &target(&url, schema)));
    }
}

#[test]
fn honest_sinks_are_found_honest() {
    catch(Lie::None);
}

#[test]
fn one_point_in_a_million_dropped_is_caught_in_each_sink() {
    catch(Lie::Drop);
}

#[test]
fn one_point_in_a_million_doubled_is_caught_in_each_sink() {
    catch(Lie::Double);
}

#[test]
fn one_point_in_a_million_reordered_is_caught_where_there_is_order() {
    catch(Lie::Reorder);
}

#[test]
fn one_point_in_a_million_altered_by_a_millionth_is_caught_in_each_sink() {
    catch(Lie::Alter);
}

/// What a crash leaves: some records again, under their ids. And what must not be: an id for two of them.
#[test]
fn records_that_came_again_count_once_and_an_id_of_two_is_caught() {
    let (expected, liar) = told(Lie::None);
    let again = 5_000;
    let mut text = Vec::new();
    for n in (0..liar.points.len()).chain(liar.points.len() - again..liar.points.len()) {
        liar.line(n, Kind::Kafka, &mut text);
    }
    // The repeats have places of their own.
    let text = String::from_utf8(text).expect("text");
    let mut records: Vec<String> = text.lines().map(str::to_string).collect();
    for (n, record) in records.iter_mut().enumerate() {
        let start = record.find("\"offset\":").expect("an offset");
        let end = start + record[start..].find(',').expect("more");
        record.replace_range(start..end, &format!("\"offset\":{n}"));
    }
    let compare = |records: &[String]| {
        kafka::compare_points(&expected, &options(), records.join("\n").as_bytes()).expect("compared")
    };
    let verdict = compare(&records);
    assert!(verdict.ok, "{}", verdict.to_text());
    assert_eq!(verdict.total_of("records with an id seen before"), again as u64);
    // The 617,284th takes the id of the one before.
    let at = common::liar::VICTIM;
    records[at] = records[at].replace(&format!("\"0-0-1-{at}\""), &format!("\"0-0-1-{}\"", at - 1));
    let verdict = compare(&records);
    assert_eq!(verdict.count_of(FaultKind::Missing), 1, "{}", verdict.to_text());
    assert_eq!(verdict.count_of(FaultKind::Altered), 1, "{}", verdict.to_text());
    assert!(verdict.to_text().contains("expected what came under the id 0-0-1-617282 before"), "{}", verdict.to_text());
}

fn nothing_sent() -> Expected {
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = dir.path().join("ledger");
    let mut writer = metricstream_loadgen::ledger::Writer::create(&ledger, &plan(Protocol::Line)).expect("a ledger");
    writer.flush().expect("written");
    Expected::load(&[&ledger]).expect("a ledger")
}

#[test]
fn an_answer_of_influxdb_that_is_not_whole_or_an_error_is_told_and_never_taken_for_missing_points() {
    let expected = nothing_sent();
    let series = json!({"name": "server_metrics", "tags": {"metric_name": "m"}, "columns": ["time", "value"], "values": [[1, 2]]});
    let result = |part: Value| json!({"results": [part]});
    for (status, lines, whole, part) in [
        (200, vec![result(json!({"statement_id": 0}))], true, ""),
        (200, vec![result(json!({"error": "database not found: metrics"}))], true, "database not found: metrics"),
        (200, vec![json!({"error": "timeout"})], true, "timeout"),
        (401, vec![json!({"error": "authorization failed"})], true, "401"),
        (200, vec![result(json!({"series": [series], "partial": true}))], true, "ends before its last chunk"),
        (200, vec![result(json!({"series": [series], "partial": true}))], false, "cannot be read"),
        (200, vec![json!("no result")], true, "it answers no result"),
        (
            200,
            vec![result(json!({"series": [{"name": "m", "columns": ["time"], "values": [[1]]}]}))],
            true,
            "without the column value",
        ),
        (
            200,
            vec![result(json!({"series": [{"name": "m", "columns": ["time", "value"], "values": [[1.5, 1]]}]}))],
            true,
            "1.5 where a whole number",
        ),
    ] {
        let shown = format!("{lines:?}");
        let url = serve(move |_| (status, lines.clone(), whole));
        match influx::compare_points(&expected, &options(), &target(&url, Schema::Platform)) {
            Ok(verdict) => assert!(part.is_empty() && verdict.ok, "{shown}: {}", verdict.to_text()),
            Err(error) => assert!(!part.is_empty() && error.to_string().contains(part), "{shown}: {error}"),
        }
    }
}

#[test]
fn credentials_go_with_the_query() {
    let expected = nothing_sent();
    let url = serve_head(|head, _| {
        let known = head.to_ascii_lowercase().contains("authorization: basic dtpw\r\n");
        (if known { 200 } else { 401 }, vec![json!({"results": [{"statement_id": 0}]})], true)
    });
    for (credentials, is_known) in [(None, false), (Some(("u", "p")), true), (Some(("u", "q")), false)] {
        let credentials = credentials.map(|(name, password)| (name.to_string(), password.to_string()));
        let target = Target { credentials, ..target(&url, Schema::Platform) };
        assert_eq!(influx::compare_points(&expected, &options(), &target).is_ok(), is_known);
    }
}
