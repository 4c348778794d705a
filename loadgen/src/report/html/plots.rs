//! Which plots a page has, and what their points are.

use super::plot::{Axis, Bars, Line, POINTS_MAX, Plot, Point, Scale, Style, trimmed};
use super::{Labelled, axis_time};
use crate::result::{Recorded, RunResult, Second, ServerSide};
use crate::units;

pub fn draw(out: &mut String, results: &[Labelled]) {
    let measured = |recorded: &Recorded| !recorded.0.is_empty();
    if results.iter().any(|labelled| measured(&labelled.result.histograms.latency_us)) {
        by_percentile(results).draw(out);
    }
    if results.iter().any(|labelled| !labelled.result.steps.is_empty()) {
        by_throughput(results).draw(out);
    }
    if results.iter().any(|labelled| !labelled.result.seconds.is_empty()) {
        rate_over_time(results).draw(out);
        latency_over_time(results).draw(out);
    }
    if results.iter().any(|labelled| measured(&labelled.result.histograms.lateness_us)) {
        lateness(results).draw(out);
    }
    for labelled in results {
        if let Some(bars) =
            labelled.result.server.as_ref().and_then(|server| server_beside(labelled, server, results.len()))
        {
            bars.draw(out);
        }
    }
}

/// The name of a line: of a figure alone, or of a figure of one of several results.
fn named(results: &[Labelled], labelled: &Labelled, figure: &str) -> String {
    match (results.len(), figure) {
        (1, _) => figure.to_string(),
        (_, "") => labelled.label.clone(),
        _ => format!("{}, {figure}", labelled.label),
    }
}

fn by_percentile(results: &[Labelled]) -> Plot {
    let mut lines = Vec::new();
    for (n, labelled) in results.iter().enumerate() {
        let histograms = &labelled.result.histograms;
        lines.push(percentile_line(named(results, labelled, "latency"), n, Style::Solid, &histograms.latency_us));
        if results.len() == 1 {
            lines.push(percentile_line("service time".into(), 2, Style::Dashed, &histograms.service_us));
        }
    }
    let caption = if results.iter().all(|labelled| labelled.result.is_closed_loop()) {
        "From the send to the last byte of the answer: a closed loop cannot see what a stall keeps it from sending."
    } else {
        "From the moment each request was due, so that a stall counts for all that it held up. Service time counts from \
         the send."
    };
    percentile_plot("Latency by percentile", caption.into(), lines)
}

fn lateness(results: &[Labelled]) -> Plot {
    let mut lines = Vec::new();
    for (n, labelled) in results.iter().enumerate() {
        let histograms = &labelled.result.histograms;
        lines.push(percentile_line(
            named(results, labelled, "lateness"),
            n + usize::from(results.len() == 1),
            Style::Solid,
            &histograms.lateness_us,
        ));
        if results.len() == 1 {
            lines.push(percentile_line("latency".into(), 0, Style::Dashed, &histograms.latency_us));
        }
    }
    let caption = "From the moment a request was due to its send on a free connection: what of the latency is not the \
                   server's.";
    percentile_plot("The generator's own lateness", caption.into(), lines)
}

fn percentile_plot(title: &str, caption: String, lines: Vec<Line>) -> Plot {
    let values = || lines.iter().flat_map(|line| line.points.iter());
    let rarest = values().map(|point| point.x).fold(10.0, f64::max);
    let y = Scale::log(values().map(|point| point.y));
    Plot {
        title: title.into(),
        caption,
        x: Axis { name: "percentile", scale: Scale::Log { low: 1.0, high: rarest }, label: percentile_label },
        y: Axis { name: "latency", scale: y, label: axis_time },
        lines,
    }
}

/// 1 / (1 - q) as a percentile.
fn percentile_label(rarity: f64) -> String {
    let nines = rarity.log10().round() as usize;
    match nines {
        0 => "0 %".into(),
        1 => "90 %".into(),
        2 => "99 %".into(),
        _ => format!("99.{} %", "9".repeat(nines - 2)),
    }
}

fn percentile_line(name: String, color: usize, style: Style, recorded: &Recorded) -> Line {
    let histogram = &recorded.0;
    let mut points = Vec::new();
    if !histogram.is_empty() {
        for step in histogram.iter_quantiles(8) {
            let quantile = step.quantile_iterated_to();
            // The last one is the greatest of all: as rare as there were answers.
            let rarity = (1.0 / (1.0 - quantile)).min(histogram.len() as f64);
            let us = step.value_iterated_to() as f64;
            let percentile = if quantile < 1.0 { format!("{:.6}", quantile * 100.0) } else { "100".into() };
            let percentile = if percentile.contains('.') {
                percentile.trim_end_matches('0').trim_end_matches('.')
            } else {
                &percentile
            };
            points.push(Point::new(rarity, us, format!("{} at {percentile} %", units::time(us))));
        }
    }
    Line { name, color, style, points }
}

fn by_throughput(results: &[Labelled]) -> Plot {
    let mut lines = Vec::new();
    for (n, labelled) in results.iter().enumerate() {
        if labelled.result.steps.is_empty() {
            continue;
        }
        let mut steps: Vec<_> = labelled.result.steps.iter().collect();
        steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        let figures: &[(&str, f64)] =
            if results.len() == 1 { &[("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] } else { &[("p99", 0.99)] };
        for (m, (name, quantile)) in figures.iter().enumerate() {
            let points = (steps.iter().filter(|step| !step.latency_us.0.is_empty()))
                .map(|step| {
                    let us = step.latency_us.at(*quantile) as f64;
                    let achieved = step.achieved_rate();
                    let bad = step.errors > 0 || achieved < 0.99 * step.rate;
                    let errors =
                        if step.errors > 0 { format!(", {} errors", units::count(step.errors)) } else { String::new() };
                    let text = format!(
                        "{} at {}/s of {}/s{errors}",
                        units::time(us),
                        units::rate(achieved),
                        units::rate(step.rate)
                    );
                    Point { bad, ..Point::new(achieved, us, text) }
                })
                .collect();
            lines.push(Line { name: named(results, labelled, name), color: n + m, style: Style::Marked, points });
        }
    }
    let values = || lines.iter().flat_map(|line| line.points.iter());
    Plot {
        title: "Latency against throughput".into(),
        caption:
            "A point for each rate that was tried, at the rate that was acknowledged. Hollow red ones had errors or \
                  fell behind the intended rate by over 1 %."
                .into(),
        x: Axis {
            name: "requests acknowledged a second",
            scale: Scale::from_zero(values().map(|point| point.x)),
            label: units::short,
        },
        y: Axis { name: "latency", scale: Scale::log(values().map(|point| point.y)), label: axis_time },
        lines,
    }
}

fn rate_over_time(results: &[Labelled]) -> Plot {
    let mut lines = Vec::new();
    for (n, labelled) in results.iter().enumerate() {
        let result = labelled.result;
        let line = |figure: &str, color, style, value: &dyn Fn(&Second) -> u64| {
            let mean = |some: &[Second]| some.iter().map(|s| value(s) as f64).sum::<f64>() / some.len() as f64;
            let text = |rate: f64| format!("{}/s", units::rate(rate));
            Line { name: named(results, labelled, figure), color, style, points: over_time(result, mean, text) }
        };
        if results.len() == 1 {
            if !result.is_closed_loop() {
                lines.push(line("due", 6, Style::Dashed, &|second| second.due));
            }
            lines.push(line("acknowledged", 0, Style::Solid, &|second| second.acknowledged));
            if result.seconds.iter().any(|second| second.refused + second.unknown > 0) {
                lines.push(line("refused", 1, Style::Solid, &|second| second.refused));
                lines.push(line("no answer", 3, Style::Solid, &|second| second.unknown));
            }
        } else {
            lines.push(line("", n, Style::Solid, &|second| second.acknowledged));
        }
    }
    let what = if results.len() == 1 { "Requests a second." } else { "Requests acknowledged a second." };
    time_plot("Rate over time", what, lines, Scale::from_zero, units::short)
}

fn latency_over_time(results: &[Labelled]) -> Plot {
    let mut lines = Vec::new();
    for (n, labelled) in results.iter().enumerate() {
        let line = |figure: &str, color, style, value: &dyn Fn(&Second) -> u64| {
            let greatest = |some: &[Second]| some.iter().map(value).max().unwrap_or(0) as f64;
            let points = over_time(labelled.result, greatest, units::time);
            Line { name: named(results, labelled, figure), color, style, points }
        };
        if results.len() == 1 {
            lines.push(line("p50", 0, Style::Solid, &|second| second.p50_us));
            lines.push(line("p99", 1, Style::Solid, &|second| second.p99_us));
            lines.push(line("max", 3, Style::Solid, &|second| second.max_us));
            if !labelled.result.is_closed_loop() {
                lines.push(line("generator's lateness p99", 6, Style::Dashed, &|second| second.lateness_p99_us));
            }
        } else {
            lines.push(line("p99", n, Style::Solid, &|second| second.p99_us));
        }
    }
    time_plot("Latency over time", "Of the requests answered in each second.", lines, Scale::log, axis_time)
}

fn time_plot(
    title: &str,
    what: &str,
    lines: Vec<Line>,
    scale: fn(std::vec::IntoIter<f64>) -> Scale,
    label: fn(f64) -> String,
) -> Plot {
    let end_s = lines.iter().flat_map(|line| line.points.iter()).map(|point| point.x).fold(0.0, f64::max);
    let values: Vec<f64> = lines.iter().flat_map(|line| line.points.iter()).map(|point| point.y).collect();
    let thinned = if end_s > POINTS_MAX as f64 {
        " Seconds are drawn together: rates as their mean, latencies as their greatest."
    } else {
        ""
    };
    Plot {
        title: title.into(),
        caption: format!("{what}{thinned}"),
        x: Axis { name: "seconds", scale: Scale::between(0.0, end_s, 1.0), label: units::short },
        y: Axis { name: title_axis(title), scale: scale(values.into_iter()), label },
        lines,
    }
}

fn title_axis(title: &str) -> &'static str {
    if title.starts_with("Rate") { "requests/s" } else { "latency" }
}

/// Of runs of seconds, so many that at most [`POINTS_MAX`] come of them.
fn over_time(result: &RunResult, value: impl Fn(&[Second]) -> f64, text: impl Fn(f64) -> String) -> Vec<Point> {
    let each = result.seconds.len().div_ceil(POINTS_MAX).max(1);
    let mut before_s = None;
    (result.seconds.chunks(each))
        .map(|some| {
            let (at_s, y) = (some[0].at_s, value(some));
            // Results merged from runs with a pause between them
            let after_gap = before_s.is_some_and(|before: f64| at_s - before > 1.5 * each as f64);
            before_s = Some(some[some.len() - 1].at_s.max(at_s + (each - 1) as f64));
            Point { after_gap, ..Point::new(at_s, y, format!("{} at {} s", text(y), trimmed(at_s))) }
        })
        .collect()
}

/// Bars of the server's buckets, and of the client's service times put into the same buckets.
fn server_beside(labelled: &Labelled, server: &ServerSide, of: usize) -> Option<Bars> {
    let service = &labelled.result.histograms.service_us.0;
    let total: f64 = server.acknowledge.iter().map(|(_, count)| *count as f64).sum();
    if total == 0.0 || service.is_empty() {
        return None;
    }
    let mut classes: Vec<(String, f64, f64)> = Vec::new();
    let mut below_us = 0;
    for (bound_s, count) in &server.acknowledge {
        let bound_us = if bound_s.is_finite() { (bound_s * 1e6).round() as u64 } else { u64::MAX };
        let ours = if bound_us > below_us { service.count_between(below_us + 1, bound_us) } else { 0 };
        let label = if bound_us == u64::MAX { "more".into() } else { axis_time(bound_us as f64) };
        classes.push((label, *count as f64 / total, ours as f64 / service.len() as f64));
        below_us = bound_us;
    }
    // Empty classes at both ends say nothing.
    let used = |(_, theirs, ours): &(String, f64, f64)| *theirs > 0.0 || *ours > 0.0;
    let first = classes.iter().position(used)?;
    let last = classes.iter().rposition(used)?;
    let classes = &classes[first..=last];
    let suffix = if of > 1 { format!(": {}", labelled.label) } else { String::new() };
    Some(Bars {
        title: format!("The server's own histogram beside the client's{suffix}"),
        caption:
            "Time to the acknowledgement as the server counts it, and the service time seen from outside in the same \
                  buckets."
                .into(),
        x_name: "up to",
        classes: classes.iter().map(|(label, _, _)| label.clone()).collect(),
        series: vec![
            ("client".into(), classes.iter().map(|(_, _, ours)| *ours).collect()),
            ("server".into(), classes.iter().map(|(_, theirs, _)| *theirs).collect()),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::fixture;

    #[test]
    fn percentiles_reach_as_far_as_there_were_answers() {
        let result = fixture::steady("a", 10);
        let line = percentile_line("latency".into(), 0, Style::Solid, &result.histograms.latency_us);
        assert!(line.points.len() > 60, "{}", line.points.len());
        let last = line.points.last().unwrap();
        assert_eq!((last.x, last.y), (10_000.0, result.histograms.latency_us.0.max() as f64));
        assert!(last.text.ends_with("at 100 %"), "{}", last.text);
        assert_eq!(
            (percentile_label(1.0), percentile_label(100.0), percentile_label(1e5)),
            ("0 %".into(), "99 %".into(), "99.999 %".into())
        );
    }

    #[test]
    fn long_runs_are_thinned_without_losing_a_spike_and_pauses_stay_gaps() {
        let mut result = fixture::steady("a", 2);
        let one = result.seconds[0].clone();
        result.seconds = (0..10_000).map(|n| Second { at_s: f64::from(n), ..one.clone() }).collect();
        result.seconds[7_777].max_us = 1_000_000;
        let greatest = |some: &[Second]| some.iter().map(|s| s.max_us).max().unwrap() as f64;
        let points = over_time(&result, greatest, units::time);
        assert!(points.len() <= POINTS_MAX);
        assert!(points.iter().any(|point| point.y == 1e6));
        assert!(points.iter().all(|point| !point.after_gap));

        result.seconds = [0, 1, 2, 60, 61].map(|n| Second { at_s: f64::from(n), ..one.clone() }).to_vec();
        let gaps: Vec<bool> = over_time(&result, greatest, units::time).iter().map(|point| point.after_gap).collect();
        assert_eq!(gaps, [false, false, false, true, false]);
    }

    #[test]
    fn both_histograms_are_shares_of_one() {
        let result = fixture::steady("a", 10);
        let labelled = Labelled::alone(&result);
        let bars = server_beside(&labelled, result.server.as_ref().unwrap(), 1).unwrap();
        for (name, shares) in &bars.series {
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 0.01, "{name}: {shares:?}");
        }
        assert_eq!(bars.classes, ["1.02 ms", "2.05 ms", "4.1 ms", "8.19 ms"]);
    }
}
