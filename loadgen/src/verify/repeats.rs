//! What came more than once: records by their id, points by their identity.
//!
//! Both are opaque texts, kept as 64 bits of hash: 16 bytes each.

use super::hashed::HashedMap;
use super::series_hash;

/// What is known of a record's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    First,
    /// The same record as before
    Again,
    /// Another record has it
    Taken,
}

/// From ids to what came under them.
#[derive(Default)]
pub struct Ids(HashedMap<u64>);

impl Ids {
    /// `content`: a hash of everything that the id stands for.
    pub fn note(&mut self, id: &str, content: u64) -> Seen {
        let mut seen = Seen::First;
        self.0
            .entry(series_hash::of_bytes(id.as_bytes()))
            .and_modify(|before| seen = if *before == content { Seen::Again } else { Seen::Taken })
            .or_insert(content);
        seen
    }
}

/// From identities to the points that have them.
#[derive(Default)]
pub struct Identities(HashedMap<u64>);

impl Identities {
    /// `place`: the point's. `None`: the record carries no identity, so that it cannot be known as a repeat.
    pub fn note(&mut self, identity: Option<&str>, place: u64) -> Option<Seen> {
        let mut seen = Seen::First;
        self.0
            .entry(series_hash::of_bytes(identity?.as_bytes()))
            .and_modify(|before| seen = if *before == place { Seen::Again } else { Seen::Taken })
            .or_insert(place);
        Some(seen)
    }
}
