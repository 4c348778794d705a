//! What was sent and what became of it, in an append-only file. Its bytes: FORMAT.md.
//!
//! A kill of this process loses what was not flushed and nothing else: notes go to the kernel by one write, before the
//! sends they tell of. A request noted as sent and never as answered is unknown.

mod format;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

pub use format::{CLOCK_EVERY_NS, Event};
pub use reader::{Problem, Reader};
pub use writer::Writer;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NoAnswer {
    Timeout = 1,
    Reset,
    RefusedConnection,
    Closed,
    BadAnswer,
}
