//! Event-time windows: the fold of durable records into cells, and what cells are made of.
//!
//! `fold` is a shard's state: one [`set::Cell`] for every series and open base window (10 s). When a window is ready
//! its cells leave as [`partial`] messages; the reducer merges them by series, and longer windows from them. The
//! results are pure functions of the points (`summary`), so shards, order and restarts do not show in them.

mod bins;
mod open;
mod prefetch;

pub mod fold;
pub mod partial;
pub mod protocol;
pub mod set;
pub mod sketch;
pub mod state;
pub mod sum;
pub mod summary;

pub use fold::{Fold, FoldConfig};
pub use partial::ShardMessage;
