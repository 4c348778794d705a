//! One result of one window of one series: what is logged, queried, exposed and alerted on.

use metricstream_shards::{
    point::series_key::{self, Parsed},
    window::summary::Aggregates,
};

#[derive(Clone, Debug, PartialEq)]
pub struct WindowRecord {
    /// Canonical series key; a rule's output has an empty client unless the rule groups by it
    pub key: Box<[u8]>,
    /// Id of the aggregate rule whose output this is; `None` for a series' own window
    pub rule: Option<Box<str>>,
    pub window_s: u32,
    pub start_ms: i64,
    pub aggregates: Aggregates,
    /// How many series reported: 1 for a series' own window
    pub series: u64,
    /// Which era of the fold clock; a record of a later era replaces any of an earlier one
    pub era: u32,
    /// From 0; the greatest of an era is what the window says
    pub revision: u32,
    pub flags: Flags,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Closed without a shard that had stalled, or `damaged`
    pub incomplete: bool,
    /// Points with an identity may have been counted twice
    pub unchecked: bool,
    /// Points of it were lost from the log after it was first published; always `incomplete`, for good
    pub damaged: bool,
}

impl WindowRecord {
    /// Client, name and tags. Keys are checked where records come in, so this does not fail for those.
    pub fn parsed(&self) -> Parsed<'_> {
        series_key::parse(&self.key).unwrap_or(Parsed { client: "", name: "", tags: Vec::new() })
    }

    pub fn end_ms(&self) -> i64 {
        self.start_ms.saturating_add(i64::from(self.window_s) * 1000)
    }
}
