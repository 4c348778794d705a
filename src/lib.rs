//! What exists once per process: the command line, the configuration and the process's own log lines.

#![forbid(unsafe_code)]

pub mod args;
pub mod config;
pub mod logging;
