//! MetricStream: what runs once per process. `main.rs` is the door.
#![deny(unsafe_code)] // allowed in `sockets` for one setsockopt

//! What exists once per process: the command line, the configuration and the process's own log lines.

//! What runs once per process. ARCHITECTURE.md has the shape and its reasons.

pub mod args;
pub mod backplane;
pub mod config;
pub mod logging;
pub mod placement;
pub mod reducer;
pub mod sockets;
