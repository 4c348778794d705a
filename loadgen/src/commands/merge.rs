//! Several results as one.

use std::path::PathBuf;

use super::{Failure, Outcome};
use crate::objective;
use crate::report::{self, Outputs};
use crate::result::RunResult;

/// Add up results of several processes or runs, and print or judge the whole
///
/// Histograms and totals are added; seconds are aligned by the wall clock. Processes that ran beside each other count as one
/// load with the sum of their rates, runs after each other as one longer run. Of two percentiles of the same second the
/// greater one stands, since percentiles cannot be added.
#[derive(clap::Args)]
#[command(after_help = objective::help_after(EXAMPLES))]
pub struct Args {
    /// Results that `run --json` wrote
    #[arg(required = true, value_name = "RESULT")]
    results: Vec<PathBuf>,
    #[command(flatten)]
    outputs: Outputs,
}

const EXAMPLES: &str = "\
Examples:
  metricstream-loadgen merge a.json b.json --json both.json --report both.html
  metricstream-loadgen merge run-*.json --fail-if 'p99 > 5 ms' 'errors > 0'";

pub fn run(args: Args) -> Outcome {
    args.outputs.check()?;
    let results = args.results.iter().map(|path| RunResult::read(path)).collect::<Result<Vec<_>, _>>()?;
    let whole = RunResult::merge(results).map_err(|fault| Failure(format!("cannot merge: {fault}")))?;
    report::finish(&whole, &args.outputs)
}
