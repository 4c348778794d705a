//! Sends and times.

use crate::commands::Failure;
use crate::ledger;
use crate::plan::Plan;
use crate::result::RunResult;

pub struct Options {
    pub target: std::net::SocketAddr,
    pub ledger: Option<ledger::Writer>,
    /// Base URL of the server's `/metrics`, scraped before and after.
    pub server_metrics: Option<String>,
    pub server_pid: Option<u32>,
    /// Show the live line on standard error.
    pub live: bool,
    pub core: Option<usize>,
}

pub fn run(_plan: &Plan, _options: Options) -> Result<RunResult, Failure> {
    unimplemented!()
}
