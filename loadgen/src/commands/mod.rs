//! The subcommands: arguments, and what they set in motion. Each answers an exit code: 0 as asked, 1 an objective or a
//! comparison failed, 2 it could not be done (one sentence says why).

pub mod load_args;
pub mod merge;
pub mod null_server;
pub mod report;
pub mod run;
pub mod sweep;
pub mod verify;

use std::process::ExitCode;

pub type Outcome = Result<ExitCode, Failure>;

/// One sentence for a person: what failed, on what, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);
