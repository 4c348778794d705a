//! What runs once per core, and shares nothing: a shard takes bytes from sockets to durable, acknowledged, windowed
//! points. ARCHITECTURE.md has the shape and its reasons.
//!
//! Stages do not import each other; they meet in [`point`], and only `shard` knows all of them.

pub mod counters;
pub mod decode;
pub mod http;
pub mod limiter;
pub mod log;
pub mod mailbox;
pub mod point;
pub mod random;
pub mod ring;
pub mod series;
pub mod shard;
pub mod window;
