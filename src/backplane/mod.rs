//! What the shards do not do: see the submodules.
pub mod executor;
pub mod segments;
