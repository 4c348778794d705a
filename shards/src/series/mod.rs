//! Which series a point belongs to: from the bytes a client sent to a dense number, without parsing what was seen before.
//!
//! Two tables. The raw-span cache (`cache`) maps (client, bytes as they came) to a series; a hit compares the bytes and parses
//! nothing. Behind it the canonical table maps the canonical key (`point::series_key`) to its series; it is the truth,
//! the cache may forget anything at any time.
//!
//! Promises, whatever clients send: bounded memory (live series per client and in all; cache bytes per client and in
//! all), hashes keyed so that collisions cannot be prepared, one client's churn does not empty another's share, and never the
//! wrong series: numbers that were evicted are reused only when the segment that named them is closed, and the cache
//! recognises its entries about them as stale. Never panics on what clients send; allocates per new series, not per point.

mod cache;
mod canonical;
mod client;
mod prefetch;
mod table;
#[cfg(test)]
mod tests;

pub use client::{ClientEntry, ClientError, ClientIndex, ClientProfile, ClientTable};
pub use table::{SeriesBounds, SeriesCounters, SeriesTable, TagSetId};
