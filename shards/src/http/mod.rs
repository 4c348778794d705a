//! The server side of HTTP/1.1, without I/O: bytes and times come in as arguments, requests and rendered replies go
//! out. The shard moves the bytes and decides what a request is worth.
//!
//! ```text
//! bytes -> assembler (head, chunked) -> route, auth -> body (gzip, zstd) -> [decode, log ...] -> reply -> bytes
//! ```
//!
//! Contract for everything that reads a client's bytes here: never panics, never allocates in proportion to a length
//! it has not checked, never reads past the buffer. What is ambiguous is refused, because two readers of one
//! connection (a proxy and us) that disagree about where a request ends are an attack.

pub mod assembler;
pub mod auth;
pub mod body;
mod chunked;
pub mod head;
pub mod precision;
pub mod query_stub;
pub mod reply;
pub mod reply_influx;
pub mod route;
pub mod target;

#[cfg(test)]
mod table_test;

pub use assembler::{Assembler, Body, Expiry, Step};
pub use body::Inflater;
pub use head::{Head, Method};
pub use precision::{Precision, precision};
pub use reply::{Fault, KeptTo, To};
pub use route::{Dialect, Route, Routed, Router};

/// Longest request line (method, target, version, CRLF): 414 beyond.
pub const REQUEST_LINE_BYTES_MAX: usize = 8 * 1024;
/// Most header fields: 431 beyond.
pub const HEADERS_MAX: usize = 64;
/// Longest head, request line and empty line included: 431 beyond.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

// Offsets into a head are kept as u16.
const _: () = assert!(HEAD_BYTES_MAX < u16::MAX as usize && REQUEST_LINE_BYTES_MAX <= HEAD_BYTES_MAX);

/// The bounds of a listener that an operator can set.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Body as it comes over the wire, still compressed: 413 beyond.
    pub body_bytes_max: usize,
    /// Body after decompression: 413 beyond.
    pub inflated_bytes_max: usize,
    /// Decompressed bytes for each compressed one, beyond [`Bounds::inflated_free_bytes`]: 413 beyond.
    pub inflated_ratio_max: usize,
    /// Below this many decompressed bytes the ratio is not asked for: tiny bodies of zeros are no attack.
    pub inflated_free_bytes: usize,
    /// From the first byte of a head to its last.
    pub head_timeout_ns: u64,
    /// A body may take this long whatever its rate.
    pub body_grace_ns: u64,
    /// After the grace the average over the body must be at least this.
    pub body_rate_bytes_per_s: u64,
    /// A connection without a request is closed after this.
    pub idle_timeout_ns: u64,
    /// After a refusal at most this much is read and thrown away, so that the client sees the status and not a reset.
    pub drain_bytes_max: usize,
    /// ... and for at most this long.
    pub drain_timeout_ns: u64,
    /// A connection keeps a body buffer up to this size between requests; a larger one is given back.
    pub body_keep_bytes: usize,
}

const SECOND_NS: u64 = 1_000_000_000;

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            body_bytes_max: 16 << 20,
            inflated_bytes_max: 64 << 20,
            inflated_ratio_max: 200,
            inflated_free_bytes: 1 << 20,
            head_timeout_ns: 10 * SECOND_NS,
            body_grace_ns: 10 * SECOND_NS,
            body_rate_bytes_per_s: 1024,
            idle_timeout_ns: 75 * SECOND_NS,
            drain_bytes_max: 64 << 10,
            drain_timeout_ns: 2 * SECOND_NS,
            body_keep_bytes: 1 << 20,
        }
    }
}

/// Why a request is not read to its end, or not at all. The status goes to the client in the route's dialect (or the
/// native one when no head could be read); the connection is closed after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    /// Label of the counter and `reason` of the reply: a fixed set of snake_case names
    pub reason: &'static str,
    /// One sentence for the client
    pub message: &'static str,
}

impl Refusal {
    pub(crate) const fn bad(reason: &'static str, message: &'static str) -> Refusal {
        Refusal { status: 400, reason, message }
    }
    pub(crate) const fn with(status: u16, reason: &'static str, message: &'static str) -> Refusal {
        Refusal { status, reason, message }
    }
}
