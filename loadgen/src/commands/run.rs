//! `run`: one load, from its flags to its outputs.

use super::Outcome;
use super::load_args::{LoadArgs, ShapeArgs};
use crate::{engine, report};

/// Send a load, time it, and say how the server did
///
/// In an open loop (--rate, --steps, --ramp, --burst, --fleet) requests are due at intended moments and latency counts
/// from them, so that a server that stalls cannot hide it. --closed sends as fast as answers come.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    shape: ShapeArgs,
    #[command(flatten)]
    outputs: report::Outputs,
}

pub fn run(args: Args) -> Outcome {
    let (shape, fleet) = args.shape.shape()?;
    let (target, plan) = args.load.plan(shape, fleet)?;
    args.outputs.check()?;
    let options = args.load.options(target, &plan)?;
    let result = engine::run(&plan, options)?;
    report::finish(&result, &args.outputs)
}
