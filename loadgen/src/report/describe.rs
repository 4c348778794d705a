//! A plan in words.

use crate::plan::{Compression, Connection, Identity, Plan, Protocol, Retry, Shape, Timestamps, Values};
use crate::result::RunResult;
use crate::units;

/// When requests were due.
pub fn load(result: &RunResult) -> String {
    let shape = shape(&result.plan);
    if result.is_sweep() {
        format!("a sweep of {} steps; main figures are of the step with {shape}", result.steps.len())
    } else {
        shape
    }
}

/// When requests are due.
fn shape(plan: &Plan) -> String {
    let rate = |value: &f64| units::rate(*value);
    match &plan.shape {
        Shape::Closed { duration_ms } => {
            format!("closed loop: as fast as the answers come, for {}", units::span(*duration_ms))
        }
        Shape::Constant { rate: r, duration_ms } => {
            format!("{} requests/s for {}", rate(r), units::span(*duration_ms))
        }
        Shape::Steps { rates, each_ms } => format!(
            "steps of {} requests/s, {} each",
            rates.iter().map(rate).collect::<Vec<_>>().join(", "),
            units::span(*each_ms)
        ),
        Shape::Ramp { from, to, duration_ms } => {
            format!("{} to {} requests/s in {}", rate(from), rate(to), units::span(*duration_ms))
        }
        Shape::Burst { base, peak, every_ms, burst_ms, duration_ms } => format!(
            "{} requests/s with {} for {} every {}, for {}",
            rate(base),
            rate(peak),
            units::span(*burst_ms),
            units::span(*every_ms),
            units::span(*duration_ms)
        ),
        Shape::Fleet { interval_ms, duration_ms } => format!(
            "a fleet of {} clients, each a batch every {}, for {}",
            units::count(plan.workload.clients.into()),
            units::span(*interval_ms),
            units::span(*duration_ms)
        ),
    }
}

/// What is in the bodies.
pub fn workload(plan: &Plan) -> String {
    let workload = &plan.workload;
    let mut parts = vec![
        match workload.protocol {
            Protocol::Line => "line protocol".to_string(),
            Protocol::Json => "JSON".to_string(),
        },
        counted(workload.batch_points.into(), "point", " a request"),
        counted(workload.series, "series", ""),
        counted(workload.clients.into(), "client", ""),
        counted(workload.tags.into(), "tag", ""),
        match workload.values {
            Values::Gauge => "gauges".to_string(),
            Values::Counter => "counters".to_string(),
            Values::Latency => "latencies".to_string(),
        },
    ];
    if workload.churn_per_minute > 0.0 {
        parts.push(format!("{} of the series new each minute", units::share(workload.churn_per_minute)));
    }
    match workload.timestamps {
        Timestamps::Now => {}
        Timestamps::Skewed { by_ms } => parts.push(format!("clocks off by up to {}", units::span(by_ms))),
        Timestamps::Late { share, by_ms } => {
            parts.push(format!("{} up to {} late", units::share(share), units::span(by_ms)));
        }
        Timestamps::Shuffled { within_ms } => parts.push(format!("shuffled within {}", units::span(within_ms))),
    }
    if workload.bad_share > 0.0 {
        parts.push(format!("{} of the points bad", units::share(workload.bad_share)));
    }
    parts.join(", ")
}

/// How bodies travel.
pub fn transport(plan: &Plan) -> String {
    let transport = &plan.transport;
    let mut parts = vec![
        format!("POST {}", transport.path),
        counted(transport.connections.into(), "connection", ""),
        match transport.connection {
            Connection::KeepAlive => "kept alive".to_string(),
            Connection::Reconnect => "a new one for each request".to_string(),
            Connection::Pipelined { depth } => format!("up to {depth} requests under way on each"),
        },
    ];
    match transport.compression {
        Compression::None => {}
        Compression::Gzip => parts.push("gzip".into()),
        Compression::Zstd => parts.push("zstd".into()),
    }
    match transport.identity {
        Identity::None => {}
        Identity::Header => parts.push("clients named by X-Client-ID".into()),
        Identity::Address => parts.push("a source address for each client".into()),
    }
    match transport.retry {
        Retry::Never => {}
        Retry::Same { attempts } => parts.push(format!("the same bytes again, up to {attempts} attempts")),
        Retry::Joined { attempts } => {
            parts.push(format!("joined with the next batch, up to {attempts} attempts"));
        }
    }
    parts.join(", ")
}

fn counted(count: u64, thing: &str, rest: &str) -> String {
    let plural = if count == 1 || thing.ends_with('s') { "" } else { "s" };
    format!("{} {thing}{plural}{rest}", units::count(count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::fixture;

    #[test]
    fn plans_read_as_sentences() {
        let mut plan = fixture::plan();
        assert_eq!(shape(&plan), "1,000 requests/s for 30 s");
        assert_eq!(workload(&plan), "line protocol, 100 points a request, 1,000 series, 10 clients, 3 tags, gauges");
        assert_eq!(transport(&plan), "POST /write?db=bench, 32 connections, kept alive");
        plan.shape = Shape::Fleet { interval_ms: 10_000, duration_ms: 120_000 };
        assert_eq!(shape(&plan), "a fleet of 10 clients, each a batch every 10 s, for 2 min");
        plan.workload.timestamps = Timestamps::Late { share: 0.1, by_ms: 5_000 };
        assert!(workload(&plan).ends_with("gauges, 10.00 % up to 5 s late"));
        plan.transport.connection = Connection::Pipelined { depth: 4 };
        plan.transport.retry = Retry::Joined { attempts: 3 };
        assert!(
            transport(&plan)
                .ends_with("up to 4 requests under way on each, joined with the next batch, up to 3 attempts")
        );
    }
}
