//! The forwarder: readers of the logs that bring every durable point to the sinks, each with a cursor of its own.

pub mod breaker;
pub mod dead_letter;
pub mod retry;
