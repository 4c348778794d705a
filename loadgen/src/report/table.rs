//! The table that a run ends with.

use std::fmt::Write as _;

use super::{describe, generator_warnings};
use crate::result::{Recorded, RunResult};
use crate::units;

/// Quantiles that are printed, with their names.
pub const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];

pub fn table(result: &RunResult) -> String {
    let mut out = String::new();
    heading(&mut out, result);
    rates(&mut out, result);
    latencies(&mut out, result);
    steps(&mut out, result);
    errors(&mut out, result);
    machines(&mut out, result);
    for warning in generator_warnings(result).iter().chain(&result.notes) {
        line(&mut out, format_args!("note        {warning}"));
    }
    out
}

fn line(out: &mut String, text: std::fmt::Arguments) {
    out.write_fmt(text).expect("a String takes everything");
    out.truncate(out.trim_end_matches(' ').len());
    out.push('\n');
}

fn heading(out: &mut String, result: &RunResult) {
    line(out, format_args!("\ntarget      {}, {}", result.target, describe::transport(&result.plan)));
    line(out, format_args!("bodies      {}", describe::workload(&result.plan)));
    line(out, format_args!("load        {}", describe::load(result)));
}

fn rates(out: &mut String, result: &RunResult) {
    let totals = &result.totals;
    let duration = units::span((totals.duration_s * 1e3).round() as u64);
    line(out, format_args!("\n{:24}{:>14}{:>18}", format!("in {duration}"), "a second", "in all"));
    let mut row = |name: &str, count: u64| {
        let rate = if totals.duration_s > 0.0 { count as f64 / totals.duration_s } else { 0.0 };
        line(out, format_args!("{name:24}{:>14}{:>18}", units::rate(rate), units::count(count)));
    };
    if !result.is_closed_loop() {
        row("requests due", totals.due);
    }
    row("requests sent", totals.sent);
    row("requests acknowledged", totals.acknowledged);
    row("points sent", totals.points_sent);
    row("points acknowledged", totals.points_acknowledged);
    line(
        out,
        format_args!(
            "bytes       {} sent, {} received, {} connections opened",
            units::bytes(totals.sent_bytes),
            units::bytes(totals.received_bytes),
            units::count(totals.connections_opened)
        ),
    );
}

fn latencies(out: &mut String, result: &RunResult) {
    let mut head = format!("\n{:12}", "");
    for (name, _) in QUANTILES {
        write!(head, "{name:>10}").expect("a String takes everything");
    }
    line(out, format_args!("{head}{:>10}{:>10}", "max", "mean"));
    let from = if result.is_closed_loop() { "from the send" } else { "from the intended moment" };
    let mut row = |name: &str, recorded: &Recorded, what: &str| {
        if recorded.0.is_empty() {
            return line(out, format_args!("{name:12}nothing was measured ({what})"));
        }
        let mut text = format!("{name:12}");
        for (_, quantile) in QUANTILES {
            write!(text, "{:>10}", units::time(recorded.at(quantile) as f64)).expect("a String takes everything");
        }
        let (max, mean) = (units::time(recorded.0.max() as f64), units::time(recorded.0.mean()));
        line(out, format_args!("{text}{max:>10}{mean:>10}  {what}"));
    };
    row("latency", &result.histograms.latency_us, from);
    row("service", &result.histograms.service_us, "from the send");
    if !result.is_closed_loop() {
        row("lateness", &result.histograms.lateness_us, "the generator's own, up to the send");
    }
    if let Some(server) = &result.server {
        let mut text = format!("{:12}", "server's");
        for (_, quantile) in QUANTILES {
            let bound = server.quantile_bound_s(quantile);
            let bound = bound.map_or("-".into(), |s| if s.is_finite() { units::time(s * 1e6) } else { "over".into() });
            write!(text, "{bound:>10}").expect("a String takes everything");
        }
        line(out, format_args!("{text}{:>10}{:>10}  its own acknowledgements, upper bounds of its buckets", "", ""));
    }
}

fn steps(out: &mut String, result: &RunResult) {
    if result.steps.is_empty() {
        return;
    }
    line(
        out,
        format_args!("\n{:>14}{:>14}{:>10}{:>10}{:>10}{:>10}", "requests/s", "achieved", "errors", "p50", "p99", "max"),
    );
    for step in result.steps_in_order() {
        let latency = &step.latency_us;
        line(
            out,
            format_args!(
                "{:>14}{:>14}{:>10}{:>10}{:>10}{:>10}",
                units::rate(step.rate),
                units::rate(step.achieved_rate()),
                units::count(step.errors),
                units::time(latency.at(0.5) as f64),
                units::time(latency.at(0.99) as f64),
                units::time(latency.0.max() as f64)
            ),
        );
    }
}

fn errors(out: &mut String, result: &RunResult) {
    let totals = &result.totals;
    let count = totals.error_count();
    let share = if totals.attempts() > 0 { count as f64 / totals.attempts() as f64 } else { 0.0 };
    if count == 0 {
        line(out, format_args!("\nerrors      none"));
    } else {
        line(out, format_args!("\nerrors      {} ({}): {}", units::count(count), units::share(share), kinds(result)));
    }
    if totals.retries + totals.given_up > 0 {
        let (retries, given_up) = (units::count(totals.retries), units::count(totals.given_up));
        line(out, format_args!("retries     {retries}, {given_up} batches given up"));
    }
}

/// `refused 429: 20, no answer (timeout): 3`
pub fn kinds(result: &RunResult) -> String {
    let refused = result.totals.refused.iter().map(|(status, n)| format!("refused {status}: {}", units::count(*n)));
    let unknown = result
        .totals
        .unknown
        .iter()
        .map(|(cause, n)| format!("no answer ({}): {}", cause.replace('_', " "), units::count(*n)));
    refused.chain(unknown).collect::<Vec<_>>().join(", ")
}

fn machines(out: &mut String, result: &RunResult) {
    line(out, format_args!("generator   {:.0} % of a core", result.totals.generator_cpu_share() * 100.0));
    if let Some(server) = &result.server {
        let mut parts = Vec::new();
        if let Some(cpu_s) = server.cpu_s.filter(|_| result.totals.duration_s > 0.0) {
            parts.push(format!("{:.0} % of a core", cpu_s / result.totals.duration_s * 100.0));
            let points = result.totals.points_acknowledged;
            if points > 0 {
                parts.push(format!("{:.2} CPU s per million points", cpu_s / points as f64 * 1e6));
            }
        }
        if let Some(rss) = server.rss_bytes {
            parts.push(format!("{} resident", units::bytes(rss)));
        }
        if !parts.is_empty() {
            line(out, format_args!("server      {}", parts.join(", ")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Shape;
    use crate::result::fixture;

    #[test]
    fn the_table_has_every_figure() {
        let mut result = fixture::sweep("a");
        result.totals.unknown = [("refused_connection".to_string(), 3)].into();
        result.totals.retries = 7;
        let text = table(&result);
        for part in [
            "target      http://127.0.0.1:8186, POST /write?db=bench, 32 connections, kept alive",
            "load        a sweep of 6 steps; main figures are of the step with 1,000 requests/s for 30 s",
            "in 30 s                       a second            in all",
            "requests due                     1,000            30,000",
            "requests acknowledged              998            29,940",
            "points acknowledged             99,800         2,994,000",
            "       p50       p90       p99     p99.9    p99.99       max      mean",
            "errors      63 (0.21 %): refused 429: 60, no answer (refused connection): 3",
            "retries     7, 0 batches given up",
            "generator   42 % of a core",
            "server      31 % of a core, 3.11 CPU s per million points, 48.0 MiB resident",
            "        12,000        12,000         0   2.93 ms   4.37 ms   4.40 ms",
        ] {
            assert!(text.contains(part), "{part:?} is in\n{text}");
        }
        for name in ["latency ", "service ", "lateness ", "server's "] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name} is in\n{text}");
        }
        assert!(text.lines().all(|line| !line.ends_with(' ')), "no blanks at ends");
    }

    #[test]
    fn a_closed_loop_has_nothing_due_and_no_lateness() {
        let mut result = fixture::steady("a", 2);
        result.plan.shape = Shape::Closed { duration_ms: 2_000 };
        result.histograms.latency_us = Recorded::default();
        let text = table(&result);
        assert!(!text.contains("requests due") && !text.contains("lateness"), "{text}");
        assert!(text.contains("latency     nothing was measured (from the send)"), "{text}");
    }
}
