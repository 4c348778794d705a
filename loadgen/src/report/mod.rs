//! Shows a result: a table on standard output, files on demand, and an exit code by the stated objectives.

pub mod describe;
mod files;
mod hgrm;
pub mod html;
mod judgement;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

pub use self::files::{check as check_output, write_whole};
pub use self::judgement::{generator_limits, generator_warnings};
pub use self::table::kinds;
use crate::commands::{Failure, Outcome};
use crate::objective::Objective;
use crate::result::RunResult;

/// Where results go beside standard output, and what may not be.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Results")]
pub struct Outputs {
    /// Write the whole result as JSON; `merge` and `report` read it
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the latency's percentile distribution as HdrHistogram prints it (values in ms), for its plotter
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// Write one line a second as CSV: rates, errors, latency, the generator's own lateness
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Write one self-contained HTML page with plots
    #[arg(long = "report", value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// End with exit code 1 when this is so: 'p99 > 5 ms' 'errors > 0' (see the end of --help for the words)
    #[arg(long, value_name = "OBJECTIVE", num_args = 1..)]
    pub fail_if: Vec<Objective>,
}

impl Outputs {
    /// Before a run of minutes: refuses what could not be written after it.
    pub fn check(&self) -> Result<(), Failure> {
        let paths: Vec<&PathBuf> =
            [&self.json, &self.hgrm, &self.csv, &self.html].into_iter().filter_map(|path| path.as_ref()).collect();
        for (n, path) in paths.iter().enumerate() {
            files::check(path)?;
            if paths[..n].contains(path) {
                let shown = path.display();
                return Err(Failure(format!("two outputs are to be written to {shown}; give each its own name")));
            }
        }
        Ok(())
    }
}

/// Prints, writes, judges. Files are written whatever the judgement is.
pub fn finish(result: &RunResult, outputs: &Outputs) -> Outcome {
    let result = &result.without_secrets();
    print!("{}", table::table(result));
    if let Some(path) = &outputs.json {
        write_whole(path, &result.to_json())?;
    }
    if let Some(path) = &outputs.hgrm {
        write_whole(path, &hgrm::distribution(&result.histograms.latency_us))?;
    }
    if let Some(path) = &outputs.csv {
        write_whole(path, &files::csv(result))?;
    }
    if let Some(path) = &outputs.html {
        write_whole(path, &html::page(&[html::Labelled::alone(result)]))?;
    }
    let failed: Vec<_> = outputs.fail_if.iter().filter_map(|objective| objective.judge(result)).collect();
    for failed in &failed {
        eprintln!("metricstream-loadgen: {failed}");
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
