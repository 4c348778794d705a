//! `metricstream-loadgen`: see `--help`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use metricstream_loadgen::commands::{merge, null_server, report, run, sweep, verify};
use metricstream_loadgen::objective;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Loads a metrics server, times it from the intended moment, and keeps a ledger of what it was sent
///
/// In an open loop every request is due at an intended moment, and its latency counts from then: a server that stalls
/// cannot hide what it held up. What was sent, and what became of it, can be written down before it leaves and compared with
/// what the server holds. All of a load follows from its seed.
#[derive(Parser)]
#[command(name = "metricstream-loadgen", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

// At most 98 columns, where clap would wrap them.
const AFTER_HELP: &str = "\
Start here:
  metricstream-loadgen run --target http://127.0.0.1:8186 --rate 1k --report out.html
  metricstream-loadgen sweep --target http://127.0.0.1:8186 --p99 5ms --report sweep.html
  metricstream-loadgen run --target http://127.0.0.1:8186 --fleet 10000 --ledger sent.ledger
  metricstream-loadgen verify --help

Exit codes: 0 as asked; 1 an objective (--fail-if) or a comparison (verify) failed; 2 it could not
be done, and one sentence says why.";

const RUN_EXAMPLES: &str = "\
Examples:
  A constant rate, and what may not be:
    metricstream-loadgen run --target http://127.0.0.1:8186 --rate 5k --duration 30s \\
      --fail-if 'p99 > 5 ms' 'errors > 0'
  Steps, with a page of plots:
    metricstream-loadgen run --target http://127.0.0.1:8186 --steps 1k,2k,4k,8k --report out.html
  Bursts with retries, written down for verify:
    metricstream-loadgen run --target http://127.0.0.1:8186 --rate 2k --burst 20k:200ms/5s \\
      --retry same --ledger sent.ledger
  A fleet of 10,000 hosts with 50 metrics each, every 10 s:
    metricstream-loadgen run --target http://127.0.0.1:8186 --fleet 10000 --interval 10s \\
      --metrics 50 --duration 2m";

#[derive(Subcommand)]
enum Command {
    #[command(after_help = objective::help_after(RUN_EXAMPLES))]
    Run(Box<run::Args>),
    Sweep(Box<sweep::Args>),
    Verify(Box<verify::Args>),
    Merge(merge::Args),
    Report(report::Args),
    NullServer(null_server::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(*args),
        Command::Sweep(args) => sweep::run(*args),
        Command::Verify(args) => verify::run(*args),
        Command::Merge(args) => merge::run(args),
        Command::Report(args) => report::run(args),
        Command::NullServer(args) => null_server::run(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("metricstream-loadgen: {error}");
        ExitCode::from(2)
    })
}
