//! What a writer is told, and what it says: its configuration, where it begins, operations, events, refusals.

use super::super::aligned::AlignedBuf;
use super::super::block::{BLOCK_HEADER_BYTES, BlockHeader, Records};
use super::super::mark::Mark;
use super::super::{PAGE_BYTES, PAYLOAD_BYTES_MAX};
use std::path::PathBuf;

/// The canonical key of a live series number.
pub trait Names {
    fn key(&self, id: u32) -> &[u8];
}

/// For logs without series.
impl Names for () {
    fn key(&self, _: u32) -> &[u8] {
        &[]
    }
}

/// Counts the commits of a writer, in the order of appends. What an append returned is durable when
/// [`LogEvent::Durable`] names it or a greater one. It stays the same when a commit has to be written twice, and means
/// nothing after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CommitSeq(pub u64);

/// A place in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    pub segment_id: u64,
    pub offset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// write, then fdatasync
    WriteThenFlush,
    /// one write with RWF_DSYNC
    Dsync,
}

#[derive(Clone, Debug)]
pub struct WriterConfig {
    pub log_id: u32,
    pub node_id: u128,
    /// Random, of this start
    pub salt: u64,
    /// Length of every segment offered
    pub segment_bytes: u64,
    /// A block is closed when it has grown to this; one append may make it larger
    pub block_bytes: usize,
    /// Appends answer [`AppendError::Full`] beyond this many bytes that are not durable
    pub undurable_bytes_max: usize,
    /// Durable blocks kept in memory for the fold; beyond it the fold reads the disk
    pub durable_bytes_max: usize,
    pub mode: WriteMode,
}

impl WriterConfig {
    pub fn new(log_id: u32, node_id: u128, salt: u64) -> WriterConfig {
        WriterConfig {
            log_id,
            node_id,
            salt,
            segment_bytes: 64 << 20,
            block_bytes: 1 << 20,
            undurable_bytes_max: 16 << 20,
            durable_bytes_max: 8 << 20,
            mode: WriteMode::WriteThenFlush,
        }
    }

    /// Longest record, and most bytes of names in front of it: the two, the second copies and the header fit a block,
    /// and the block fits a segment.
    pub(super) fn record_bytes_max(&self) -> usize {
        (PAYLOAD_BYTES_MAX / 4).min((self.segment_bytes as usize - 2 * PAGE_BYTES) / 6)
    }
}

/// Where a writer begins: what `recover` found.
#[derive(Clone, Debug, PartialEq)]
pub struct LogStart {
    pub next_segment_id: u64,
    pub epoch: u64,
    pub next_block: u64,
    pub next_point: u64,
    pub durable_upto: u64,
    pub previous: PreviousEnd,
    /// What is readable from earlier runs, oldest first
    pub history: Vec<ReadSpan>,
}

impl LogStart {
    /// What recovery found durable.
    pub fn mark(&self) -> Mark {
        Mark {
            end: Position { segment_id: self.previous.segment_id, offset: self.previous.end },
            next_point: self.next_point,
            last_stamp_ns: i64::MIN,
        }
    }

    /// A log that has no files yet.
    pub fn empty() -> LogStart {
        LogStart {
            next_segment_id: 1,
            epoch: 1,
            next_block: 1,
            next_point: 0,
            durable_upto: 0,
            previous: PreviousEnd::default(),
            history: Vec::new(),
        }
    }
}

/// The last durable block: its segment, where it ends, its header's CRC. Segment 0: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PreviousEnd {
    pub segment_id: u64,
    pub end: u64,
    pub crc: u32,
}

/// Part of a segment file that holds durable blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadSpan {
    pub segment_id: u64,
    pub path: PathBuf,
    pub from: u64,
    pub to: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    #[error("the log holds as many bytes that are not on disk yet as it may")]
    Full,
    #[error("the log's disk has failed; it waits for a good segment")]
    Unavailable,
    #[error("one point with its key is longer than a record may be")]
    TooLarge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogState {
    /// Commits flow.
    Serving,
    /// The segment is full (or none was ever offered): appends are taken up to the bound.
    WaitingForSegment,
    /// The disk failed; appends are refused until a segment is offered.
    Failed,
    /// What was not durable is being written to a new segment; appends are refused until its flush.
    Probing,
}

/// An operation for the disk. The memory it names stays where it is, unchanged, until [`LogWriter::complete`].
#[derive(Debug, Clone, Copy)]
pub struct LogOp {
    pub id: u64,
    pub segment_id: u64,
    pub fd: std::os::fd::RawFd,
    pub kind: OpKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpKind {
    Write {
        offset: u64,
        ptr: *const u8,
        len: u32,
        dsync: bool,
    },
    /// fdatasync
    Flush,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogEvent {
    /// Ask `next_op` again.
    Nothing,
    /// Everything appended up to here survives.
    Durable { upto: CommitSeq },
    /// The segment is given up. `errno` 0: a short write or a hang. What was not durable is kept and written again
    /// when a segment is offered.
    Failed { segment_id: u64, path: PathBuf, errno: i32 },
}

/// A block that is on disk and still in memory. Give it back with [`LogWriter::recycle`].
#[derive(Debug)]
pub struct DurableBlock {
    pub(super) buf: AlignedBuf,
    pub header: BlockHeader,
    /// Commits are numbered without gaps: one that is not the next says that blocks were dropped (read the disk)
    pub commit: CommitSeq,
    pub position: Position,
}

impl DurableBlock {
    pub fn records(&self) -> Records<'_> {
        let end = BLOCK_HEADER_BYTES + self.header.payload_bytes as usize;
        Records::new(&self.buf[BLOCK_HEADER_BYTES..end])
    }
    /// Where the next block of this segment begins.
    pub fn end(&self) -> Position {
        Position { offset: self.position.offset + self.header.block_bytes() as u64, ..self.position }
    }
}
