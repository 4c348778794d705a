//! What a shard tells the reducer, in the order of one bounded mailbox.

use super::set::Cell;

/// One message. A mark covers every partial that was sent before it.
#[derive(Debug)]
pub enum ShardMessage {
    /// Sent before the first partial that uses the number. `key` is the canonical series key.
    NewSeries {
        id: u32,
        key: Box<[u8]>,
    },
    /// The number may be given to another series by a later `NewSeries`; no cell of it is open.
    ForgetSeries {
        id: u32,
    },
    Partials(Partials),
    OverflowPartials(OverflowPartials),
    /// Every durable point of windows that end at or before this has been sent.
    Mark {
        mark_ns: i64,
    },
    /// The shard sends nothing more.
    Drained,
}

/// Cells of one base window, a bounded number of them, by ascending series number.
#[derive(Debug)]
pub struct Partials {
    pub window_start_ns: i64,
    pub cells: Vec<(u32, Cell)>,
}

/// Cells of `__overflow__` series of one base window, by client id.
#[derive(Debug)]
pub struct OverflowPartials {
    pub window_start_ns: i64,
    pub cells: Vec<(Box<str>, Cell)>,
}
