//! Points that a server must refuse, and only them.

use super::hash::{Purpose, Stream, threshold};

#[derive(Clone, Debug)]
pub struct Bad {
    /// 0 when there are none
    below: u128,
    whether: Stream,
    kind: Stream,
}

/// What is wrong with a point. Each leaves its neighbours whole: nothing opens a string that does not close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no value
    Missing,
    /// The value is a word
    Word,
    /// The value is no number, though it begins as one
    Malformed,
}

impl Bad {
    pub fn new(seed: u64, share: f64) -> Bad {
        Bad {
            below: threshold(share),
            whether: Stream::new(seed, Purpose::Bad),
            kind: Stream::new(seed, Purpose::BadKind),
        }
    }

    /// Of the client's point number `point`.
    #[inline]
    pub fn at(&self, client: u32, point: u64) -> Option<Fault> {
        if self.below == 0 || u128::from(self.whether.at(u64::from(client), point)) >= self.below {
            return None;
        }
        Some(match self.kind.below(u64::from(client), point, 3) {
            0 => Fault::Missing,
            1 => Fault::Word,
            _ => Fault::Malformed,
        })
    }
}
