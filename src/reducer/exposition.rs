//! `GET /aggregates`: the newest closed window of each rule output, as Prometheus text under fixed names.
//!
//! Labels: `name`, the output's tags, `client` when the rule groups by it, and `window` ("10s", "1m") only for rules with
//! several windows, so that a rule with one window has the plain labels its users write queries for. Should two rules
//! have outputs with the same labels, the later ones get a `rule` label: a scrape with duplicates would be refused whole.
//!
//! Names that end in `_sum` and `_count` may only belong to a summary, so these two are exposed as the summary
//! `metricstream_window`, which has no quantiles of its own. Like all others they are of one window, not running totals.
//! A window without quantiles (`windows.quantiles = false`) has no row under `_p50`, `_p95`, `_p99`.

use super::record::WindowRecord;
use std::collections::HashSet;

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Records and whether their rule has several windows: see [`super::ReducerCore::newest_of_rules`].
pub fn aggregates_exposition<'a>(newest: impl Iterator<Item = (&'a WindowRecord, bool)>) -> String {
    let mut seen = HashSet::new();
    let mut rows: Vec<(String, &WindowRecord)> = Vec::new();
    for (record, several_windows) in newest {
        let mut labels = labels(record, several_windows, None);
        if !seen.insert(labels.clone()) {
            labels = self::labels(record, several_windows, record.rule.as_deref());
            if !seen.insert(labels.clone()) {
                continue; // the same rule twice
            }
        }
        rows.push((labels, record));
    }
    let mut out = String::with_capacity(512 + rows.len() * 600);
    out.push_str("# HELP metricstream_window Sum and number of the points in the newest closed window.\n");
    out.push_str("# TYPE metricstream_window summary\n");
    for (labels, record) in &rows {
        row(&mut out, "sum", labels, record.aggregates.sum);
        row(&mut out, "count", labels, record.aggregates.count as f64);
    }
    type Value = fn(&WindowRecord) -> Option<f64>;
    let gauges: [(&str, &str, Value); 7] = [
        ("min", "Least value in the newest closed window.", |r| Some(r.aggregates.min)),
        ("max", "Greatest value in the newest closed window.", |r| Some(r.aggregates.max)),
        ("avg", "Mean of the values in the newest closed window.", |r| Some(r.aggregates.avg)),
        ("p50", "Median of the values in the newest closed window, within 1 %.", |r| Some(r.aggregates.quantiles?.p50)),
        ("p95", "95th percentile of the values in the newest closed window, within 1 %.", |r| {
            Some(r.aggregates.quantiles?.p95)
        }),
        ("p99", "99th percentile of the values in the newest closed window, within 1 %.", |r| {
            Some(r.aggregates.quantiles?.p99)
        }),
        ("series", "Number of series that reported in the newest closed window.", |r| Some(r.series as f64)),
    ];
    for (name, help, value) in gauges {
        out.push_str(&format!("# HELP metricstream_window_{name} {help}\n# TYPE metricstream_window_{name} gauge\n"));
        for (labels, record) in &rows {
            if let Some(value) = value(record) {
                row(&mut out, name, labels, value);
            }
        }
    }
    out
}

fn row(out: &mut String, name: &str, labels: &str, value: f64) {
    out.push_str("metricstream_window_");
    out.push_str(name);
    out.push_str(labels);
    out.push(' ');
    if value == f64::INFINITY {
        out.push_str("+Inf");
    } else if value == f64::NEG_INFINITY {
        out.push_str("-Inf");
    } else {
        out.push_str(zmij::Buffer::new().format_finite(value));
    }
    out.push('\n');
}

fn labels(record: &WindowRecord, several_windows: bool, rule: Option<&str>) -> String {
    let parsed = record.parsed();
    let mut out = String::from("{name=");
    quoted(&mut out, parsed.name);
    // Names of ours win over tags of the same name, and the first of tags that become equal.
    let window = several_windows.then(|| window_text(record.window_s));
    let mut used: Vec<String> = vec!["name".into()];
    let client = (!parsed.client.is_empty()).then_some(parsed.client);
    let ours = [("client", client), ("window", window.as_deref()), ("rule", rule)];
    for (label, value) in ours {
        if let Some(value) = value {
            used.push(label.into());
            pair(&mut out, label, value);
        }
    }
    for (tag, value) in &parsed.tags {
        let label = label_name(tag);
        if used.contains(&label) {
            let exported = format!("exported_{label}");
            if used.contains(&exported) {
                continue;
            }
            pair(&mut out, &exported, value);
            used.push(exported);
        } else {
            pair(&mut out, &label, value);
            used.push(label);
        }
    }
    out.push('}');
    out
}

fn pair(out: &mut String, label: &str, value: &str) {
    out.push(',');
    out.push_str(label);
    out.push('=');
    quoted(out, value);
}

fn quoted(out: &mut String, value: &str) {
    out.push('"');
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`, and not starting with the two underscores that Prometheus keeps for itself.
fn label_name(tag: &str) -> String {
    let mut out: String = tag.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if out.is_empty() || out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    if out.starts_with("__") {
        out.insert_str(0, "tag");
    }
    out
}

fn window_text(window_s: u32) -> String {
    match window_s {
        s if s.is_multiple_of(3600) => format!("{}h", s / 3600),
        s if s.is_multiple_of(60) => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reducer::record::Flags;
    use metricstream_shards::{
        point::series_key,
        window::summary::{Aggregates, Detail},
    };
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    fn record(client: &str, rule: &str, window_s: u32, tags: &[(&str, &str)], values: &[f64]) -> WindowRecord {
        let mut key = Vec::new();
        let tags: Vec<_> = tags.iter().map(|(k, v)| (k.as_bytes(), v.as_bytes())).collect();
        series_key::write(&mut key, client.as_bytes(), b"api.latency", &tags);
        WindowRecord {
            key: key.into(),
            rule: Some(rule.into()),
            window_s,
            start_ms: 0,
            aggregates: Aggregates::of(&mut values.to_vec(), Detail::Quantiles).expect("values"),
            series: 50,
            era: 0,
            revision: 0,
            flags: Flags::default(),
        }
    }

    #[test]
    fn a_rule_with_one_window_has_plain_labels() {
        let r = record("", "r", 10, &[("region", "us-east-1")], &[2.5]);
        let text = aggregates_exposition([(&r, false)].into_iter());
        assert!(text.contains("\nmetricstream_window_p99{name=\"api.latency\",region=\"us-east-1\"} 2.5\n"), "{text}");
        assert!(text.contains("\nmetricstream_window_series{name=\"api.latency\",region=\"us-east-1\"} 50.0\n"));
        let text = aggregates_exposition([(&r, true)].into_iter());
        assert!(text.contains("{name=\"api.latency\",window=\"10s\",region=\"us-east-1\"} 2.5\n"), "{text}");
    }

    #[test]
    fn a_window_without_quantiles_has_no_row_for_them() {
        let with = record("", "r", 10, &[("region", "a")], &[2.5]);
        let mut without = record("", "r", 10, &[("region", "b")], &[2.5]);
        without.aggregates.quantiles = None;
        let text = aggregates_exposition([(&with, false), (&without, false)].into_iter());
        let rows =
            |name: &str| text.lines().filter(|l| l.starts_with(&format!("metricstream_window_{name}{{"))).count();
        assert_eq!(["sum", "max", "p50", "p95", "p99", "series"].map(rows), [2, 2, 1, 1, 1, 2], "{text}");
        promtool_is_content_with(&text);
        promtool_is_content_with(&aggregates_exposition([(&without, false)].into_iter()));
    }

    #[test]
    fn odd_labels_are_clean_and_never_collide() {
        let odd = [("1st", "a\"b\\c\nd"), ("__x", "y"), ("a-b", "1"), ("a.b", "2"), ("name", "n"), ("ü", "ü")];
        let records = [
            record("10.0.0.1", "r", 10, &odd, &[1.0, f64::MAX, f64::MAX]),
            record("", "r", 60, &[], &[-1e300]),
            record("", "s", 60, &[], &[-1e300]),
        ];
        let text = aggregates_exposition(records.iter().map(|r| (r, true)));
        assert!(text.contains("rule=\"s\""), "{text}");
        assert!(text.contains("metricstream_window_sum{") && text.contains(" +Inf\n"));
        for line in text.lines() {
            let labels = line.split(' ').next().unwrap_or("");
            assert_eq!(
                text.lines().filter(|l| l.split(' ').next() == Some(labels) && !l.starts_with('#')).count(),
                usize::from(!line.starts_with('#'))
            );
        }
        promtool_is_content_with(&text);
    }

    /// Where promtool is installed: it parses and lints.
    fn promtool_is_content_with(text: &str) {
        let child = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else { return };
        child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("promtool reads");
        let output = child.wait_with_output().expect("promtool ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.trim().is_empty(), "promtool: {said}");
    }

    #[test]
    fn no_rules_no_rows() {
        let text = aggregates_exposition(std::iter::empty());
        assert!(text.lines().all(|line| line.starts_with('#')));
    }
}
