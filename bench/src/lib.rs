//! What the benches and the instruction counts share: inputs that are the same on every machine, and the paths of a
//! shard set up around them. Nothing here reads a clock, a socket or a disk, so a path does the same work each time.

pub mod inputs;
pub mod paths;
