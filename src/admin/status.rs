//! `GET /api/v1/status`: one JSON document for people and scripts.

use std::sync::atomic::Ordering;

use metricstream_shards::counters::Counter;
use metricstream_shards::point::{Protocol, Reason};
use serde_json::{Value, json};

use super::State;

pub fn status(state: &State) -> Value {
    let view = state.view.lock().expect("nobody panics with the view in hand").clone();
    let shards: Vec<Value> = state
        .counters
        .iter()
        .enumerate()
        .map(|(shard, counters)| {
            let points: serde_json::Map<String, Value> = Protocol::ALL
                .iter()
                .map(|&protocol| {
                    let b = counters.points(protocol);
                    let mut rejected: serde_json::Map<String, Value> = Reason::ALL
                        .iter()
                        .map(|&reason| (reason.name().to_string(), b.rejected[reason as usize].get().into()))
                        .collect();
                    rejected.insert("unavailable".into(), b.rejected_unavailable.get().into());
                    let value = json!({
                        "received": b.received.get(), "accepted": b.accepted.get(), "rejected": rejected,
                        "durable": b.durable.get(), "pending": b.pending(), "folded": b.folded.get(),
                        "late": b.late.get(), "late_beyond": b.late_beyond.get(),
                        "too_far_ahead": b.too_far_ahead.get(), "not_aggregated": b.not_aggregated.get(),
                        "repeated_in_shard": b.repeated_in_shard.get(), "overflow": b.overflow.get(),
                        "lost_after_ack": b.lost_after_ack.get(),
                    });
                    (protocol.name().to_string(), value)
                })
                .collect();
            let gauges = state.logs.iter().find(|(log, _)| *log == shard as u32).map(|(_, gauges)| gauges);
            let gauge = |of: fn(&crate::backplane::segments::Gauges) -> &std::sync::atomic::AtomicU64| {
                gauges.map_or(0, |g| of(g).load(Ordering::Relaxed))
            };
            let depth = state.mailboxes.get(shard).map_or((0, 0), |depth| depth());
            json!({
                "shard": shard,
                "points": points,
                "connections_open": counters.connections_accepted.get().saturating_sub(counters.connections_closed.get()),
                "series_live": counters.series_live.get(),
                "clients_live": counters.clients_live.get(),
                "open_cells": counters.open_cells.get(),
                "mailbox": {"depth": depth.0, "capacity": depth.1},
                "log": {
                    "end_block": counters.log_end_block.get(),
                    "durable_block": counters.log_durable_block.get(),
                    "segment": counters.log_segment.get(),
                    "unflushed_bytes": counters.log_unflushed_bytes.get(),
                    "unavailable": counters.log_unavailable.get() == 1,
                    "segments": gauge(|g| &g.segments),
                    "bytes": gauge(|g| &g.bytes),
                },
            })
        })
        .collect();
    let total = |of: fn(&metricstream_shards::counters::PointBooks) -> &Counter| -> u64 {
        state.counters.iter().flat_map(|c| &c.points).map(|books| of(books).get()).sum()
    };
    let b = view.books;
    let ms = |ns: i64| if ns == i64::MIN { Value::Null } else { (ns / 1_000_000).into() };
    json!({
        "version": state.version,
        "node_id": format!("{:032x}", state.node_id),
        "kernel": state.kernel,
        "uptime_s": state.origin.elapsed().as_secs(),
        "draining": state.shared.draining.load(Ordering::Relaxed),
        "listeners": state.listeners,
        "flush": state.flush_mode,
        "totals": {
            "received": total(|b| &b.received), "accepted": total(|b| &b.accepted), "durable": total(|b| &b.durable),
            "folded": total(|b| &b.folded), "late_beyond": total(|b| &b.late_beyond),
            "too_far_ahead": total(|b| &b.too_far_ahead), "not_aggregated": total(|b| &b.not_aggregated),
            "repeated_in_shard": total(|b| &b.repeated_in_shard),
        },
        "shards": shards,
        "reducer": {
            "counted": b.counted, "repeated": b.repeated, "conflicts": b.conflicts, "late_beyond": b.late_beyond,
            "refolded": b.refolded, "held": b.held, "results": b.results, "revisions": b.revisions,
            "incomplete_results": b.incomplete_results, "sum_overflows": b.sum_overflows,
            "rebuilding": view.rebuilding, "series": view.series, "open_windows": view.windows, "bytes": view.bytes,
            "era": view.closed.era, "mark_ms": ms(view.closed.m_ns), "floor_ms": ms(view.closed.floor_ns),
        },
        "aggregate_log": {
            "segments": view.log_segments, "bytes": view.log_bytes, "durable_block": view.log_end_block,
            "unavailable": view.log_unavailable,
        },
    })
}
