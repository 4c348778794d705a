use super::Outcome;

/// merge
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Outcome {
    unimplemented!()
}
