//! From the shards' partials to closed windows in the aggregate log, and from there to readers.
//!
//! [`core`] is the path: partials are merged by series, rules fold series into fewer, closed windows and their revisions
//! are appended, then a mark record; when that is durable they are closed for readers. It does no I/O of its own: time
//! comes in as an argument and the log is a small trait. [`encode`] is the form on disk (FORMAT.md), [`recovery`] what
//! a restart takes from it, [`query`], [`zones`] and [`exposition`] what readers get.

pub mod aggregate_log;
pub mod core;
#[cfg(test)]
mod core_tests;
pub mod encode;
pub mod exposition;
pub mod query;
pub mod record;
pub mod recovery;
pub mod rules;
pub mod segment_log;
mod series;
#[cfg(test)]
mod simulation;
pub mod thread;
mod windows;
pub mod zones;

pub use self::core::{Books, Progress, ReducerCore, Settings, Source};
pub use aggregate_log::{AggregateLog, Kind, LogRefused};
pub use record::WindowRecord;
pub use recovery::{Recovered, Recovery};
