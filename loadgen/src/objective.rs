//! What may not be: `--fail-if 'p99 > 5 ms'`. The one grammar, and its judgement of a result.
//!
//! An objective is `METRIC OPERATOR VALUE`, spaces free; [`help_after`] tells people the words. A time or a share of
//! something that was never measured fails its objective: a server that answered nothing has no p99 to be proud of.

use std::fmt;
use std::str::FromStr;

use crate::result::{Recorded, RunResult};
use crate::units;

/// For the end of `--help` of every command with `--fail-if`. At most 98 columns, where clap would wrap it.
pub fn help_after(examples: &str) -> String {
    format!("{examples}\n\n{GRAMMAR}")
}

const GRAMMAR: &str = "\
Objectives (--fail-if), each METRIC OPERATOR VALUE in quotes, since the shell takes < and > itself:
  p50 p99 p99.9 .. max mean  latency, as 'p99 > 5 ms'; also 'service p99' (from the send) and
                             'lateness p99' (the generator's own delay); units us, ms, s
  errors                     refused or not answered: 'errors > 0', or a share: 'errors > 0.1%'
  refused, refused NNN       'refused > 0', 'refused 429 > 100'
  unknown, unknown CAUSE     without an answer: timeout, reset, refused_connection, closed,
                             bad_answer, or never_sent
  rate, points rate          acknowledged a second: 'rate < 9k', or of what was due: 'rate < 99%'
  points lost                points of batches that were never acknowledged: 'points lost > 0'
  retries, given up          requests sent again; batches given up after all attempts
  cpu                        the generator's share of its core: 'cpu > 90%'
Operators: >  >=  <  <=";

#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    metric: Metric,
    operator: Operator,
    value: Value,
    /// As it was written
    text: String,
}

#[derive(Clone, Debug, PartialEq)]
enum Metric {
    Time(Clock, Statistic),
    Count(Count),
    Rate,
    PointsRate,
    Cpu,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Clock {
    Latency,
    Service,
    Lateness,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Statistic {
    /// 0 to 1
    Quantile(f64),
    Max,
    Mean,
}

#[derive(Clone, Debug, PartialEq)]
enum Count {
    Errors,
    Refused(Option<u16>),
    Unknown(Option<String>),
    PointsLost,
    Retries,
    GivenUp,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Us(f64),
    Plain(f64),
    /// 0 to 1
    Share(f64),
}

/// An objective that was not met.
#[derive(Clone, Debug, PartialEq)]
pub struct Failed {
    pub objective: String,
    /// What was measured, for a person
    pub figure: String,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(String);

const CAUSES: &[&str] = &["timeout", "reset", "refused_connection", "closed", "bad_answer", "never_sent"];
const WORDS: &[&str] = &[
    "p50",
    "p90",
    "p99",
    "p99.9",
    "p99.99",
    "max",
    "mean",
    "service",
    "lateness",
    "errors",
    "refused",
    "unknown",
    "rate",
    "points rate",
    "points lost",
    "retries",
    "given up",
    "cpu",
];

impl FromStr for Objective {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Objective, Fault> {
        let Some(at) = text.find(['<', '>']) else {
            return Err(Fault(format!(
                "'{}' has no < or >; write METRIC OPERATOR VALUE in quotes, as in 'p99 > 5 ms'",
                text.trim()
            )));
        };
        let (metric, rest) = text.split_at(at);
        let (operator, value) = match (rest.strip_prefix(">="), rest.strip_prefix("<=")) {
            (Some(value), _) => (Operator::GreaterOrEqual, value),
            (_, Some(value)) => (Operator::LessOrEqual, value),
            _ if rest.starts_with('>') => (Operator::Greater, &rest[1..]),
            _ => (Operator::Less, &rest[1..]),
        };
        let metric = metric.split_whitespace().collect::<Vec<_>>().join(" ").to_ascii_lowercase();
        let metric = parse_metric(&metric).map_err(Fault)?;
        let value = parse_value(&metric, value.trim()).map_err(Fault)?;
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(Objective { metric, operator, value, text })
    }
}

fn parse_metric(text: &str) -> Result<Metric, String> {
    let (clock, statistic) = match text.split_once(' ') {
        Some(("service", rest)) => (Clock::Service, rest),
        Some(("lateness", rest)) => (Clock::Lateness, rest),
        Some(("latency", rest)) => (Clock::Latency, rest),
        _ => (Clock::Latency, text),
    };
    if let Some(statistic) = parse_statistic(statistic)? {
        return Ok(Metric::Time(clock, statistic));
    }
    Ok(match text {
        "errors" => Metric::Count(Count::Errors),
        "refused" => Metric::Count(Count::Refused(None)),
        "unknown" => Metric::Count(Count::Unknown(None)),
        "points lost" => Metric::Count(Count::PointsLost),
        "retries" => Metric::Count(Count::Retries),
        "given up" => Metric::Count(Count::GivenUp),
        "rate" => Metric::Rate,
        "points rate" => Metric::PointsRate,
        "cpu" => Metric::Cpu,
        "service" | "lateness" | "latency" => return Err(format!("'{text}' of what? as in '{text} p99 > 1 ms'")),
        "" => return Err("the metric is missing, as in 'p99 > 5 ms'".into()),
        _ => match text.split_once(' ') {
            Some(("refused", status)) => match status.parse() {
                Ok(status @ 100..=599) => Metric::Count(Count::Refused(Some(status))),
                _ => return Err(format!("'{status}' is no HTTP status, as in 'refused 429 > 0'")),
            },
            Some(("unknown", cause)) if CAUSES.contains(&cause) => Metric::Count(Count::Unknown(Some(cause.into()))),
            Some(("unknown", cause)) => {
                return Err(match nearest(cause, CAUSES) {
                    Some(near) => format!("'{cause}' is no cause; did you mean 'unknown {near}'?"),
                    None => format!("'{cause}' is no cause; there are {}", CAUSES.join(", ")),
                });
            }
            _ => {
                return Err(match nearest(text, WORDS) {
                    Some(near) => format!("'{text}' is no metric; did you mean '{near}'?"),
                    None => format!("'{text}' is no metric; there are pNN (as in p99.9), {}", WORDS[5..].join(", ")),
                });
            }
        },
    })
}

fn parse_statistic(text: &str) -> Result<Option<Statistic>, String> {
    match text {
        "max" => return Ok(Some(Statistic::Max)),
        "mean" => return Ok(Some(Statistic::Mean)),
        _ => {}
    }
    let Some(digits) = text.strip_prefix('p').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) else {
        return Ok(None);
    };
    // Shifted as text: 99.9 / 100 is a little more than 0.999 and would ask for one value further up.
    match (digits.parse::<f64>(), format!("{digits}e-2").parse::<f64>()) {
        (Ok(0.0..=100.0), Ok(quantile)) => Ok(Some(Statistic::Quantile(quantile))),
        (Ok(_), _) => Err(format!("'{text}' is no percentile: p0 to p100, as in p99.9 (not p999)")),
        (Err(_), _) => Err(format!("'{text}' is no percentile, as in p99 or p99.9")),
    }
}

fn nearest(text: &str, words: &[&'static str]) -> Option<&'static str> {
    let near = |word: &&&str| strsim::damerau_levenshtein(text, word);
    words.iter().min_by_key(near).filter(|word| near(word) <= 1 + word.len() / 4).copied()
}

fn parse_value(metric: &Metric, text: &str) -> Result<Value, String> {
    if text.is_empty() {
        return Err("the value is missing, as in 'p99 > 5 ms' or 'errors > 0'".into());
    }
    let (number, unit) = units::split(text);
    match (metric, unit) {
        (Metric::Time(..), _) => units::parse_time_us(text).map(|us| Value::Us(us as f64)),
        (Metric::Cpu, "%") => Ok(Value::Share(units::positive(number)? / 100.0)),
        (Metric::Cpu, _) => Err(format!("'{text}' lacks its unit, as in 'cpu > 90 %'")),
        (Metric::Count(Count::Retries | Count::GivenUp), "%") => Err(format!("'{text}': only a number counts here")),
        (_, "%") => Ok(Value::Share(units::positive(number)? / 100.0)),
        (_, "us" | "ms" | "s") => Err(format!("'{text}' is a time, and this metric is none; leave '{unit}' away")),
        _ => units::parse_rate(text).map(Value::Plain),
    }
}

impl Objective {
    /// None when it is met.
    pub fn judge(&self, result: &RunResult) -> Option<Failed> {
        let figure = self.figure(result);
        let (bound, measured) = match (self.value, figure.measured) {
            (_, None) => return Some(Failed { objective: self.text.clone(), figure: figure.text }),
            (Value::Us(bound) | Value::Plain(bound) | Value::Share(bound), Some(measured)) => (bound, measured),
        };
        let fails = match self.operator {
            Operator::Greater => measured > bound,
            Operator::GreaterOrEqual => measured >= bound,
            Operator::Less => measured < bound,
            Operator::LessOrEqual => measured <= bound,
        };
        fails.then(|| Failed { objective: self.text.clone(), figure: figure.text })
    }

    fn figure(&self, result: &RunResult) -> Figure {
        let totals = &result.totals;
        match &self.metric {
            Metric::Time(clock, statistic) => Figure::time(
                match clock {
                    Clock::Latency => &result.histograms.latency_us,
                    Clock::Service => &result.histograms.service_us,
                    Clock::Lateness => &result.histograms.lateness_us,
                },
                *statistic,
            ),
            Metric::Count(count) => {
                let (value, whole) = match count {
                    Count::Errors => (totals.error_count(), totals.attempts()),
                    Count::Refused(None) => (totals.refused_count(), totals.attempts()),
                    Count::Refused(Some(status)) => {
                        (totals.refused.get(status).copied().unwrap_or(0), totals.attempts())
                    }
                    Count::Unknown(None) => (totals.unknown_count(), totals.attempts()),
                    Count::Unknown(Some(cause)) => (totals.unknown.get(cause).copied().unwrap_or(0), totals.attempts()),
                    Count::PointsLost => {
                        let each = u64::from(result.plan.workload.batch_points);
                        let lost = totals.given_up.saturating_mul(each);
                        (lost, lost.saturating_add(totals.points_acknowledged))
                    }
                    Count::Retries => (totals.retries, totals.attempts()),
                    Count::GivenUp => (totals.given_up, totals.attempts()),
                };
                match self.value {
                    Value::Share(_) => Figure::share(value as f64, whole as f64),
                    _ => Figure { measured: Some(value as f64), text: units::count(value) },
                }
            }
            Metric::Rate => self.rate(result.achieved_rate(), result.due_rate()),
            Metric::PointsRate => {
                let due = result.due_rate() * f64::from(result.plan.workload.batch_points);
                self.rate(result.points_rate(), due)
            }
            Metric::Cpu => {
                let share = totals.generator_cpu_share();
                Figure { measured: Some(share), text: units::share(share) }
            }
        }
    }

    fn rate(&self, value: f64, due: f64) -> Figure {
        match self.value {
            Value::Share(_) => Figure::share(value, due),
            _ => Figure { measured: Some(value), text: format!("{}/s", units::rate(value)) },
        }
    }
}

/// What was measured, and in words. None where nothing was.
struct Figure {
    measured: Option<f64>,
    text: String,
}

impl Figure {
    fn time(recorded: &Recorded, statistic: Statistic) -> Figure {
        if recorded.0.is_empty() {
            return Figure { measured: None, text: "nothing was measured".into() };
        }
        let us = match statistic {
            Statistic::Quantile(quantile) => recorded.at(quantile) as f64,
            Statistic::Max => recorded.0.max() as f64,
            Statistic::Mean => recorded.0.mean(),
        };
        Figure { measured: Some(us), text: units::time(us) }
    }

    fn share(part: f64, whole: f64) -> Figure {
        if whole > 0.0 {
            Figure { measured: Some(part / whole), text: units::share(part / whole) }
        } else {
            Figure { measured: None, text: "nothing was sent".into() }
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "failed: {}: it was {}", self.objective, self.figure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::fixture;

    fn judge(text: &str, result: &RunResult) -> Option<String> {
        let objective: Objective = text.parse().unwrap_or_else(|fault| panic!("{text}: {fault}"));
        objective.judge(result).map(|failed| failed.figure)
    }

    /// A result with known figures: 1,000 latencies of 1 to 1,000 ms.
    fn known() -> RunResult {
        let mut result = fixture::steady("a", 10);
        result.histograms.latency_us = Recorded::default();
        for ms in 1..=1_000 {
            result.histograms.latency_us.0.record(ms * 1_000).unwrap();
        }
        result.totals.unknown = [("timeout".to_string(), 5), ("reset".to_string(), 2)].into();
        result.totals.retries = 3;
        result.totals.given_up = 1;
        result
    }

    #[test]
    fn every_metric_is_judged_by_its_own_figure() {
        // 10,000 requests due and sent in 10 s, 9,980 acknowledged, 20 refused with 429, 7 unknown.
        let result = known();
        for (fails, holds, figure) in [
            ("p50 > 499 ms", "p50 > 501 ms", "500 ms"),
            ("P99>989ms", "p99>991ms", "990 ms"),
            ("p99.9 >= 999 ms", "p99.9 > 1 s", "999 ms"),
            ("max > 0.999 s", "max > 1.01 s", "1.00 s"),
            ("mean < 0.51 s", "mean < 0.49 s", "501 ms"),
            ("latency p50 > 1 ms", "latency p50 < 1 ms", "500 ms"),
            ("lateness p99 > 30 us", "lateness p99 > 1 ms", "34 us"),
            ("service max > 1 ms", "service max > 10 s", "5.20 ms"),
            ("errors > 0", "errors > 27", "27"),
            ("errors > 0.2 %", "errors > 0.3 %", "0.27 %"),
            ("refused >= 20", "refused > 20", "20"),
            ("refused 429 > 0", "refused 503 > 0", "20"),
            ("unknown > 6", "unknown > 7", "7"),
            ("unknown timeout > 4", "unknown closed > 0", "5"),
            ("rate < 999", "rate < 998", "998/s"),
            ("rate < 1k/s", "rate < 0.9k/s", "998/s"),
            ("rate < 99.9 %", "rate < 99.5 %", "99.80 %"),
            ("points rate < 0.1M", "points rate < 99k", "99,800/s"),
            ("points lost > 0", "points lost > 100", "100"),
            ("points lost > 0.01 %", "points lost > 1 %", "0.01 %"),
            ("retries > 2", "retries > 3", "3"),
            ("given up > 0", "given  up > 1", "1"),
            ("cpu > 40 %", "cpu > 90 %", "42.00 %"),
            ("cpu <= 43 %", "cpu < 40 %", "42.00 %"),
        ] {
            assert_eq!(judge(fails, &result).as_deref(), Some(figure), "{fails}");
            assert_eq!(judge(holds, &result), None, "{holds}");
        }
    }

    #[test]
    fn what_was_never_measured_fails() {
        let mut result = known();
        result.histograms.latency_us = Recorded::default();
        result.totals.sent = 0;
        assert_eq!(judge("p99 > 5 ms", &result).as_deref(), Some("nothing was measured"));
        assert_eq!(judge("p99 < 5 ms", &result).as_deref(), Some("nothing was measured"));
        assert_eq!(judge("errors > 1 %", &result).as_deref(), Some("nothing was sent"));
    }

    #[test]
    fn faults_teach_the_grammar() {
        for (text, part) in [
            ("p99", "has no < or >; write METRIC OPERATOR VALUE in quotes, as in 'p99 > 5 ms'"),
            ("p99 > 5", "'5' lacks a unit: us, ms or s"),
            ("p99 > 5 min", "'min' is no unit of time"),
            ("p99 >", "the value is missing"),
            ("> 5 ms", "the metric is missing"),
            ("p999 > 5 ms", "p0 to p100, as in p99.9 (not p999)"),
            ("p9.9.9 > 5 ms", "is no percentile"),
            ("erors > 0", "did you mean 'errors'?"),
            ("point lost > 0", "did you mean 'points lost'?"),
            ("refused 42 > 0", "is no HTTP status"),
            ("unknown timout > 0", "did you mean 'unknown timeout'?"),
            ("unknown mischief > 0", "there are timeout, reset"),
            ("lateness > 1 ms", "'lateness' of what?"),
            ("weather > 3", "there are pNN (as in p99.9), max, mean"),
            ("cpu > 90", "lacks its unit, as in 'cpu > 90 %'"),
            ("errors > 5 ms", "is a time, and this metric is none"),
            ("errors > -1", "'-1' is no number"),
            ("rate < fast", "'fast' is no number"),
            ("retries > 5 %", "only a number counts here"),
        ] {
            let fault = text.parse::<Objective>().unwrap_err().to_string();
            assert!(fault.contains(part), "{text}: {fault:?} says {part:?}");
        }
    }
}
