use super::Outcome;

/// null_server
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Outcome {
    unimplemented!()
}
