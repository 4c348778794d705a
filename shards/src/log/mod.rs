//! The segment log: what a shard has acknowledged, on disk, in order.
//!
//! The core ([`LogWriter`]) does no I/O: it hands out operations and is told their results, so the same code runs on
//! a ring, on blocking calls ([`BlockingLog`]) and on a disk made of memory that fails on purpose. Reading
//! ([`SegmentReader`], [`recover`], [`verify`]) is blocking. `FORMAT.md` has the bytes.
//!
//! What it promises: a [`CommitSeq`] is reported durable only after a flush that was submitted after the completion of
//! the write it covers; a flush that failed is never tried again; damage to one block costs the points of that block;
//! bytes from disk never cause a panic, and never an allocation larger than a bound in this file.

mod aligned;
mod block;
mod blocking;
mod case;
mod column;
mod footprint;
mod headers;
mod mark;
mod names;
mod prepare;
mod read;
mod record;
mod recover;
mod segment;
mod verify;
mod writer;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod format_tests;

pub use aligned::AlignedBuf;
pub use block::{BLOCK_HEADER_BYTES, BlockError, BlockHeader, RecordKind, RecordRef, Records, parse_block};
pub use blocking::BlockingLog;
pub use case::{BlockCase, SegmentCase};
pub use footprint::{NotGivenBack, footprint_bytes};
pub use headers::{BlockHeaders, block_headers};
pub use mark::{DurableMark, Mark};
pub use names::{NameMap, names_in};
pub use prepare::{Prepare, PreparedSegment, prepare_segment};
pub use read::{Block, Damage, LogReader, ReadItem, SegmentReader, TO_THE_TAIL};
pub use record::{BatchDecoder, Envelope, EnvelopeView, RecordError};
pub use recover::{Recovered, SegmentInfo, recover};
pub use segment::{FILLING, HeaderError, SegmentHeader, segment_file_name, segment_id_of};
pub use verify::{DumpRecord, Repair, Report, dump, repair, verify};
pub use writer::{
    AppendError, CommitSeq, DurableBlock, LogEvent, LogOp, LogStart, LogState, LogWriter, Names, OpKind, Position,
    PreviousEnd, ReadSpan, WriteMode, WriterConfig,
};

/// Everything is written and found at multiples of this.
pub const PAGE_BYTES: usize = 4096;
/// The format this code writes, and the newest it reads.
pub const FORMAT_VERSION: u16 = 1;
/// A record holds at most this many points; a larger batch becomes several records.
pub const RECORD_POINTS_MAX: usize = 65_536;
/// A block's payload is at most this long; a length beyond it is damage.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;
/// `log_id` of the aggregate log; shard logs have the shard's number.
pub const AGGREGATE_LOG_ID: u32 = u32::MAX;

const _: () = assert!(PAYLOAD_BYTES_MAX.is_multiple_of(PAGE_BYTES));

/// Rounds up to whole pages.
pub(crate) const fn pages(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_BYTES) * PAGE_BYTES
}

/// Little-endian fields of a header whose length the caller has checked.
pub(crate) mod field {
    pub(crate) fn bytes<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&from[at..at + N]);
        out
    }
    pub(crate) fn u16(from: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(bytes(from, at))
    }
    pub(crate) fn u32(from: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes(from, at))
    }
    pub(crate) fn u64(from: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes(from, at))
    }
    pub(crate) fn i64(from: &[u8], at: usize) -> i64 {
        i64::from_le_bytes(bytes(from, at))
    }
    pub(crate) fn put(to: &mut [u8], at: usize, value: &[u8]) {
        to[at..at + value.len()].copy_from_slice(value);
    }
}
