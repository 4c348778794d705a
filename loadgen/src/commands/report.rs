use super::Outcome;

/// report
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Outcome {
    unimplemented!()
}
