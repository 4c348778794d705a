//! The forwarder's books in `/metrics`. As many lines as there are sinks times logs, whatever they have done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::books::{ForwardBooks, Lag, State, lag};
use super::breaker;
use super::calls::CallBooks;
use super::cursor::Totals;
use crate::admin::exposition::Exposition;
use crate::reducer::thread::wall_ns;

type Counted = (&'static str, &'static str, fn(&Look) -> u64);

/// One sink and log, looked at once: on one page the books balance, whatever is delivered while it is written.
struct Look {
    sink: Arc<str>,
    log: String,
    totals: Totals,
    read: u64,
    lag: Lag,
}

impl Look {
    fn all(books: &ForwardBooks) -> Vec<Look> {
        let wall_ns = wall_ns();
        let logs = books.sinks.iter().flat_map(|sink| sink.logs.iter().map(|(log, books)| (&sink.name, log, books)));
        logs.map(|(sink, log, books)| {
            let totals = books.totals();
            // A point is counted as read first: asked for later, the count cannot be behind.
            let read = books.read.get().max(totals.sum());
            Look { sink: sink.clone(), log: log.name().to_string(), totals, read, lag: lag(log, books, wall_ns) }
        })
        .collect()
    }
}

const COUNTERS: [Counted; 7] = [
    (
        "metricstream_sink_points_read_total",
        "Points read for a sink: delivered + refused + dead_lettered + filtered + dropped + lost_to_damage + waiting.",
        |l| l.read,
    ),
    ("metricstream_sink_points_delivered_total", "Points that the sink has acknowledged.", |l| l.totals.delivered),
    ("metricstream_sink_points_refused_total", "Points that the sink has said it will not have.", |l| l.totals.refused),
    ("metricstream_sink_points_dead_lettered_total", "Points set aside with the sink's reason.", |l| {
        l.totals.dead_lettered
    }),
    ("metricstream_sink_points_filtered_total", "Points that the sink's filter leaves out.", |l| l.totals.filtered),
    (
        "metricstream_sink_points_dropped_total",
        "Points that left the log before the sink had read them (when_full = \"drop_oldest\").",
        |l| l.totals.dropped,
    ),
    (
        "metricstream_sink_points_lost_to_damage_total",
        "Points in damaged parts of the log, which no sink can get.",
        |l| l.totals.lost_to_damage,
    ),
];

pub fn forward(out: &mut Exposition, books: &ForwardBooks) {
    let looks = Look::all(books);
    for (name, help, value) in COUNTERS {
        out.family(name, "counter", help);
        for look in &looks {
            out.sample(&[("sink", &look.sink), ("log", &look.log)], value(look));
        }
    }
    type Gauge = (&'static str, &'static str, fn(&Look) -> f64);
    let gauges: [Gauge; 4] = [
        ("metricstream_sink_points_waiting", "Points read for a sink that it has not acknowledged yet.", |l| {
            (l.read - l.totals.sum()) as f64
        }),
        ("metricstream_sink_lag_points", "Durable points that a sink has not got yet.", |l| l.lag.points as f64),
        ("metricstream_sink_lag_bytes", "Bytes of log between a sink's cursor and the durable end.", |l| {
            l.lag.bytes as f64
        }),
        ("metricstream_sink_lag_seconds", "Age of the oldest point that a sink has not got yet.", |l| l.lag.seconds),
    ];
    for (name, help, value) in gauges {
        out.family(name, "gauge", help);
        for look in &looks {
            out.sample(&[("sink", &look.sink), ("log", &look.log)], value(look));
        }
    }
    out.family(
        "metricstream_sink_holds_log",
        "gauge",
        "1 while a log is at its bound because the sink has not read it.",
    );
    for sink in &books.sinks {
        for (log, _) in &sink.logs {
            let blamed = u8::from(log.is_blamed(&sink.name));
            out.sample(&[("sink", &sink.name), ("log", &log.name())], blamed);
        }
    }
    out.family("metricstream_sink_state", "gauge", "1 for what the sink is doing.");
    for sink in &books.sinks {
        for state in State::ALL {
            let is = u8::from(sink.shown_state() == state);
            out.sample(&[("sink", &sink.name), ("type", &sink.kind), ("state", &state.name())], is);
        }
    }
    for (name, help, value) in [
        ("metricstream_sink_errors_total", "Times that a sink failed and was sent back to its cursor.", 0),
        ("metricstream_sink_cursor_stores_total", "Cursors made durable.", 1),
        ("metricstream_sink_cursor_failures_total", "Cursors that could not be made durable.", 2),
    ] {
        out.family(name, "counter", help);
        for sink in &books.sinks {
            let counters = [&sink.errors, &sink.cursor_stores, &sink.cursor_failures];
            out.sample(&[("sink", &sink.name)], counters[value].get());
        }
    }
    calls(out, books);
    let reader = &books.reader.counters;
    let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
    for (name, kind, help, value) in [
        ("metricstream_reader_read_bytes_total", "counter", "Bytes of log read for sinks.", get(&reader.read_bytes)),
        ("metricstream_reader_reads_total", "counter", "Reads of logs for sinks.", get(&reader.reads)),
        (
            "metricstream_reader_shared_total",
            "counter",
            "Asks answered from what was read before.",
            get(&reader.shared),
        ),
        ("metricstream_reader_failures_total", "counter", "Reads that the disk refused.", get(&reader.failures)),
        (
            "metricstream_reader_damaged_total",
            "counter",
            "Stretches of log whose checksums did not hold.",
            get(&reader.damaged),
        ),
        ("metricstream_reader_cached_bytes", "gauge", "Log kept in memory for other sinks.", get(&reader.cached_bytes)),
    ] {
        out.family(name, kind, help).sample(&[], value);
    }
}

/// Of sinks that make calls over the network.
fn calls(out: &mut Exposition, books: &ForwardBooks) {
    let sinks: Vec<_> = books.sinks.iter().filter_map(|sink| Some((&sink.name, sink.calls.as_ref()?))).collect();
    if sinks.is_empty() {
        return;
    }
    out.family("metricstream_sink_calls_total", "counter", "Calls by what their answer meant.");
    for (name, calls) in &sinks {
        for (kind, count) in calls.answers() {
            out.sample(&[("sink", name), ("answer", &kind)], count);
        }
    }
    out.family("metricstream_sink_breaker_state", "gauge", "1 for the state of the circuit breaker.");
    for (name, calls) in &sinks {
        for state in breaker::State::ALL {
            let is = u8::from(calls.gate().state == state);
            out.sample(&[("sink", name), ("state", &state.name())], is);
        }
    }
    type Family = (&'static str, &'static str, &'static str, fn(&CallBooks) -> u64);
    let families: [Family; 10] = [
        ("metricstream_sink_breaker_opened_total", "counter", "Times that the circuit breaker has opened.", |c| {
            c.gate().opened
        }),
        ("metricstream_sink_retries_total", "counter", "Calls made again.", |c| c.retries.load(Ordering::Relaxed)),
        ("metricstream_sink_retry_budget", "gauge", "Retries that may be made at once.", |c| {
            c.gate().budget_left.into()
        }),
        ("metricstream_sink_retry_budget_exhausted_total", "counter", "Retries that waited for the budget.", |c| {
            c.gate().budget_exhausted
        }),
        ("metricstream_sink_calls_held", "gauge", "Calls that wait for an operator.", |c| {
            c.held.load(Ordering::Relaxed)
        }),
        ("metricstream_sink_calls_waiting", "gauge", "Calls that wait to be made again.", |c| {
            c.waiting.load(Ordering::Relaxed)
        }),
        ("metricstream_sink_sent_bytes_total", "counter", "Bytes of bodies sent, compressed as they were.", |c| {
            c.sent_bytes.load(Ordering::Relaxed)
        }),
        ("metricstream_sink_halvings_total", "counter", "Batches cut in two to find a bad line or to fit.", |c| {
            c.halvings.load(Ordering::Relaxed)
        }),
        ("metricstream_sink_dead_letter_bytes", "gauge", "Size of the files of dead letters.", |c| {
            c.dead_letter_bytes.load(Ordering::Relaxed)
        }),
        (
            "metricstream_sink_dead_letters_dropped_total",
            "counter",
            "Dead letters removed because their files had reached their bound.",
            |c| c.dead_letters_dropped.load(Ordering::Relaxed),
        ),
    ];
    for (family, kind, help, value) in families {
        out.family(family, kind, help);
        for (name, calls) in &sinks {
            out.sample(&[("sink", name)], value(calls));
        }
    }
}
