//! `/metrics`: the books of all shards and of the reducer in Prometheus' text format.
//!
//! Its size follows the number of shards, routes and reasons, never that of clients or series. Counters are written
//! with every label value they can have, zeros included, so that a rate exists from the first scrape.

use std::fmt::{Display, Write};

use hdrhistogram::Histogram;
use metricstream_shards::counters::{Counter, Counters, Distributions, STATUSES, Shed};
use metricstream_shards::http::Route;
use metricstream_shards::point::{Protocol, Reason};

/// Text in the exposition format, family by family.
#[derive(Default)]
pub struct Exposition {
    text: String,
    name: &'static str,
}

impl Exposition {
    pub fn family(&mut self, name: &'static str, kind: &str, help: &str) -> &mut Self {
        self.name = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        self
    }

    pub fn sample(&mut self, labels: &[(&str, &dyn Display)], value: impl Display) -> &mut Self {
        self.suffixed("", labels, value)
    }

    fn suffixed(&mut self, suffix: &str, labels: &[(&str, &dyn Display)], value: impl Display) -> &mut Self {
        let _ = write!(self.text, "{}{suffix}", self.name);
        for (n, (key, value)) in labels.iter().enumerate() {
            let _ = write!(self.text, "{}{key}=\"{value}\"", if n == 0 { "{" } else { "," });
        }
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
        self
    }

    /// A classic histogram from a recorded one; `bounds` in recorded units, `scale` of them make one exposed unit.
    pub fn histogram(&mut self, shard: usize, recorded: &Histogram<u64>, bounds: &[u64], scale: f64) {
        let (mut cumulative, mut at, mut sum) = (0, 0, 0.0);
        for step in recorded.iter_recorded() {
            let value = step.value_iterated_to();
            while at < bounds.len() && bounds[at] < value {
                let le = bounds[at] as f64 / scale;
                self.suffixed("_bucket", &[("shard", &shard), ("le", &le)], cumulative);
                at += 1;
            }
            cumulative += step.count_since_last_iteration();
            sum += recorded.median_equivalent(value) as f64 * step.count_since_last_iteration() as f64;
        }
        for bound in &bounds[at..] {
            let le = *bound as f64 / scale;
            self.suffixed("_bucket", &[("shard", &shard), ("le", &le)], cumulative);
        }
        self.suffixed("_bucket", &[("shard", &shard), ("le", &"+Inf")], cumulative);
        self.suffixed("_sum", &[("shard", &shard)], sum / scale);
        self.suffixed("_count", &[("shard", &shard)], cumulative);
    }

    pub fn finish(self) -> String {
        self.text
    }
}

const MICROSECONDS: [u64; 16] = [
    50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 102_400, 409_600, 1_638_400, 6_553_600,
    26_214_400,
];
const BYTES: [u64; 9] = [4096, 8192, 16_384, 65_536, 262_144, 1 << 20, 4 << 20, 16 << 20, 64 << 20];
const POINTS: [u64; 8] = [1, 4, 16, 64, 256, 1024, 8192, 65_536];

/// One per-shard family: name, type, help, where it stands.
type ShardFamily = (&'static str, &'static str, &'static str, fn(&Counters) -> &Counter);

const SHARD_FAMILIES: &[ShardFamily] = &[
    ("metricstream_network_received_bytes_total", "counter", "Bytes received from clients.", |c| &c.received_bytes),
    ("metricstream_network_sent_bytes_total", "counter", "Bytes sent to clients.", |c| &c.sent_bytes),
    ("metricstream_body_bytes_total", "counter", "Bytes of request bodies after decompression.", |c| &c.body_bytes),
    ("metricstream_connections_accepted_total", "counter", "Connections accepted.", |c| &c.connections_accepted),
    ("metricstream_connections_closed_total", "counter", "Connections closed.", |c| &c.connections_closed),
    (
        "metricstream_connections_refused_total",
        "counter",
        "Connections closed at once, over the limit in all or of their address.",
        |c| &c.connections_refused,
    ),
    (
        "metricstream_connections_timed_out_total",
        "counter",
        "Connections closed because a head, a body, the next request or reading answers took too long.",
        |c| &c.connections_timed_out,
    ),
    (
        "metricstream_receive_paused_total",
        "counter",
        "Times that reading from a connection was paused until it had taken its answers.",
        |c| &c.receive_paused,
    ),
    (
        "metricstream_receive_buffers_exhausted_total",
        "counter",
        "Receives that found no free ring buffer and were armed again later.",
        |c| &c.receive_buffers_exhausted,
    ),
    ("metricstream_turns_total", "counter", "Turns of the shard's loop.", |c| &c.turns),
    ("metricstream_log_commits_total", "counter", "Commits made durable.", |c| &c.commits),
    (
        "metricstream_log_commit_failures_total",
        "counter",
        "Commits whose write or flush failed or hung; their points were written again elsewhere.",
        |c| &c.commit_failures,
    ),
    ("metricstream_log_written_bytes_total", "counter", "Bytes written to the log.", |c| &c.log_written_bytes),
    ("metricstream_log_end_block", "gauge", "Sequence of the newest block of the log.", |c| &c.log_end_block),
    ("metricstream_log_durable_block", "gauge", "Sequence of the newest block known to be on stable storage.", |c| {
        &c.log_durable_block
    }),
    ("metricstream_log_segment", "gauge", "Number of the segment being written.", |c| &c.log_segment),
    ("metricstream_log_unflushed_bytes", "gauge", "Bytes received and not yet on stable storage.", |c| {
        &c.log_unflushed_bytes
    }),
    (
        "metricstream_log_unavailable",
        "gauge",
        "1 while the log takes nothing (full, failed or hung) and clients get 503.",
        |c| &c.log_unavailable,
    ),
    (
        "metricstream_fold_from_disk_blocks_total",
        "counter",
        "Blocks that the fold read back from disk because it was behind.",
        |c| &c.fold_from_disk_blocks,
    ),
    (
        "metricstream_log_damaged_points_total",
        "counter",
        "Points lost to damaged blocks that were acknowledged.",
        |c| &c.damaged_points,
    ),
    ("metricstream_series_live", "gauge", "Live series.", |c| &c.series_live),
    ("metricstream_series_created_total", "counter", "Series made.", |c| &c.series_created),
    ("metricstream_series_evicted_total", "counter", "Series forgotten because they were idle.", |c| &c.series_evicted),
    ("metricstream_clients_live", "gauge", "Clients remembered.", |c| &c.clients_live),
    ("metricstream_window_open_cells", "gauge", "Open (series, window) cells not yet handed to the reducer.", |c| {
        &c.open_cells
    }),
    ("metricstream_window_open_points", "gauge", "Points in open cells.", |c| &c.open_points),
    (
        "metricstream_mailbox_full_total",
        "counter",
        "Times that the mailbox to the reducer was full and the fold waited.",
        |c| &c.mailbox_full,
    ),
];

/// Families by shard and protocol, in points.
type PointFamily = (&'static str, &'static str, &'static str, fn(&metricstream_shards::counters::PointBooks) -> u64);

const POINT_FAMILIES: &[PointFamily] = &[
    ("metricstream_points_received_total", "counter", "Points received: accepted + rejected.", |b| b.received.get()),
    ("metricstream_points_accepted_total", "counter", "Points appended to the log.", |b| b.accepted.get()),
    (
        "metricstream_points_durable_total",
        "counter",
        "Points on stable storage: pending + folded + late_beyond + too_far_ahead + not_aggregated.",
        |b| b.durable.get(),
    ),
    ("metricstream_points_pending", "gauge", "Points on stable storage, not yet folded.", |b| b.pending()),
    ("metricstream_points_folded_total", "counter", "Points folded into windows.", |b| b.folded.get()),
    (
        "metricstream_points_late_total",
        "counter",
        "Folded points that came after their window's end and the allowed lateness.",
        |b| b.late.get(),
    ),
    ("metricstream_points_late_beyond_total", "counter", "Points too late to revise their window; kept raw.", |b| {
        b.late_beyond.get()
    }),
    (
        "metricstream_points_too_far_ahead_total",
        "counter",
        "Points too far in the future to be folded; kept raw.",
        |b| b.too_far_ahead.get(),
    ),
    ("metricstream_points_not_aggregated_total", "counter", "Text and boolean values; kept raw.", |b| {
        b.not_aggregated.get()
    }),
    (
        "metricstream_points_repeated_in_shard_total",
        "counter",
        "Folded points that the shard already held: counted once.",
        |b| b.repeated_in_shard.get(),
    ),
    (
        "metricstream_points_conflicting_in_shard_total",
        "counter",
        "Repeated points with another value: the greater was kept.",
        |b| b.conflicts_in_shard.get(),
    ),
    (
        "metricstream_points_overflow_total",
        "counter",
        "Points of series over the series limit, folded into __overflow__.",
        |b| b.overflow.get(),
    ),
    (
        "metricstream_points_lost_after_ack_total",
        "counter",
        "Points acknowledged from memory and then lost with a failed flush (durability = \"memory\" only).",
        |b| b.lost_after_ack.get(),
    ),
];

/// Writes what the shards count. `distributions` has the newest copy of each shard's.
pub fn shards(out: &mut Exposition, shards: &[std::sync::Arc<Counters>], distributions: &[Distributions]) {
    for (name, kind, help, value) in POINT_FAMILIES {
        out.family(name, kind, help);
        for (shard, counters) in shards.iter().enumerate() {
            for protocol in Protocol::ALL {
                out.sample(&[("shard", &shard), ("protocol", &protocol.name())], value(counters.points(protocol)));
            }
        }
    }
    out.family("metricstream_points_rejected_total", "counter", "Points refused, by reason.");
    for (shard, counters) in shards.iter().enumerate() {
        for protocol in Protocol::ALL {
            let books = counters.points(protocol);
            let labels =
                |reason| [("shard", shard.to_string()), ("protocol", protocol.name().into()), ("reason", reason)];
            for reason in Reason::ALL {
                let labels = labels(reason.name().to_string());
                let labels: Vec<(&str, &dyn Display)> = labels.iter().map(|(k, v)| (*k, v as &dyn Display)).collect();
                out.sample(&labels, books.rejected[reason as usize].get());
            }
            let labels = labels("unavailable".to_string());
            let labels: Vec<(&str, &dyn Display)> = labels.iter().map(|(k, v)| (*k, v as &dyn Display)).collect();
            out.sample(&labels, books.rejected_unavailable.get());
        }
    }
    out.family("metricstream_requests_total", "counter", "Requests answered, by route and status; only those seen.");
    for (shard, counters) in shards.iter().enumerate() {
        for (route, row) in counters.requests.iter().enumerate() {
            let route = Route::ALL.get(route).map_or("none", |route| route.name());
            for (column, counter) in row.iter().enumerate() {
                let status = STATUSES.get(column).map_or("other".to_string(), u16::to_string);
                if counter.get() > 0 {
                    out.sample(&[("shard", &shard), ("route", &route), ("status", &status)], counter.get());
                }
            }
        }
    }
    out.family(
        "metricstream_requests_shed_total",
        "counter",
        "Requests and connections turned away before decoding, by cause.",
    );
    for (shard, counters) in shards.iter().enumerate() {
        for shed in Shed::ALL {
            out.sample(&[("shard", &shard), ("cause", &shed.name())], counters.shed[shed as usize].get());
        }
    }
    out.family("metricstream_requests_limited_total", "counter", "Requests over a quota, by what was limited.");
    for (shard, counters) in shards.iter().enumerate() {
        for (n, dimension) in ["requests", "points", "bytes"].iter().enumerate() {
            out.sample(&[("shard", &shard), ("limit", dimension)], counters.limited[n].get());
        }
    }
    for (name, kind, help, value) in SHARD_FAMILIES {
        out.family(name, kind, help);
        for (shard, counters) in shards.iter().enumerate() {
            out.sample(&[("shard", &shard)], value(counters).get());
        }
    }
    out.family("metricstream_connections_open", "gauge", "Open connections.");
    for (shard, counters) in shards.iter().enumerate() {
        let open = counters.connections_accepted.get().saturating_sub(counters.connections_closed.get());
        out.sample(&[("shard", &shard)], open);
    }
    out.family("metricstream_acknowledge_seconds", "histogram", "From a request's last byte to its acknowledgement.");
    for (shard, d) in distributions.iter().enumerate() {
        out.histogram(shard, &d.acknowledge_us, &MICROSECONDS, 1e6);
    }
    out.family("metricstream_log_flush_seconds", "histogram", "From a commit's write to the end of its flush.");
    for (shard, d) in distributions.iter().enumerate() {
        out.histogram(shard, &d.flush_us, &MICROSECONDS, 1e6);
    }
    out.family("metricstream_log_commit_bytes", "histogram", "Bytes of a commit.");
    for (shard, d) in distributions.iter().enumerate() {
        out.histogram(shard, &d.commit_bytes, &BYTES, 1.0);
    }
    out.family("metricstream_log_commit_points", "histogram", "Points of a commit.");
    for (shard, d) in distributions.iter().enumerate() {
        out.histogram(shard, &d.commit_points, &POINTS, 1.0);
    }
}

/// What exists once per process: the reducer's books, the logs' files, build and uptime.
pub fn process(out: &mut Exposition, state: &super::State) {
    let view = state.view.lock().expect("nobody panics with the view in hand").clone();
    let books = view.books;
    let seconds = |ns: i64| if ns == i64::MIN { 0.0 } else { ns as f64 / 1e9 };
    for (name, help, value) in [
        (
            "metricstream_reducer_points_counted_total",
            "Points counted in windows: folded = repeated_in_shard + open + counted + repeated + late_beyond (here) + held.",
            books.counted,
        ),
        (
            "metricstream_reducer_points_repeated_total",
            "Points already counted: sent again, counted once.",
            books.repeated,
        ),
        (
            "metricstream_reducer_points_conflicting_total",
            "Repeated points with another value: the greater was kept.",
            books.conflicts,
        ),
        (
            "metricstream_reducer_points_late_beyond_total",
            "Points handed over after their window was frozen.",
            books.late_beyond,
        ),
        ("metricstream_reducer_points_refolded_total", "Points folded again after a restart.", books.refolded),
        ("metricstream_reducer_windows_total", "Window results appended for the first time.", books.results),
        ("metricstream_reducer_revisions_total", "Window results appended as revisions.", books.revisions),
        (
            "metricstream_reducer_incomplete_windows_total",
            "Results closed without a stalled shard, or after damage.",
            books.incomplete_results,
        ),
        (
            "metricstream_reducer_sum_overflows_total",
            "Results whose sum is beyond the range of a double.",
            books.sum_overflows,
        ),
        (
            "metricstream_reducer_floor_raised_by_memory_total",
            "Times that the memory bound shortened the horizon.",
            books.floor_raised_by_memory,
        ),
    ] {
        out.family(name, "counter", help).sample(&[], value);
    }
    for (name, help, value) in [
        ("metricstream_reducer_points_held", "Points that wait for the rebuild's end.", books.held as f64),
        ("metricstream_reducer_series", "Series with windows that may still be revised.", view.series as f64),
        ("metricstream_reducer_open_windows", "Base windows held for revision.", view.windows as f64),
        ("metricstream_reducer_memory_bytes", "Memory of windows held, estimated.", view.bytes as f64),
        (
            "metricstream_reducer_rebuilding",
            "1 while windows are rebuilt after a start.",
            f64::from(u8::from(view.rebuilding)),
        ),
        (
            "metricstream_reducer_mark_seconds",
            "M: windows that end by this Unix time are closed.",
            seconds(view.closed.m_ns),
        ),
        (
            "metricstream_reducer_floor_seconds",
            "F: windows that end by this Unix time are frozen.",
            seconds(view.closed.floor_ns),
        ),
        ("metricstream_aggregate_log_segments", "Segments of the aggregate log.", view.log_segments as f64),
        ("metricstream_aggregate_log_bytes", "Bytes of the aggregate log's files.", view.log_bytes as f64),
        (
            "metricstream_aggregate_log_unavailable",
            "1 while closed windows cannot be made durable.",
            f64::from(u8::from(view.log_unavailable)),
        ),
        ("metricstream_uptime_seconds", "Since the start.", state.origin.elapsed().as_secs_f64()),
    ] {
        out.family(name, "gauge", help).sample(&[], value);
    }
    let gauge = |n: &std::sync::atomic::AtomicU64| n.load(std::sync::atomic::Ordering::Relaxed);
    type Of = fn(&crate::backplane::segments::Gauges) -> &std::sync::atomic::AtomicU64;
    let families: [(&'static str, &str, &str, Of); 8] = [
        ("metricstream_log_segments", "gauge", "Segments of a shard's log that hold records.", |g| &g.segments),
        ("metricstream_log_bytes", "gauge", "Bytes of a shard's log files, spare ones included.", |g| &g.bytes),
        ("metricstream_log_segments_prepared_total", "counter", "Segments made ready.", |g| &g.prepared),
        ("metricstream_log_segments_recycled_total", "counter", "Segments that retention let go.", |g| &g.recycled),
        (
            "metricstream_log_segments_dropped_total",
            "counter",
            "Segments that went although a window might need them (when_full = \"drop_oldest\").",
            |g| &g.dropped,
        ),
        ("metricstream_log_prepare_failures_total", "counter", "Segments that could not be made.", |g| {
            &g.prepare_failures
        }),
        (
            "metricstream_log_damaged_points_at_start",
            "gauge",
            "Acknowledged points that this start, or the rebuild after it, found lost to damaged blocks.",
            |g| &g.damaged_points,
        ),
        ("metricstream_log_at_bound", "gauge", "1 while a log is at bytes_max and nothing in it may go.", |g| {
            &g.at_bound
        }),
    ];
    for (name, kind, help, of) in families {
        out.family(name, kind, help);
        for (log, gauges) in &state.logs {
            out.sample(&[("shard", log)], gauge(of(gauges)));
        }
    }
    out.family("metricstream_mailbox_depth", "gauge", "Messages waiting for the reducer.");
    for (shard, depth) in state.mailboxes.iter().enumerate() {
        out.sample(&[("shard", &shard)], depth().0);
    }
    out.family("metricstream_build_info", "gauge", "What this is; the value is always 1.")
        .sample(&[("version", &state.version), ("node_id", &format_args!("{:032x}", state.node_id))], 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_cumulative_and_ends_in_infinity() {
        let mut distributions = Distributions::new();
        for us in [60, 60, 150, 70_000_000] {
            distributions.flush_us.saturating_record(us);
        }
        let mut out = Exposition::default();
        out.family("x_seconds", "histogram", "Help.");
        out.histogram(0, &distributions.flush_us, &MICROSECONDS, 1e6);
        let text = out.finish();
        assert!(text.contains("x_seconds_bucket{shard=\"0\",le=\"0.0001\"} 2\n"), "{text}");
        assert!(text.contains("x_seconds_bucket{shard=\"0\",le=\"0.0002\"} 3\n"), "{text}");
        assert!(text.contains("x_seconds_bucket{shard=\"0\",le=\"+Inf\"} 4\n"), "{text}");
        assert!(text.contains("x_seconds_count{shard=\"0\"} 4\n"), "{text}");
    }

    #[test]
    fn the_size_does_not_depend_on_what_was_counted() {
        let counters = std::sync::Arc::new(Counters::new(Route::ALL.len()));
        let lines = |counters: &std::sync::Arc<Counters>| {
            let mut out = Exposition::default();
            shards(&mut out, std::slice::from_ref(counters), &[Distributions::new()]);
            out.finish().lines().count()
        };
        let before = lines(&counters);
        counters.points(Protocol::Json).received.add(1_000_000);
        counters.series_live.set(1_000_000);
        assert_eq!(lines(&counters), before);
    }
}
