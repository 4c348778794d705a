//! What runs once per core, and shares nothing: a shard takes bytes from sockets to durable, acknowledged, windowed
//! points. ARCHITECTURE.md has the shape and its reasons.
//!
//! Stages do not import each other; they meet in [`point`], and only `shard` knows all of them.

pub mod log;
pub mod point;
pub mod window;
