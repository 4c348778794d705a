//! MetricStream: what runs once per process. `main.rs` is the door.
#![deny(unsafe_code)] // allowed in `sockets` for one setsockopt

//! What exists once per process: the command line, the configuration and the process's own log lines.

pub mod args;
pub mod backplane;
pub mod config;
pub mod logging;
pub mod placement;
pub mod sockets;
