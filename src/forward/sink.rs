//! What a sink is: takes units of points in, and says later which of them it has. One file a kind of sink.
//!
//! A *unit* is what one read of one log brought (at most about 1 MiB of log): the smallest thing that a cursor can be
//! behind. The courier ([`super::courier`]) hands units in log order, several before the first is settled, and moves
//! the cursor behind the longest run of settled ones. So a sink may settle units in any order, keep several requests in flight,
//! and split, bisect or repeat as its protocol asks; what it must keep is the order of points that share a series.
//!
//! What a sink owes: every point of a unit that it was shown is accounted for in [`Settled`], exactly once; `turn` and
//! `send` come back within a fraction of a second, or the stop is late; memory is bounded by `has_room`.

use std::time::Instant;

use super::unit::Unit;

/// Numbers the units of one sink, from 1, in the order they were sent.
pub type UnitId = u64;

/// What became of the points of a unit that the filter let through. Their sum is the number of points shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    pub delivered: u64,
    /// The sink has answered that it will not have them
    pub refused: u64,
    /// Set aside in a file, with the sink's reason
    pub dead_lettered: u64,
}

/// What a sink has to say after a call.
#[derive(Debug, Default)]
pub struct Report {
    pub settled: Vec<(UnitId, Settled)>,
}

/// Nothing that is not settled can be counted on: the courier calls [`Sink::reset`], waits, and sends again from the
/// cursor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SinkFailed {
    /// One sentence: what failed and what to do
    pub message: String,
    /// Waiting will not help without an operator (a missing right, a missing database): tried less often, and said as
    /// its own state
    pub held: bool,
    /// The sink has asked for this much patience
    pub retry_after: Option<std::time::Duration>,
}

impl SinkFailed {
    pub fn retry(message: impl Into<String>) -> SinkFailed {
        SinkFailed { message: message.into(), held: false, retry_after: None }
    }
}

pub trait Sink: Send {
    /// Whether another unit may come now.
    fn has_room(&self) -> bool;

    /// Takes all of a unit in. It is the sink's from here on, until it is settled or the sink is reset.
    fn send(&mut self, unit: &mut Unit<'_>, now: Instant) -> Result<(), SinkFailed>;

    /// Moves what is in flight on, without waiting for it; adds what was settled to `report`.
    fn turn(&mut self, now: Instant, report: &mut Report) -> Result<(), SinkFailed>;

    /// When `turn` has something to do at the latest, if nothing else happens.
    fn next_turn(&self, now: Instant) -> Option<Instant>;

    /// Nothing has failed, but what was sent has not been answered for a long time: the operator is told so, as of a sink
    /// that fails. For sinks whose own library repeats requests without saying so.
    fn is_stalled(&self, _now: Instant) -> bool {
        false
    }

    /// No more units will come: finish what is in flight, as far as it goes until `deadline`, and settle it.
    fn finish(&mut self, deadline: Instant, report: &mut Report) -> Result<(), SinkFailed>;

    /// Forgets every unit that is not settled; they come again.
    fn reset(&mut self);
}
