//! MetricStream: what runs once per process. ARCHITECTURE.md has the shape and its reasons; `main.rs` is the door.
#![deny(unsafe_code)] // allowed, one call at a time, in `sockets`, `data_dir` and `forward::kafka::native`

pub mod admin;
pub mod args;
pub mod backplane;
pub mod config;
pub mod data_dir;
pub mod flush_probe;
pub mod forward;
pub mod log_command;
pub mod logging;
pub mod placement;
pub mod process;
pub mod rebuild;
pub mod reducer;
pub mod sockets;
pub mod translate;
pub mod when;
