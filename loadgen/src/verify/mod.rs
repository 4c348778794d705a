//! Compares what a server has with what the ledgers say it was sent.
//!
//! [`expected::Expected`] reads the ledgers and makes every point again. [`points`] compares points, [`windows`] compares
//! aggregates. Both say the same things: a [`verdict::Verdict`]. What they are given comes from a source, of which each is
//! a file: [`lines`] (a dump, newline JSON), [`listener`] (the operators'), [`kafka`], [`influx`].
//!
//! What a batch's requests came to decides what its points may do:
//!
//! | | there | how often |
//! |---|---|---|
//! | acknowledged at least once | must be | 1 to acknowledged + unknown |
//! | only unknown (and refused) | may be | 0 to unknown |
//! | only refused, or never sent | must not be | 0 |

mod clients;
pub mod exact;
pub mod expected;
mod hashed;
pub mod influx;
pub mod kafka;
pub mod lines;
pub mod listener;
pub mod points;
mod progress;
mod repeats;
pub mod series_hash;
pub mod verdict;
pub mod windows;

#[cfg(test)]
mod kafka_tests;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufRead, BufReader};

use crate::commands::Failure;

/// What is known of the server.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the server takes all clients for, when it is not by what the plan says
    pub client: Option<String>,
    /// Points of series that no ledger has are counted, not faults.
    pub others_allowed: bool,
    /// Points may come in any order.
    pub any_order: bool,
    /// Of the windows, in s
    pub window_lengths_s: Vec<u32>,
    /// A point that came in later than this after its timestamp may have been too late for its window.
    pub horizon_ms: u64,
    /// A point that came in earlier than this before its timestamp may have been too early.
    pub future_ms: u64,
    pub progress: bool,
}

impl Default for Options {
    /// As the appliance has it without configuration.
    fn default() -> Options {
        Options {
            client: None,
            others_allowed: false,
            any_order: false,
            window_lengths_s: vec![10, 60],
            horizon_ms: 300_000,
            future_ms: 600_000,
            progress: false,
        }
    }
}

/// A file, or standard input for `-`.
pub fn open(path: &str) -> Result<Box<dyn BufRead>, Failure> {
    if path == "-" {
        return Ok(Box::new(BufReader::with_capacity(1 << 20, io::stdin())));
    }
    match File::open(path) {
        Ok(file) => Ok(Box::new(BufReader::with_capacity(1 << 20, file))),
        Err(error) => Err(Failure(format!("{path} cannot be opened: {error}"))),
    }
}
