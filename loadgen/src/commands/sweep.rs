//! The highest rate that meets a stated p99, found by trying: each step is a run of its own at a constant rate.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::load_args::{LoadArgs, parse_duration};
use super::{Failure, Outcome};
use crate::plan::{Plan, Shape};
use crate::report::{self, Outputs};
use crate::result::{RunResult, Second, Stretch};
use crate::search::{Bounds, Found, search};
use crate::{engine, objective, units};

/// Find the highest rate that meets a stated p99
///
/// The rate doubles from --from until a step fails: its p99 is over, it had errors, or less than 99 % of the intended
/// rate was acknowledged. Then the gap is halved down to --precision. A failure is believed when the same rate fails twice. The
/// main figures of the result are those of the highest rate that held; all steps are in its table and plots. The exit code is 1
/// when even the lowest rate fails.
#[derive(clap::Args)]
#[command(after_help = objective::help_after(EXAMPLES))]
pub struct Args {
    /// What the 99th percentile of the latency, from the intended moment, may be
    #[arg(long, value_parser = units::parse_time_us, value_name = "TIME", help_heading = "Search")]
    p99: u64,
    /// The first rate, in requests a second
    #[arg(long, value_parser = units::parse_rate, default_value = "1k", value_name = "RATE", help_heading = "Search")]
    from: f64,
    /// No rate above this is tried
    #[arg(long, value_parser = units::parse_rate, default_value = "200k", value_name = "RATE", help_heading = "Search")]
    to: f64,
    /// How long each rate is tried
    #[arg(long, value_parser = parse_duration, default_value = "5s", value_name = "DURATION", help_heading = "Search")]
    step_duration: Duration,
    /// Between two steps, for the server to recover
    #[arg(long, value_parser = parse_duration, default_value = "1s", value_name = "DURATION", help_heading = "Search")]
    pause: Duration,
    /// How close the answer comes to the lowest rate that failed
    #[arg(long, value_parser = parse_precision, default_value = "5%", value_name = "SHARE", help_heading = "Search")]
    precision: f64,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    outputs: Outputs,
}

const EXAMPLES: &str = "\
Examples:
  metricstream-loadgen sweep --target http://127.0.0.1:8186 --p99 5ms --report sweep.html
  metricstream-loadgen sweep --target http://127.0.0.1:8186 --p99 20ms --from 100 --to 5k \\
      --batch 1000 --precision 2%

The generator itself can be the limit: the result says so when it was late or its core was full.
`run --fail-if` judges one rate, and `run --steps` walks through given ones.";

/// Share of the intended rate that must be acknowledged.
const ACHIEVED_SHARE: f64 = 0.99;

fn parse_precision(text: &str) -> Result<f64, String> {
    let share = match units::split(text) {
        (number, "%") => units::positive(number)? / 100.0,
        (number, "") => units::positive(number)?,
        _ => return Err(format!("'{text}' is no share, as '5%' is")),
    };
    if (0.001..=1.0).contains(&share) { Ok(share) } else { Err("the precision is 0.1% to 100%".into()) }
}

/// Why a search ended before its end.
enum Stop {
    Failed(Failure),
    /// By SIGINT or SIGTERM
    Interrupted,
}

pub fn run(args: Args) -> Outcome {
    if args.from <= 0.0 {
        return Err(Failure("a rate of 0 sends nothing; give --from a rate above 0".into()));
    }
    if args.to < args.from {
        let (from, to) = (units::rate(args.from), units::rate(args.to));
        return Err(Failure(format!("--to {to} is below --from {from}; swap them")));
    }
    if args.load.ledger().is_some() {
        return Err(Failure("a sweep keeps no ledger; use run --steps with --ledger to verify what was sent".into()));
    }
    args.outputs.check()?;
    let step_ms = args.step_duration.as_millis() as u64;
    let (target, base) = args.load.plan(Shape::Constant { rate: args.from, duration_ms: step_ms }, None)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // Without it a sweep cannot be cut short gracefully, and still ends.
        let _ = engine::watch(signal, &interrupted);
    }
    let begun = Instant::now();
    let mut gathered = Gathered::default();
    let found = search(Bounds { from: args.from, to: args.to, precision: args.precision }, |rate| {
        if !gathered.steps.is_empty() {
            std::thread::sleep(args.pause);
        }
        let plan = Plan {
            shape: Shape::Constant { rate, duration_ms: step_ms },
            // Points of a step must not be repeats of the one before.
            epoch_ns: base.epoch_ns + begun.elapsed().as_nanos() as i64,
            ..base.clone()
        };
        let options = args.load.options(target, &plan).map_err(Stop::Failed)?;
        let result = engine::run(&plan, options).map_err(Stop::Failed)?;
        if interrupted.load(Ordering::Relaxed) {
            return Err(Stop::Interrupted);
        }
        let step = Step::of(result, rate, args.step_duration.as_secs_f64(), args.p99);
        // After the live line, which has told the rate meanwhile.
        eprintln!("step {:<3} {:>9} requests/s  {}", gathered.steps.len() + 1, units::rate(rate), step.line());
        let holds = step.faults.is_empty();
        gathered.add(step);
        Ok(holds)
    });
    let (found, is_whole) = match found {
        Ok(found) => (found, true),
        Err(Stop::Failed(failure)) => return Err(failure),
        Err(Stop::Interrupted) => (gathered.found(), false),
    };
    let Some(mut result) = gathered.into_result(found) else {
        return Err(Failure("interrupted before the first step was over; there is no result".into()));
    };
    result.notes.push(conclusion(found, args.p99));
    if !is_whole {
        result.notes.push("the search was interrupted: a higher rate may hold".into());
    }
    let code = report::finish(&result, &args.outputs)?;
    Ok(if found.highest.is_none() { ExitCode::from(1) } else { code })
}

fn conclusion(found: Found, p99_us: u64) -> String {
    let p99 = units::time(p99_us as f64);
    match (found.highest, found.failed) {
        (None, Some(lowest)) => {
            format!("even {} requests/s did not meet a p99 of {p99}; try a lower --from", units::rate(lowest))
        }
        (None, None) => "no rate was judged".into(),
        (Some(highest), Some(failed)) => {
            let (highest, failed) = (units::rate(highest), units::rate(failed));
            format!("{highest} requests/s meet a p99 of {p99}; {failed} do not")
        }
        (Some(highest), None) => format!(
            "{} requests/s, the highest rate tried, meet a p99 of {p99}; the limit may lie above",
            units::rate(highest)
        ),
    }
}

/// One rate, tried.
struct Step {
    rate: f64,
    step_s: f64,
    result: RunResult,
    /// Acknowledged within the step itself, and not while its backlog was worked off
    acknowledged: u64,
    /// Why it does not hold. Empty when it does.
    faults: Vec<String>,
}

impl Step {
    fn of(result: RunResult, rate: f64, step_s: f64, p99_us: u64) -> Step {
        let within = result.seconds.iter().take(step_s.ceil() as usize);
        let acknowledged = within.fold(0, |sum: u64, second| sum.saturating_add(second.acknowledged));
        let mut faults = Vec::new();
        let latency = &result.histograms.latency_us;
        if latency.0.is_empty() {
            faults.push("nothing was answered".into());
        } else if latency.at(0.99) > p99_us {
            faults.push(format!("p99 {} is over", units::time(latency.at(0.99) as f64)));
        }
        let errors = result.totals.error_count();
        if errors > 0 {
            faults.push(format!("{} errors ({})", units::count(errors), report::kinds(&result)));
        }
        // What is under way when the step ends, and a due moment on the edge, are no fault.
        if (acknowledged as f64) + 1.0 < ACHIEVED_SHARE * rate * step_s {
            faults.push(format!("only {}/s acknowledged", units::rate(acknowledged as f64 / step_s)));
        }
        Step { rate, step_s, result, acknowledged, faults }
    }

    fn line(&self) -> String {
        let latency = &self.result.histograms.latency_us;
        match self.faults.as_slice() {
            [] => format!("holds: p99 {}", units::time(latency.at(0.99) as f64)),
            faults => format!("fails: {}", faults.join(", ")),
        }
    }
}

#[derive(Default)]
struct Gathered {
    steps: Vec<Step>,
}

impl Gathered {
    fn add(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// What is known when the search is cut short.
    fn found(&self) -> Found {
        let rates =
            |holds: bool| self.steps.iter().filter(move |step| step.faults.is_empty() == holds).map(|step| step.rate);
        Found { highest: rates(true).max_by(f64::total_cmp), failed: rates(false).min_by(f64::total_cmp) }
    }

    /// The highest rate's figures (the last try of the lowest when none held), with all steps and all seconds.
    fn into_result(self, found: Found) -> Option<RunResult> {
        let begun_ms = self.steps.first()?.result.started_unix_ms;
        let mut stretches = Vec::new();
        let mut seconds: Vec<Second> = Vec::new();
        for step in &self.steps {
            let from_s = step.result.started_unix_ms.saturating_sub(begun_ms) as f64 / 1e3;
            stretches.push(Stretch {
                rate: step.rate,
                from_s,
                to_s: from_s + step.step_s,
                due: step.result.totals.due,
                acknowledged: step.acknowledged,
                errors: step.result.totals.error_count(),
                latency_us: step.result.histograms.latency_us.clone(),
            });
            seconds.extend(
                step.result.seconds.iter().map(|second| Second { at_s: second.at_s + from_s, ..second.clone() }),
            );
        }
        let limits = found.failed.and_then(|failed| {
            let step = self.steps.iter().rfind(|step| step.rate == failed && !step.faults.is_empty())?;
            let limits = report::generator_limits(&step.result);
            (!limits.is_empty()).then(|| {
                format!("at {} requests/s, where the search ended, {}", units::rate(failed), limits.join("; "))
            })
        });
        let chosen = |step: &Step| match found.highest {
            Some(highest) => step.rate == highest && step.faults.is_empty(),
            None => true,
        };
        let at = self.steps.iter().rposition(chosen)?;
        let mut result = self.steps.into_iter().nth(at)?.result;
        result.started_unix_ms = begun_ms;
        result.steps = stretches;
        result.seconds = seconds;
        result.notes.extend(limits);
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{Recorded, fixture};

    /// 5 s at a rate of 1,000 with this p99 and so many acknowledged each second.
    fn tried(p99_us: u64, acknowledged: u64, errors: u64) -> RunResult {
        let mut result = fixture::steady("a", 7);
        result.histograms.latency_us = Recorded::default();
        result.histograms.latency_us.0.record_n(p99_us, 5_000).unwrap();
        for second in &mut result.seconds {
            second.acknowledged = acknowledged;
        }
        result.totals.refused = if errors > 0 { [(503, errors)].into() } else { [].into() };
        result
    }

    fn faults(result: RunResult) -> String {
        Step::of(result, 1_000.0, 5.0, 5_000).faults.join(", ")
    }

    #[test]
    fn a_step_is_judged_by_p99_errors_and_rate() {
        assert_eq!(faults(tried(4_990, 1_000, 0)), "");
        assert_eq!(faults(tried(4_990, 991, 0)), "");
        assert_eq!(faults(tried(5_100, 1_000, 0)), "p99 5.10 ms is over");
        assert_eq!(faults(tried(900, 1_000, 3)), "3 errors (refused 503: 3)");
        // What is worked off in the two seconds after the step does not count.
        assert_eq!(faults(tried(900, 980, 0)), "only 980/s acknowledged");
        let mut silent = tried(900, 0, 0);
        silent.histograms.latency_us = Recorded::default();
        assert_eq!(faults(silent), "nothing was answered, only 0.00/s acknowledged");
    }

    #[test]
    fn the_result_is_that_of_the_highest_rate_with_all_steps() {
        let mut gathered = Gathered::default();
        for (n, (rate, p99_us)) in
            [(1_000.0, 900), (2_000.0, 1_900), (4_000.0, 9_000), (2_500.0, 2_500)].into_iter().enumerate()
        {
            let mut result = tried(p99_us, rate as u64, 0);
            result.started_unix_ms += n as u64 * 8_000;
            result.plan.shape = Shape::Constant { rate, duration_ms: 5_000 };
            if rate == 4_000.0 {
                result.totals.generator_cpu_s = 7.0;
            }
            gathered.add(Step::of(result, rate, 5.0, 5_000));
        }
        let found = gathered.found();
        assert_eq!(found, Found { highest: Some(2_500.0), failed: Some(4_000.0) });
        let result = gathered.into_result(found).unwrap();
        assert!(result.is_sweep());
        assert_eq!(result.histograms.latency_us.0.max() / 10, 250);
        assert_eq!(result.steps.iter().map(|step| step.rate).collect::<Vec<_>>(), [1e3, 2e3, 4e3, 2.5e3]);
        assert_eq!(result.steps.iter().map(|step| step.achieved_rate()).collect::<Vec<_>>(), [1e3, 2e3, 4e3, 2.5e3]);
        assert_eq!((result.steps[3].from_s, result.seconds[21].at_s, result.seconds.len()), (24.0, 24.0, 28));
        assert!(
            result.notes[0]
                .starts_with("at 4,000 requests/s, where the search ended, the generator used 100 % of its core")
        );
    }

    #[test]
    fn when_nothing_holds_the_lowest_rate_is_shown() {
        let mut gathered = Gathered::default();
        for _ in 0..2 {
            gathered.add(Step::of(tried(9_000, 1_000, 0), 1_000.0, 5.0, 5_000));
        }
        let found = gathered.found();
        let result = gathered.into_result(found).unwrap();
        assert_eq!((found.highest, result.steps.len()), (None, 2));
        assert_eq!(conclusion(found, 5_000), "even 1,000 requests/s did not meet a p99 of 5.00 ms; try a lower --from");
        assert!(Gathered::default().into_result(found).is_none());
    }

    #[test]
    fn precisions_are_shares() {
        assert_eq!((parse_precision("5%"), parse_precision("0.02")), (Ok(0.05), Ok(0.02)));
        for text in ["0", "5", "200%", "%", "five"] {
            assert!(parse_precision(text).is_err(), "{text}");
        }
    }
}
