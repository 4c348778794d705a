//! `metricstream log verify | dump | repair | cursors | replay`: the logs on disk, without a server.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use metricstream_shards::log::{AGGREGATE_LOG_ID, DumpRecord, RecordKind, Report, dump, repair, verify};
use metricstream_shards::point::{Kind, NO_TIMESTAMP, series_key};
use serde_json::{Value, json};

use crate::args::{Exit, LogArgs, LogCommand, LogName};
use crate::config::Config;
use crate::data_dir;
use crate::forward;
use crate::reducer::encode::{EraRecord, MarkRecord, decode_aggregates};
use crate::reducer::query::window_json;

struct Target {
    name: String,
    dir: PathBuf,
    log_id: u32,
}

pub fn run(command: &LogCommand, config: &Config) -> Exit {
    let args = match command {
        LogCommand::Verify(args) | LogCommand::Dump(args) => args,
        LogCommand::Repair { log, .. } => log,
        LogCommand::Replay(args) => return forward::replay::run(args, config),
        LogCommand::Cursors { json, forget, .. } => {
            // `--data-dir` stands in the configuration by now.
            return match forward::command::run(config, &config.node.data_dir, *json, forget.as_deref()) {
                Ok(exit) => exit,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
                Err(error) => {
                    eprintln!("{error}");
                    Exit::Failure
                }
            };
        }
    };
    let root = args.data_dir.clone().unwrap_or_else(|| config.node.data_dir.clone());
    let targets = match targets(&root, args.shard) {
        Ok(targets) => targets,
        Err(error) => {
            eprintln!("{} holds no logs: {error}", root.display());
            return Exit::Failure;
        }
    };
    let node_id = data_dir::read_node_id(&root);
    let done = match command {
        LogCommand::Verify(args) => verify_all(&targets, node_id, args),
        LogCommand::Dump(args) => dump_all(&targets, node_id, args),
        LogCommand::Repair { log, dry_run } => {
            // A running server owns its logs' tails.
            match data_dir::DataDir::open(&root) {
                Err(error) => {
                    eprintln!("{error}");
                    return Exit::Refused;
                }
                Ok(_lock) if *dry_run => verify_all(&targets, node_id, log).map(|_| Exit::Ok),
                Ok(_lock) => repair_all(&targets, node_id),
            }
        }
        LogCommand::Cursors { .. } | LogCommand::Replay(_) => unreachable!("answered above"),
    };
    match done {
        Ok(exit) => exit,
        // `metricstream log dump | head` is no error; a check that nobody heard to its end has not passed.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe && matches!(command, LogCommand::Dump(_)) => Exit::Ok,
        Err(error) => {
            eprintln!("{error}");
            Exit::Failure
        }
    }
}

fn targets(root: &std::path::Path, wanted: Option<LogName>) -> io::Result<Vec<Target>> {
    let shard = |n: u32| Target { name: n.to_string(), dir: data_dir::shard_log(root, n), log_id: n };
    let aggregate =
        || Target { name: "aggregate".into(), dir: data_dir::aggregate_log(root), log_id: AGGREGATE_LOG_ID };
    Ok(match wanted {
        Some(LogName::Shard(n)) => vec![shard(n)],
        Some(LogName::Aggregate) => vec![aggregate()],
        None => data_dir::shards(root)?.into_iter().map(shard).chain([aggregate()]).collect(),
    })
}

fn verify_all(targets: &[Target], node_id: u128, args: &LogArgs) -> io::Result<Exit> {
    let mut exit = Exit::Ok;
    let mut reports = Vec::new();
    let mut out = io::stdout().lock();
    for target in targets {
        let report = verify(&target.dir, target.log_id, node_id)?;
        if !report.is_clean() {
            exit = Exit::Damage;
        }
        if args.json {
            reports.push(report_json(&target.name, &report));
        } else {
            print_report(&mut out, &target.name, &report)?;
        }
    }
    if args.json {
        writeln!(out, "{}", json!({"clean": exit == Exit::Ok, "logs": reports}))?;
    } else {
        writeln!(out, "{}", if exit == Exit::Ok { "clean" } else { "DAMAGED: see above" })?;
    }
    Ok(exit)
}

fn report_json(name: &str, report: &Report) -> Value {
    json!({
        "log": name, "clean": report.is_clean(), "segments": report.segments, "blocks": report.blocks,
        "records": report.records, "points": report.points, "bytes": report.bytes,
        "points_lost": report.points_lost, "points_unreadable": report.points_unreadable,
        "torn_tails": report.torn.len(),
        "damage": report.damage.iter().map(|d| json!({
            "segment": d.segment_id, "from": d.from, "to": d.to, "points": d.points,
        })).collect::<Vec<_>>(),
        "notes": report.notes,
    })
}

fn print_report(out: &mut impl Write, name: &str, report: &Report) -> io::Result<()> {
    writeln!(
        out,
        "log {name}: {} segments, {} blocks, {} records, {} points, {} bytes",
        report.segments, report.blocks, report.records, report.points, report.bytes
    )?;
    for position in &report.torn {
        writeln!(out, "  torn tail (no damage): segment {} at {}", position.segment_id, position.offset)?;
    }
    for d in &report.damage {
        writeln!(
            out,
            "  damage: segment {}, bytes {} to {}, {} points known to be lost",
            d.segment_id, d.from, d.to, d.points
        )?;
    }
    if report.points_unreadable > 0 {
        writeln!(out, "  {} points cannot be read although their blocks are sound", report.points_unreadable)?;
    }
    for note in &report.notes {
        writeln!(out, "  note: {note}")?;
    }
    Ok(())
}

fn repair_all(targets: &[Target], node_id: u128) -> io::Result<Exit> {
    for target in targets {
        let done = repair(&target.dir, target.log_id, node_id)?;
        for (segment, offset, bytes) in &done.zeroed {
            println!("log {}: zeroed a torn tail of {bytes} bytes in segment {segment} at {offset}", target.name);
        }
        for path in &done.set_aside {
            println!("log {}: damaged bytes copied to {}", target.name, path.display());
        }
        if done.zeroed.is_empty() && done.set_aside.is_empty() {
            println!("log {}: nothing to do", target.name);
        }
    }
    Ok(Exit::Ok)
}

fn dump_all(targets: &[Target], node_id: u128, args: &LogArgs) -> io::Result<Exit> {
    let mut out = BufWriter::with_capacity(1 << 20, io::stdout().lock());
    let mut exit = Exit::Ok;
    for target in targets {
        let mut written = Ok(());
        let report = dump(&target.dir, target.log_id, node_id, |record| {
            let ms = record.stamp_ns.div_euclid(1_000_000);
            if written.is_ok() && args.from.is_none_or(|from| ms >= from) && args.to.is_none_or(|to| ms < to) {
                written = dump_record(&mut out, target, &record);
            }
        })?;
        written?;
        for d in &report.damage {
            eprintln!("log {}: damage in segment {}, bytes {} to {}", target.name, d.segment_id, d.from, d.to);
            exit = Exit::Damage;
        }
    }
    out.flush()?;
    Ok(exit)
}

fn dump_record(out: &mut impl Write, target: &Target, record: &DumpRecord<'_>) -> io::Result<()> {
    match (&record.batch, record.kind) {
        (Some((envelope, batch)), _) => {
            for n in 0..batch.len() {
                let Some(parsed) = record.key(n).and_then(series_key::parse) else { continue };
                let tags: BTreeMap<&str, &str> = parsed.tags.iter().copied().collect();
                let bits = batch.bits[n];
                let (kind, value) = match Kind::from_u8(batch.kinds[n]) {
                    Some(Kind::Float) => ("float", json!(f64::from_bits(bits))),
                    Some(Kind::Int) => ("int", json!(bits as i64)),
                    Some(Kind::UInt) => ("uint", json!(bits)),
                    Some(Kind::Bool) => ("bool", json!(bits != 0)),
                    Some(Kind::Text) => {
                        let text = batch.strings.get(bits as usize).map(|text| String::from_utf8_lossy(text));
                        ("text", json!(text))
                    }
                    None => ("unknown", Value::Null),
                };
                let explicit = batch.timestamps_ns[n] != NO_TIMESTAMP;
                let line = json!({
                    "log": target.name,
                    "seq": record.first_point + n as u64,
                    "segment": record.position.segment_id,
                    "offset": record.position.offset,
                    "stamp_ns": record.stamp_ns,
                    "client_id": parsed.client,
                    "protocol": envelope.protocol.name(),
                    "name": parsed.name,
                    "tags": tags,
                    "timestamp_ns": if explicit { batch.timestamps_ns[n] } else { record.stamp_ns },
                    "explicit_timestamp": explicit,
                    "kind": kind,
                    "value": value,
                    "request_id": envelope.request_id,
                    "traceparent": envelope.traceparent,
                });
                writeln!(out, "{line}")?;
            }
            Ok(())
        }
        (None, RecordKind::Aggregates) => {
            let mut written = Ok(());
            let _ = decode_aggregates(record.bytes, &mut |view| {
                if written.is_ok() {
                    written = writeln!(out, "{}", window_json(&view.to_record()));
                }
            });
            written
        }
        (None, RecordKind::Mark) => match MarkRecord::decode(record.bytes) {
            Ok(mark) => writeln!(
                out,
                "{}",
                json!({"mark_ms": mark.m_ns / 1_000_000, "floor_ms": mark.floor_ns / 1_000_000, "era": mark.era})
            ),
            Err(_) => Ok(()),
        },
        (None, RecordKind::Era) => match EraRecord::decode(record.bytes) {
            Ok(era) => writeln!(
                out,
                "{}",
                json!({"era": era.era, "from_ms": era.from_ns / 1_000_000, "to_ms": era.to_ns / 1_000_000})
            ),
            Err(_) => Ok(()),
        },
        (None, RecordKind::Names | RecordKind::Batch) => Ok(()),
    }
}
