//! From the bytes of a request body to columns of points.
//!
//! Contract of everything here: never panics on hostile bytes, never recurses with the input's depth, never allocates
//! in proportion to a length it has not checked; the work is linear in the body, but for one product that [`Bounds`]
//! holds down (fields of one line times the bytes of its tags). In steady state nothing is allocated: scratch is kept
//! in the decoders, columns in the [`Batch`](crate::point::Batch).
//!
//! Both decoders take the same two steps. A protocol's own scanner finds raw spans and numbers and puts them into a
//! [`group`]; the group hashes some 16 points, asks the memory for their table entries, and only then looks them up,
//! so the cache misses overlap. A series that is known is known by its raw bytes and costs no parsing of names or
//! tags: those same bytes were checked when they came first. (So the bounds on names and tags must not change during
//! the life of a series table.) A scanner that predicts the shape of a body can be put before the general ones: it
//! has to fill the same group with the same raw keys.
//!
//! The unit of refusal is the line, or the JSON element: when one of its fields is bad, none of its points is kept,
//! and all of them that were seen are counted. Units keep their order, and so do refusals.

pub mod json;
pub mod line;

mod fault;
mod group;
mod number;
mod time;

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod testing;
#[cfg(test)]
use crate::point::{Batch, Kind, NO_TIMESTAMP, Reason, Rejection, Rejections, SeriesId, SeriesRef, SeriesResolver};

/// What a request may hold. See the contract above: names and tags are checked when a raw key is met first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Points of one request; the unit that crosses the bound and all after it are refused.
    pub points_max: u32,
    /// Bytes of a metric name, `measurement_field` included.
    pub name_bytes_max: u16,
    /// Bytes of a tag's key, and of its value.
    pub tag_bytes_max: u16,
    /// Tags of a point, repeated keys included.
    pub tags_max: u16,
    /// Bytes of name and tags as they are written on the wire. It is here because every field of a line hashes them
    /// again: without it, a megabyte of one line can cost seconds.
    pub series_bytes_max: u32,
    /// Bytes of a string field.
    pub text_bytes_max: u32,
    /// Containers inside each other in a JSON document; a deeper one is refused whole.
    pub json_depth_max: u16,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            points_max: 100_000,
            name_bytes_max: 1024,
            tag_bytes_max: 1024,
            tags_max: 64,
            series_bytes_max: 16 * 1024,
            text_bytes_max: 64 * 1024,
            json_depth_max: 64,
        }
    }
}

/// What the timestamps of a request count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampUnit {
    /// `precision=h` of line protocol; whole ones only
    Hours,
    /// `precision=m` of line protocol; whole ones only
    Minutes,
    S,
    Ms,
    Us,
    Ns,
    /// By the absolute value of its integer part: below 1e11 seconds (until the year 5138), below 1e14 ms, below 1e17
    /// us, else ns. Times before March 1973 in a unit finer than seconds are therefore misread; whoever sends those
    /// has to name the unit.
    ByMagnitude,
}
