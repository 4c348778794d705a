//! MetricStream: what runs once per process. `main.rs` is the door.
pub mod backplane;
pub mod placement;
pub mod sockets;
