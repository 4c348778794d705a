use super::Outcome;

/// run
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Outcome {
    unimplemented!()
}
