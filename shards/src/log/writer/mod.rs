//! The writing side of a log, without I/O: appends go to buffers, [`LogWriter::next_op`] hands out what the disk is to
//! do next, [`LogWriter::complete`] is told what came of it.
//!
//! * One commit at a time: a block is written, *then* (after the completion) flushed; what is appended meanwhile forms
//!   the next block. Nothing is durable before the flush has returned.
//! * After any failure (error, short write, hang) the segment is given up for good and a flush is never tried again.
//!   What was not durable is written once more, in the same order, to the next segment offered. Until that succeeded
//!   appends are refused.
//! * Every buffer is bounded: see [`WriterConfig`].
//!
//! `append` fills blocks, `disk` gets them to the disk, `failure` plans them anew when it refuses, `durable` hands them
//! to the fold.

mod append;
mod disk;
mod durable;
mod failure;
mod pending;
mod terms;

use super::aligned::AlignedBuf;
use super::mark::DurableMark;
use super::prepare::PreparedSegment;
use super::record::BatchEncoder;
use super::{PAGE_BYTES, PAYLOAD_BYTES_MAX};
use pending::Pending;
use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

pub use terms::{
    AppendError, CommitSeq, DurableBlock, LogEvent, LogOp, LogStart, LogState, Names, OpKind, Position, PreviousEnd,
    ReadSpan, WriteMode, WriterConfig,
};

struct Active {
    file: Arc<File>,
    segment_id: u64,
    path: PathBuf,
    bytes: u64,
    generation: u32,
    /// End of the durable blocks
    end: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flight {
    Idle,
    Header(u64),
    /// The header page is written; the first block may follow
    HeaderWritten,
    Block(u64),
    /// The block is written; its flush may follow
    BlockWritten,
    Flush(u64),
}

pub struct LogWriter {
    config: WriterConfig,
    start: LogStart,
    epoch: u64,
    next_segment_id: u64,
    next_block: u64,
    next_point: u64,
    durable_block: u64,
    last_commit: CommitSeq,
    durable_commit: CommitSeq,
    previous: PreviousEnd,
    /// What readers on other threads may read
    mark: Arc<DurableMark>,

    active: Option<Active>,
    spares: VecDeque<PreparedSegment>,
    header_page: AlignedBuf,

    /// The segment that appends are planned for, and where in it the open block will begin.
    generation: u32,
    planned_end: u64,
    /// By series number: the generation in which it was last named (0: never)
    named: Vec<u32>,
    names_scratch: Vec<u8>,
    /// Names first defined in the open block
    open_names: Vec<u8>,
    /// Names of the block before, due at the start of the next one
    second_copy: Vec<u8>,
    encoder: BatchEncoder,

    open: Option<Pending>,
    /// Closed blocks, oldest first; the first may be in flight
    sealed: VecDeque<Pending>,
    undurable_bytes: usize,
    bounded: bool,
    flight: Flight,
    next_op: u64,
    state: LogState,
    /// Hung operations: their memory and file live until they return
    quarantine: Vec<(u64, AlignedBuf, Option<Arc<File>>)>,
    /// The last block that [`LogWriter::append_seal`] made
    seal_block: u64,

    durable: VecDeque<DurableBlock>,
    durable_bytes: usize,
    history: VecDeque<ReadSpan>,
    free: Vec<AlignedBuf>,
}

/// Buffers kept for reuse, and how large one may have grown to be kept.
const FREE_BUFFERS_MAX: usize = 8;
const OPEN_CAPACITY_BYTES: usize = 64 << 10;

impl LogWriter {
    pub fn new(config: WriterConfig, start: LogStart) -> LogWriter {
        assert!(config.segment_bytes.is_multiple_of(PAGE_BYTES as u64), "segments are whole pages");
        assert!(config.segment_bytes >= 64 << 10 && config.block_bytes >= PAGE_BYTES);
        assert!(config.block_bytes <= PAYLOAD_BYTES_MAX / 4 && config.block_bytes as u64 <= config.segment_bytes / 4);
        LogWriter {
            epoch: start.epoch,
            next_segment_id: start.next_segment_id,
            next_block: start.next_block,
            next_point: start.next_point,
            durable_block: start.durable_upto,
            last_commit: CommitSeq(0),
            durable_commit: CommitSeq(0),
            previous: start.previous,
            mark: Arc::new(DurableMark::new(start.mark())),
            active: None,
            spares: VecDeque::new(),
            header_page: AlignedBuf::with_capacity(PAGE_BYTES),
            generation: 1,
            planned_end: PAGE_BYTES as u64,
            named: Vec::new(),
            names_scratch: Vec::new(),
            open_names: Vec::new(),
            second_copy: Vec::new(),
            encoder: BatchEncoder::default(),
            open: None,
            sealed: VecDeque::new(),
            undurable_bytes: 0,
            bounded: false,
            flight: Flight::Idle,
            next_op: 0,
            state: LogState::WaitingForSegment,
            quarantine: Vec::new(),
            seal_block: 0,
            durable: VecDeque::new(),
            durable_bytes: 0,
            history: start.history.iter().cloned().collect(),
            free: Vec::new(),
            config,
            start,
        }
    }

    /// One segment is always wanted in reserve.
    pub fn needs_segment(&self) -> bool {
        self.spares.is_empty()
    }

    /// The id the next prepared segment must have.
    pub fn next_segment_id(&self) -> u64 {
        self.next_segment_id
    }

    /// Takes a prepared segment; gives it back when its id is not above all before or its length is not the
    /// configured one.
    pub fn offer_segment(&mut self, segment: PreparedSegment) -> Result<(), PreparedSegment> {
        if segment.segment_id < self.next_segment_id || segment.bytes != self.config.segment_bytes {
            return Err(segment);
        }
        self.next_segment_id = segment.segment_id + 1;
        self.spares.push_back(segment);
        if self.state == LogState::WaitingForSegment {
            self.state = LogState::Serving;
        }
        Ok(())
    }

    /// Blocks appended in generations below this are durable: a series last used before it may give its number away.
    pub fn settled_generation(&self) -> u32 {
        self.sealed.iter().chain(&self.open).map(|block| block.appended_in).min().unwrap_or(self.generation)
    }

    /// Counts the segments that appends were planned for, from 1.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Behind the last durable block.
    pub fn durable_end(&self) -> Position {
        Position { segment_id: self.previous.segment_id, offset: self.previous.end }
    }

    /// Where the durable end is published from now on, for readers on other threads.
    pub fn publish_to(mut self, mark: Arc<DurableMark>) -> LogWriter {
        self.mark = mark;
        self
    }

    pub fn durable_commit(&self) -> CommitSeq {
        self.durable_commit
    }

    /// The commit that the last append went to.
    pub fn last_commit(&self) -> CommitSeq {
        self.last_commit
    }

    /// Points appended since the log was made, over all starts.
    pub fn next_point(&self) -> u64 {
        self.next_point
    }

    pub fn undurable_bytes(&self) -> usize {
        self.undurable_bytes
    }

    pub fn is_idle(&self) -> bool {
        self.flight == Flight::Idle && self.sealed.is_empty() && self.open.is_none()
    }

    pub fn state(&self) -> LogState {
        self.state
    }

    pub fn start(&self) -> &LogStart {
        &self.start
    }

    pub fn config(&self) -> &WriterConfig {
        &self.config
    }
}
