//! How much a client may send: requests, points and bytes per second, right in total over all shards.
//!
//! Each (client, dimension) is a token bucket kept as one number, its *theoretical arrival time* (GCRA): the moment at
//! which the bucket will be full again. Taking tokens moves it forward; when it is in the past, the bucket is full and
//! the client equals one never seen, so its slot may go to another client. The buckets live in [`Shared`], one a
//! process. Shards do not write there for every request: [`Local`] takes *leases* of up to 1 % of the rate (at least
//! one token), spends them alone, and gives them back when they lie unused. Points and bytes are known only after
//! decoding; what they cost beyond the lease becomes debt in the shared bucket at once, and the next request waits for it.
//!
//! What is promised, for a limit of `rate` and `burst` and any number of shards:
//! - In any `t` seconds at most `burst + rate * t + shards * lease` tokens are spent (`lease` = max(1 token, `rate` / 100)),
//!   counted from a client's first request at most `burst + rate * t`. A single request may cost more points or bytes than
//!   are left; it is let in while something is left, and the excess is debt.
//! - A client that stays below its rate is not refused because another shard holds tokens: leases shrink as the bucket
//!   empties (an eighth of what is left), and come back within 100 ms.
//! - Memory is bounded, whatever clients do: see [`Shared::new`] and [`Local::new`].
//!
//! Never panics on what clients send, allocates nothing per request once a client's group of slots exists, reads no clock.

mod limits;
mod local;
mod shared;
#[cfg(test)]
mod simulation;

pub use limits::{ClientLimits, Dimension, Limit};
pub use local::{Counters, Local};
pub use shared::{Shared, Totals};

/// A keyed 64-bit hash of the client's id: the same on every shard of the process. 56 bits of it tell clients apart
/// (at a million clients, 7 in a million that any two share a bucket).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientHash(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go on. `remaining` requests were left at the last look at the shared bucket, this shard's lease included;
    /// `u64::MAX` when requests are not limited.
    Admit {
        remaining: u64,
    },
    Refuse(Refusal),
}

/// What an answer to a client over its limit must say (`Retry-After`, `X-RateLimit-*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub dimension: Dimension,
    /// The limit that was met, per second
    pub limit_per_s: u64,
    /// Whole tokens left in that bucket; 0 but for small remainders
    pub remaining: u64,
    /// Until the next request can be let in, if nobody else spends. 30 s when the rate is 0.
    pub retry_after_ms: u64,
    /// Until the bucket is full again
    pub reset_ms: u64,
}
