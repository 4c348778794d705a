//! Figures as text: tiles, the table of main figures, steps, and under what circumstances they came to be.

use super::super::table::{QUANTILES, kinds};
use super::plot::put;
use super::{Labelled, describe, escape, utc};
use crate::result::{Recorded, RunResult, ServerSide};
use crate::units;

pub fn tiles(out: &mut String, result: &RunResult) {
    let latency = |quantile: f64| time(&result.histograms.latency_us, quantile);
    let errors = result.totals.error_count();
    out.push_str("<div class=\"tiles\">");
    for (name, figure, bad) in [
        ("requests/s acknowledged", units::rate(result.achieved_rate()), false),
        ("points/s acknowledged", units::rate(result.points_rate()), false),
        ("latency p50", latency(0.5), false),
        ("latency p99", latency(0.99), false),
        ("latency p99.9", latency(0.999), false),
        ("errors", units::count(errors), errors > 0),
    ] {
        let bad = if bad { " bad" } else { "" };
        put(out, format_args!("<div class=\"tile{bad}\"><b>{}</b><span>{name}</span></div>", escape(&figure)));
    }
    out.push_str("</div>\n");
}

fn time(recorded: &Recorded, quantile: f64) -> String {
    if recorded.0.is_empty() { "–".into() } else { units::time(recorded.at(quantile) as f64) }
}

/// A row for each figure, a column for each result.
pub fn figures(out: &mut String, results: &[Labelled]) {
    out.push_str("<section class=\"card\"><h2>Main figures</h2><div class=\"scroll\"><table>");
    if results.len() > 1 {
        out.push_str("<thead><tr><th></th>");
        for labelled in results {
            put(out, format_args!("<th>{}</th>", escape(&labelled.label)));
        }
        out.push_str("</tr></thead>");
    }
    out.push_str("<tbody>");
    let mut row = |name: &str, figure: &dyn Fn(&RunResult) -> String| {
        let cells: Vec<String> = results.iter().map(|labelled| figure(labelled.result)).collect();
        if cells.iter().all(|cell| cell == "–") {
            return;
        }
        put(out, format_args!("<tr><th>{}</th>", escape(name)));
        for cell in cells {
            put(out, format_args!("<td>{}</td>", escape(&cell)));
        }
        out.push_str("</tr>");
    };
    row("requests/s due", &|r| if r.is_closed_loop() { "–".into() } else { units::rate(r.due_rate()) });
    row("requests/s acknowledged", &|r| units::rate(r.achieved_rate()));
    row("points/s acknowledged", &|r| units::rate(r.points_rate()));
    row("requests sent", &|r| units::count(r.totals.sent));
    row("requests acknowledged", &|r| units::count(r.totals.acknowledged));
    row("points acknowledged", &|r| units::count(r.totals.points_acknowledged));
    row("errors", &|r| match r.totals.error_count() {
        0 => "none".into(),
        count => format!("{} ({})", units::count(count), kinds(r)),
    });
    row("requests sent again", &|r| some(r.totals.retries));
    row("batches given up", &|r| some(r.totals.given_up));
    for (name, quantile) in QUANTILES {
        row(&format!("latency {name}"), &|r| time(&r.histograms.latency_us, quantile));
    }
    row("latency max", &|r| time(&r.histograms.latency_us, 1.0));
    row("service time p99", &|r| time(&r.histograms.service_us, 0.99));
    row("generator's lateness p99", &|r| {
        if r.is_closed_loop() { "–".into() } else { time(&r.histograms.lateness_us, 0.99) }
    });
    row("generator's share of its core", &|r| format!("{:.0} %", r.totals.generator_cpu_share() * 100.0));
    row("server's own acknowledgement p99", &|r| {
        let bound_s = r.server.as_ref().and_then(|server| server.quantile_bound_s(0.99));
        bound_s.map_or("–".into(), |s| {
            format!("up to {}", if s.is_finite() { units::time(s * 1e6) } else { "more".into() })
        })
    });
    row("server's CPU, cores", &|r| {
        server(r, |server| {
            server
                .cpu_s
                .filter(|_| r.totals.duration_s > 0.0)
                .map(|cpu_s| format!("{:.2}", cpu_s / r.totals.duration_s))
        })
    });
    row("server's CPU s per million points", &|r| {
        let points = r.totals.points_acknowledged;
        server(r, |server| {
            server.cpu_s.filter(|_| points > 0).map(|cpu_s| format!("{:.2}", cpu_s / points as f64 * 1e6))
        })
    });
    row("server's memory, resident", &|r| server(r, |server| server.rss_bytes.map(units::bytes)));
    out.push_str("</tbody></table></div></section>\n");
}

fn some(count: u64) -> String {
    if count == 0 { "–".into() } else { units::count(count) }
}

fn server(result: &RunResult, figure: impl Fn(&ServerSide) -> Option<String>) -> String {
    result.server.as_ref().and_then(figure).unwrap_or("–".into())
}

pub fn steps(out: &mut String, results: &[Labelled]) {
    for labelled in results.iter().filter(|labelled| !labelled.result.steps.is_empty()) {
        let of = if results.len() > 1 { format!(": {}", labelled.label) } else { String::new() };
        put(out, format_args!("<section class=\"card\"><h2>Steps{}</h2><div class=\"scroll\"><table>", escape(&of)));
        out.push_str(
            "<thead><tr><th>requests/s</th><th>achieved</th><th>errors</th><th>p50</th><th>p99</th><th>p99.9</th>\
             <th>max</th></tr></thead><tbody>",
        );
        for step in labelled.result.steps_in_order() {
            let bad = step.errors > 0 || step.achieved_rate() < 0.99 * step.rate;
            put(out, format_args!("<tr{}>", if bad { " class=\"bad\"" } else { "" }));
            put(out, format_args!("<th>{}</th><td>{}</td>", units::rate(step.rate), units::rate(step.achieved_rate())));
            put(out, format_args!("<td>{}</td>", units::count(step.errors)));
            for quantile in [0.5, 0.99, 0.999, 1.0] {
                put(out, format_args!("<td>{}</td>", time(&step.latency_us, quantile)));
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table></div></section>\n");
    }
}

pub fn circumstances(out: &mut String, results: &[Labelled]) {
    for labelled in results {
        let result = labelled.result;
        let of = if results.len() > 1 { format!(": {}", labelled.label) } else { String::new() };
        put(out, format_args!("<section class=\"card\"><h2>How it was measured{}</h2><dl>", escape(&of)));
        let machine = &result.machine;
        for (name, value, code) in [
            ("command", result.command.clone(), true),
            ("target", result.target.clone(), false),
            ("load", describe::load(result), false),
            ("bodies", describe::workload(&result.plan), false),
            ("transport", describe::transport(&result.plan), false),
            ("seed", result.plan.seed.to_string(), false),
            ("started", utc(result.started_unix_ms), false),
            ("lasted", units::span((result.totals.duration_s * 1e3).round() as u64), false),
            (
                "machine",
                format!(
                    "{}: {}, {} cores, {} MiB, kernel {}",
                    machine.host,
                    machine.cpu,
                    machine.cores,
                    units::count(machine.memory_mib),
                    machine.kernel
                ),
                false,
            ),
            ("measured by", result.tool.clone(), false),
        ] {
            let value = escape(&value);
            let value = if code { format!("<code>{value}</code>") } else { value };
            put(out, format_args!("<dt>{name}</dt><dd>{value}</dd>"));
        }
        out.push_str("</dl></section>\n");
    }
}
