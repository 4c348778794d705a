//! `metricstream-loadgen`: see `--help`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use metricstream_loadgen::commands::{merge, null_server, report, run, sweep, verify};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Loads a metrics server, times it from the intended moment, and keeps a ledger of what it was sent.
#[derive(Parser)]
#[command(name = "metricstream-loadgen", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Args),
    Sweep(sweep::Args),
    Verify(verify::Args),
    Merge(merge::Args),
    Report(report::Args),
    NullServer(null_server::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Sweep(args) => sweep::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Report(args) => report::run(args),
        Command::NullServer(args) => null_server::run(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("metricstream-loadgen: {error}");
        ExitCode::from(2)
    })
}
