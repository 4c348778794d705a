//! `null-server`: the server that does nothing, and says where it listens.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::load_args::parse_duration;
use super::{Failure, Outcome};
use crate::null_server::{NullServer, Stall};

/// A server that answers every HTTP request at once and does nothing: to find the generator's own limits
///
/// What `run` reaches against it is as fast as the generator gets here, and the latency is the generator's own share.
/// With --stall it stops answering for a while in each period: an honest generator reports that waiting.
#[derive(clap::Args)]
pub struct Args {
    /// Address to listen on; port 0 takes any free one, which is printed
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Status of every answer
    #[arg(long, default_value_t = 204, value_parser = clap::value_parser!(u16).range(200..600))]
    status: u16,
    /// Stop answering for this long at the start of every period
    #[arg(long, value_parser = parse_duration, requires = "every", value_name = "DURATION")]
    stall: Option<Duration>,
    /// The period of --stall
    #[arg(long, value_parser = parse_duration, requires = "stall", value_name = "DURATION")]
    every: Option<Duration>,
    /// Keep to this core
    #[arg(long)]
    core: Option<usize>,
}

pub fn run(args: Args) -> Outcome {
    let stall = match args.stall.zip(args.every) {
        Some((stall, every)) if stall >= every => {
            return Err(Failure("a --stall as long as its period would never answer; make --every longer".to_owned()));
        }
        Some((stall, every)) => Some(Stall { stall, every }),
        None => None,
    };
    crate::engine::pin(args.core)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        crate::engine::watch(signal, &stop);
    }
    let server = NullServer::bind(args.listen, args.status, stall)?;
    println!("listening on http://{}", server.address());
    server.serve(&stop)?;
    Ok(ExitCode::SUCCESS)
}
