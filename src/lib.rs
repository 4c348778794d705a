//! MetricStream: what runs once per process. `main.rs` is the door.
#![deny(unsafe_code)] // allowed in `sockets` for one setsockopt

pub mod backplane;
pub mod config;
pub mod placement;
pub mod sockets;
