//! The writing side of a log, without I/O: appends go to buffers, [`LogWriter::next_op`] hands out what the disk is to
//! do next, [`LogWriter::complete`] is told what came of it.
//!
//! * One commit at a time: a block is written, *then* (after the completion) flushed; what is appended meanwhile forms
//!   the next block. Nothing is durable before the flush has returned.
//! * After any failure (error, short write, hang) the segment is given up for good and a flush is never tried again.
//!   What was not durable is written once more, in the same order, to the next segment offered. Until that succeeded
//!   appends are refused.
//! * Every buffer is bounded: see [`WriterConfig`].

use super::aligned::AlignedBuf;
use super::block::{
    BLOCK_HEADER_BYTES, BlockHeader, FLAG_SECOND_COPY, RECORD_HEADER_BYTES, RecordKind, Records, record_header,
};
use super::mark::{DurableMark, Mark};
use super::names::{name_bytes, put_name};
use super::prepare::PreparedSegment;
use super::record::{self, BatchDecoder, BatchEncoder, Envelope};
use super::segment::SegmentHeader;
use super::{PAGE_BYTES, PAYLOAD_BYTES_MAX, RECORD_POINTS_MAX, pages};
use crate::point::{Batch, INLINE_BIT};
use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

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
    fn record_bytes_max(&self) -> usize {
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
    buf: AlignedBuf,
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

/// Records on their way to the disk.
struct Pending {
    buf: AlignedBuf,
    /// `None`: carries only names
    commit: Option<CommitSeq>,
    /// Which segment it is planned for, counted from the start of the writer
    generation: u32,
    /// The one in which it was appended: its numbers are those of the series table of then
    appended_in: u32,
    first_point: u64,
    points: u32,
    records: u32,
    first_stamp_ns: i64,
    last_stamp_ns: i64,
}

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

    // --- appending

    /// Takes a batch in. All of it will be durable when the returned commit is (it may end in a later block than it
    /// begins in). Nothing is taken in on an error.
    pub fn append_batch(
        &mut self,
        envelope: &Envelope,
        stamp_ns: i64,
        batch: &Batch,
        names: &impl Names,
    ) -> Result<CommitSeq, AppendError> {
        let bound = BatchEncoder::bound(envelope, batch);
        self.admit(bound)?;
        if self.bounded {
            let names_bytes = self.unnamed_bytes(batch, names);
            if !self.has_room(bound + names_bytes) {
                return Err(AppendError::Full);
            }
        }
        let most = self.config.record_bytes_max();
        if batch.is_empty() {
            return Ok(self.last_commit);
        }
        let names_most = |range: Range<usize>| {
            let known = batch.series[range].iter().filter(|&&s| s & INLINE_BIT == 0);
            known.map(|&s| name_bytes(names.key(s))).sum::<usize>()
        };
        if batch.len() <= RECORD_POINTS_MAX && bound <= most && self.unnamed_bytes(batch, names) <= most {
            // In a new segment every series is unnamed: only that case costs the second look.
            if self.fits_planned(bound) || names_most(0..batch.len()) <= most {
                return Ok(self.append_record(envelope, stamp_ns, batch, bound, names));
            }
        }
        let mut parts = Vec::new();
        let whole = 0..batch.len();
        let mut todo = vec![whole];
        while let Some(range) = todo.pop() {
            let part = record::slice(batch, range.clone());
            let bound = BatchEncoder::bound(envelope, &part);
            if part.len() <= RECORD_POINTS_MAX && bound <= most && names_most(range.clone()) <= most {
                parts.push((part, bound));
            } else if range.len() == 1 {
                return Err(AppendError::TooLarge);
            } else {
                let middle = range.start + range.len() / 2;
                todo.push(middle..range.end);
                todo.push(range.start..middle);
            }
        }
        for (part, bound) in &parts {
            self.append_record(envelope, stamp_ns, part, *bound, names);
        }
        Ok(self.last_commit)
    }

    /// Takes in a record whose bytes mean nothing to the log. `points` of them are counted.
    pub fn append_opaque(
        &mut self,
        kind: RecordKind,
        stamp_ns: i64,
        points: u32,
        bytes: &[u8],
    ) -> Result<CommitSeq, AppendError> {
        assert!(!matches!(kind, RecordKind::Names | RecordKind::Batch), "the log writes these itself");
        if bytes.len() > self.config.record_bytes_max() {
            return Err(AppendError::TooLarge);
        }
        self.admit(bytes.len())?;
        while !self.open_for(bytes.len(), stamp_ns) {}
        let open = self.open.as_mut().expect("opened above");
        let before = open.buf.len();
        open.put_record(kind, 0, |buf| buf.extend_from_slice(bytes));
        Ok(self.appended(before, points, stamp_ns))
    }

    /// For a clean stop: a block without records. Its `durable_upto` says of the last block before it that it was
    /// flushed; without it, that one, if it rots, looks like the torn end of a crash. False: there is nothing to
    /// append (nothing written since the last seal), or no place for it (it would need a segment, and none is at hand).
    pub fn append_seal(&mut self, stamp_ns: i64) -> bool {
        let Some(active) = &self.active else { return false };
        let due = self.is_idle() && self.state == LogState::Serving && self.durable_block != self.seal_block;
        if !due {
            return false;
        }
        let bytes = pages(BLOCK_HEADER_BYTES + RECORD_HEADER_BYTES + self.second_copy.len() + 8) as u64;
        let planned = active.generation == self.generation;
        if !planned || active.end + bytes > active.bytes {
            if self.spares.is_empty() {
                return false;
            }
            if planned {
                self.plan_next_segment();
            }
        }
        let mut buf = AlignedBuf::with_capacity(PAGE_BYTES);
        buf.set_len(BLOCK_HEADER_BYTES);
        let mut seal = Pending {
            buf,
            commit: None,
            generation: self.generation,
            appended_in: self.generation,
            first_point: self.next_point,
            points: 0,
            records: 0,
            first_stamp_ns: stamp_ns,
            last_stamp_ns: stamp_ns,
        };
        if !self.second_copy.is_empty() {
            seal.put_record(RecordKind::Names, FLAG_SECOND_COPY, |buf| buf.extend_from_slice(&self.second_copy));
            self.second_copy.clear();
        }
        self.undurable_bytes += seal.buf.len();
        self.seal_block = self.next_block;
        self.open = Some(seal);
        self.seal();
        true
    }

    fn admit(&self, bytes: usize) -> Result<(), AppendError> {
        match self.state {
            LogState::Failed | LogState::Probing => Err(AppendError::Unavailable),
            _ if self.undurable_bytes > 0 && self.undurable_bytes + bytes > self.config.undurable_bytes_max => {
                Err(AppendError::Full)
            }
            _ => Ok(()),
        }
    }

    fn append_record(
        &mut self,
        envelope: &Envelope,
        stamp_ns: i64,
        batch: &Batch,
        bound: usize,
        names: &impl Names,
    ) -> CommitSeq {
        // A change of segment makes every series unnamed: then look again.
        loop {
            let names_bytes = self.unnamed_bytes(batch, names);
            if self.open_for(bound + names_bytes, stamp_ns) {
                break;
            }
        }
        let open = self.open.as_mut().expect("opened above");
        let before = open.buf.len();
        self.names_scratch.clear();
        for &series in &batch.series {
            if series & INLINE_BIT == 0 && self.named[series as usize] != self.generation {
                self.named[series as usize] = self.generation;
                put_name(&mut self.names_scratch, series, names.key(series));
            }
        }
        if !self.names_scratch.is_empty() {
            open.put_record(RecordKind::Names, 0, |buf| buf.extend_from_slice(&self.names_scratch));
            self.open_names.extend_from_slice(&self.names_scratch);
        }
        open.put_record(RecordKind::Batch, 0, |buf| self.encoder.encode(envelope, stamp_ns, batch, buf));
        self.appended(before, batch.len() as u32, stamp_ns)
    }

    /// Most bytes that the names of `batch` will take that its segment does not have yet. Makes room in `named`.
    fn unnamed_bytes(&mut self, batch: &Batch, names: &impl Names) -> usize {
        let mut bytes = 0;
        for &series in &batch.series {
            if series & INLINE_BIT == 0 {
                let at = series as usize;
                if at >= self.named.len() {
                    self.named.resize((at + 1).next_power_of_two(), 0);
                }
                if self.named[at] != self.generation {
                    bytes += name_bytes(names.key(series));
                }
            }
        }
        bytes
    }

    /// Whether `more` bytes of records surely stay in the segment that is planned now.
    fn fits_planned(&self, more: usize) -> bool {
        let open = self.open.as_ref().map_or(BLOCK_HEADER_BYTES + self.second_copy.len(), |open| open.buf.len());
        // The last 64 bytes: record headers and their alignment. One page: a block may have to be closed first.
        self.planned_end + (pages(open) + pages(more + self.open_names.len() + BLOCK_HEADER_BYTES + 64)) as u64
            <= self.config.segment_bytes
    }

    /// Whether `more` bytes of records have a place in segments that are there.
    fn has_room(&self, more: usize) -> bool {
        let planned_ahead = self.generation - self.active.as_ref().map_or(0, |active| active.generation);
        let spares = self.spares.len() as u32;
        // A spare is a whole segment, larger than any record with its names.
        spares > planned_ahead || (spares == planned_ahead && self.fits_planned(more))
    }

    /// No more segments are coming for now (the log is at its bound, the disk is full): appends that have no place in
    /// those at hand are refused. Without this they would wait in memory, and hold back the mark, and with it the floor
    /// and the very segments that could be recycled.
    pub fn set_bounded(&mut self, bounded: bool) {
        self.bounded = bounded;
    }

    /// Whether the log refuses because it is at its bound: it has no place for even a small batch.
    pub fn is_at_bound(&self) -> bool {
        self.bounded && !self.has_room(self.config.block_bytes.min(64 << 10))
    }

    /// Makes the open block one that can take `more` bytes of records. False: the segment changed (ask again, names
    /// are needed anew).
    fn open_for(&mut self, more: usize, stamp_ns: i64) -> bool {
        let more = more + 64;
        if let Some(open) = &self.open {
            let room_in_segment = self.planned_end + pages(open.buf.len() + more) as u64 <= self.config.segment_bytes;
            if room_in_segment && open.buf.len() + more <= self.config.block_bytes {
                return true;
            }
            self.seal();
        }
        let start = BLOCK_HEADER_BYTES + self.second_copy.len() + more;
        if self.planned_end + pages(start) as u64 > self.config.segment_bytes {
            assert!(self.planned_end > PAGE_BYTES as u64, "a record fits an empty segment (record_bytes_max)");
            self.plan_next_segment();
            return false;
        }
        let mut buf = self.free.pop().unwrap_or_else(|| AlignedBuf::with_capacity(OPEN_CAPACITY_BYTES));
        buf.set_len(BLOCK_HEADER_BYTES);
        self.last_commit.0 += 1;
        let mut open = Pending {
            buf,
            commit: Some(self.last_commit),
            generation: self.generation,
            appended_in: self.generation,
            first_point: self.next_point,
            points: 0,
            records: 0,
            first_stamp_ns: stamp_ns,
            last_stamp_ns: stamp_ns,
        };
        if !self.second_copy.is_empty() {
            open.put_record(RecordKind::Names, FLAG_SECOND_COPY, |buf| buf.extend_from_slice(&self.second_copy));
            self.second_copy.clear();
        }
        self.undurable_bytes += open.buf.len();
        self.open = Some(open);
        true
    }

    fn appended(&mut self, before: usize, points: u32, stamp_ns: i64) -> CommitSeq {
        let open = self.open.as_mut().expect("appended to");
        self.undurable_bytes += open.buf.len() - before;
        open.points += points;
        open.last_stamp_ns = stamp_ns;
        self.next_point += u64::from(points);
        self.last_commit
    }

    fn seal(&mut self) {
        if let Some(open) = self.open.take() {
            self.planned_end += pages(open.buf.len()) as u64;
            std::mem::swap(&mut self.second_copy, &mut self.open_names);
            self.open_names.clear();
            self.sealed.push_back(open);
        }
    }

    fn plan_next_segment(&mut self) {
        self.generation += 1;
        self.planned_end = PAGE_BYTES as u64;
        self.second_copy.clear();
        self.open_names.clear();
    }

    // --- driving the disk

    /// What the disk is to do next; `None`: nothing, or wait for a completion or a segment.
    pub fn next_op(&mut self, names: &impl Names) -> Option<LogOp> {
        if self.state == LogState::Failed {
            if self.spares.is_empty() {
                return None;
            }
            self.plan_again(names);
            self.state = LogState::Probing;
        }
        match self.flight {
            Flight::Idle => {
                if self.sealed.is_empty() {
                    self.seal();
                }
                let first = self.sealed.front()?;
                let generation = first.generation;
                if self.active.as_ref().is_some_and(|active| active.generation == generation) {
                    return Some(self.write_block());
                }
                let Some(spare) = self.spares.pop_front() else {
                    self.state = LogState::WaitingForSegment;
                    return None;
                };
                Some(self.begin_segment(spare, generation))
            }
            Flight::HeaderWritten => Some(self.write_block()),
            Flight::BlockWritten => {
                let op = self.op(OpKind::Flush);
                self.flight = Flight::Flush(op.id);
                Some(op)
            }
            Flight::Header(_) | Flight::Block(_) | Flight::Flush(_) => None,
        }
    }

    /// The header page is the writer's to write, not the preparer's: only now is it known where the segment before
    /// ended. It needs no flush of its own: the flush of the first block covers it, and without that block it is
    /// not missed.
    fn begin_segment(&mut self, spare: PreparedSegment, generation: u32) -> LogOp {
        self.retire_active();
        let first = self.sealed.front().expect("a segment begins with a block");
        let header = SegmentHeader {
            log_id: self.config.log_id,
            node_id: self.config.node_id,
            segment_id: spare.segment_id,
            epoch: self.epoch,
            created_stamp_ns: first.first_stamp_ns,
            salt: self.config.salt,
            previous_segment: self.previous.segment_id,
            previous_end: self.previous.end,
            previous_crc: self.previous.crc,
            first_block: self.next_block,
            first_point: first.first_point,
            durable_upto: self.durable_block,
            segment_bytes: spare.bytes,
        };
        self.header_page.set_len(PAGE_BYTES);
        header.write(&mut self.header_page);
        self.active = Some(Active {
            file: spare.file,
            segment_id: spare.segment_id,
            path: spare.path,
            bytes: spare.bytes,
            generation,
            end: PAGE_BYTES as u64,
        });
        if self.state == LogState::WaitingForSegment {
            self.state = LogState::Serving;
        }
        let (ptr, dsync) = (self.header_page.as_ptr(), self.config.mode == WriteMode::Dsync);
        let op = self.op(OpKind::Write { offset: 0, ptr, len: PAGE_BYTES as u32, dsync });
        self.flight = Flight::Header(op.id);
        op
    }

    fn write_block(&mut self) -> LogOp {
        let active = self.active.as_ref().expect("a block is written to a segment");
        let block = self.sealed.front_mut().expect("a block to write");
        let payload_bytes = block.payload_bytes();
        let header = BlockHeader {
            log_id: self.config.log_id,
            segment_id: active.segment_id,
            epoch: self.epoch,
            block_seq: self.next_block,
            first_point: block.first_point,
            points: block.points,
            payload_bytes: payload_bytes as u32,
            durable_upto: self.durable_block,
            first_stamp_ns: block.first_stamp_ns,
            last_stamp_ns: block.last_stamp_ns,
            payload_crc: crc32c::crc32c(&block.buf[BLOCK_HEADER_BYTES..]),
            previous_crc: self.previous.crc,
            records: block.records,
            offset: active.end,
            salt: self.config.salt,
        };
        header.write(&mut block.buf);
        block.buf.pad_to(PAGE_BYTES);
        assert!(active.end + block.buf.len() as u64 <= active.bytes, "blocks are planned to fit their segment");
        self.next_block += 1;
        let (offset, ptr, len) = (active.end, block.buf.as_ptr(), block.buf.len() as u32);
        let op = self.op(OpKind::Write { offset, ptr, len, dsync: self.config.mode == WriteMode::Dsync });
        self.flight = Flight::Block(op.id);
        op
    }

    fn op(&mut self, kind: OpKind) -> LogOp {
        use std::os::fd::AsRawFd;
        let active = self.active.as_ref().expect("operations have a segment");
        self.next_op += 1;
        LogOp { id: self.next_op, segment_id: active.segment_id, fd: active.file.as_raw_fd(), kind }
    }

    /// `result`: bytes written (0 for a flush), or a negative errno. Completions of operations that were given up
    /// as hung, and unknown ids, do nothing.
    pub fn complete(&mut self, op: u64, result: i32) -> LogEvent {
        if let Some(at) = self.quarantine.iter().position(|(id, ..)| *id == op) {
            self.quarantine.swap_remove(at);
            return LogEvent::Nothing;
        }
        match self.flight {
            Flight::Header(id) if id == op => {
                if result != PAGE_BYTES as i32 {
                    return self.fail(result);
                }
                self.flight = Flight::HeaderWritten;
                LogEvent::Nothing
            }
            Flight::Block(id) if id == op => {
                let block = self.sealed.front().expect("the block in flight");
                if result < 0 || result as usize != block.buf.len() {
                    return self.fail(result);
                }
                match self.config.mode {
                    WriteMode::Dsync => self.committed(),
                    WriteMode::WriteThenFlush => {
                        self.flight = Flight::BlockWritten;
                        LogEvent::Nothing
                    }
                }
            }
            Flight::Flush(id) if id == op => {
                if result != 0 {
                    return self.fail(result);
                }
                self.committed()
            }
            _ => LogEvent::Nothing,
        }
    }

    fn committed(&mut self) -> LogEvent {
        self.flight = Flight::Idle;
        let block = self.sealed.pop_front().expect("the block in flight");
        let active = self.active.as_mut().expect("it was written to a segment");
        let (header, crc) = BlockHeader::parse(&block.buf).expect("written in `write_block`");
        let position = Position { segment_id: active.segment_id, offset: active.end };
        active.end += block.buf.len() as u64;
        self.previous = PreviousEnd { segment_id: active.segment_id, end: active.end, crc };
        self.mark.publish(Mark {
            end: self.durable_end(),
            next_point: header.end_point(),
            last_stamp_ns: header.last_stamp_ns,
        });
        self.durable_block = header.block_seq;
        self.undurable_bytes -= BLOCK_HEADER_BYTES + header.payload_bytes as usize;
        let Some(commit) = block.commit else {
            self.reuse(block.buf);
            return LogEvent::Nothing;
        };
        self.state = LogState::Serving;
        self.durable_commit = commit;
        if self.durable_bytes + block.buf.len() <= self.config.durable_bytes_max {
            self.durable_bytes += block.buf.len();
            self.durable.push_back(DurableBlock { buf: block.buf, header, commit, position });
        } else {
            self.reuse(block.buf);
        }
        LogEvent::Durable { upto: commit }
    }

    // --- failing

    /// The operation did not come back in time. Its memory is set aside until it does; the segment is given up.
    pub fn abort_hung(&mut self, op: u64) -> LogEvent {
        let hung = match self.flight {
            Flight::Header(id) if id == op => {
                std::mem::replace(&mut self.header_page, AlignedBuf::with_capacity(PAGE_BYTES))
            }
            Flight::Block(id) if id == op => {
                let block = self.sealed.front_mut().expect("the block in flight");
                let mut copy = AlignedBuf::with_capacity(block.buf.len());
                copy.extend_from_slice(&block.buf);
                std::mem::replace(&mut block.buf, copy)
            }
            Flight::Flush(id) if id == op => AlignedBuf::with_capacity(1),
            _ => return LogEvent::Nothing,
        };
        let file = self.active.as_ref().map(|active| active.file.clone());
        self.quarantine.push((op, hung, file));
        self.fail(0)
    }

    fn fail(&mut self, result: i32) -> LogEvent {
        // The block may have been closed with its padding; its payload length tells what to take off again.
        if let Some(block) = self.sealed.front_mut()
            && matches!(self.flight, Flight::Block(_) | Flight::BlockWritten | Flight::Flush(_))
        {
            let (header, _) = BlockHeader::parse(&block.buf).expect("written in `write_block`");
            block.buf.set_len(BLOCK_HEADER_BYTES + header.payload_bytes as usize);
        }
        self.flight = Flight::Idle;
        self.state = LogState::Failed;
        let (segment_id, path) = self.active.as_ref().map(|a| (a.segment_id, a.path.clone())).unwrap_or_default();
        self.retire_active();
        LogEvent::Failed { segment_id, path, errno: if result < 0 { -result } else { 0 } }
    }

    fn retire_active(&mut self) {
        if let Some(active) = self.active.take()
            && active.end > PAGE_BYTES as u64
        {
            self.history.push_back(ReadSpan {
                segment_id: active.segment_id,
                path: active.path,
                from: PAGE_BYTES as u64,
                to: active.end,
            });
        }
    }

    /// Plans everything that is not durable for new segments: the same records in the same blocks, each behind blocks
    /// that name its series (twice, as always).
    fn plan_again(&mut self, names: &impl Names) {
        self.seal();
        self.plan_next_segment();
        let blocks: Vec<Pending> = self.sealed.drain(..).collect();
        let mut decoder = BatchDecoder::default();
        for mut block in blocks {
            if block.commit.is_none() {
                self.undurable_bytes -= block.buf.len();
                self.reuse(block.buf);
                continue;
            }
            let mut carriers = self.name_carriers(&block, &mut decoder, names);
            let bytes = |carriers: &[Pending]| {
                (carriers.iter().map(|c| pages(c.buf.len())).sum::<usize>() + pages(block.buf.len())) as u64
            };
            if self.planned_end + bytes(&carriers) > self.config.segment_bytes && self.planned_end > PAGE_BYTES as u64 {
                self.plan_next_segment();
                carriers = self.name_carriers(&block, &mut decoder, names);
            }
            if self.planned_end + bytes(&carriers) > self.config.segment_bytes {
                // Names too many for one segment with their second copies: the first copies must do.
                carriers.truncate(carriers.len() / 2);
            }
            self.planned_end += bytes(&carriers);
            for carrier in carriers {
                self.undurable_bytes += carrier.buf.len();
                self.sealed.push_back(carrier);
            }
            block.generation = self.generation;
            self.sealed.push_back(block);
        }
    }

    /// Blocks with the names that `block` needs and its segment does not have; the second half repeats the first.
    fn name_carriers(&mut self, block: &Pending, decoder: &mut BatchDecoder, names: &impl Names) -> Vec<Pending> {
        let mut chunks: Vec<Vec<u8>> = Vec::new();
        for record in Records::new(&block.buf[BLOCK_HEADER_BYTES..]).filter(|r| r.kind == RecordKind::Batch) {
            let (_, batch) = decoder.decode(record.bytes).expect("encoded by this writer");
            for &series in batch.series.iter().filter(|&&s| s & INLINE_BIT == 0) {
                if self.named[series as usize] != self.generation {
                    self.named[series as usize] = self.generation;
                    if chunks.last().is_none_or(|chunk| chunk.len() > self.config.block_bytes) {
                        chunks.push(Vec::new());
                    }
                    put_name(chunks.last_mut().expect("pushed above"), series, names.key(series));
                }
            }
        }
        let carrier = |chunk: &Vec<u8>, flags| {
            let mut buf = AlignedBuf::with_capacity(BLOCK_HEADER_BYTES + chunk.len() + 16);
            buf.set_len(BLOCK_HEADER_BYTES);
            let mut carrier = Pending {
                buf,
                commit: None,
                generation: self.generation,
                appended_in: block.appended_in,
                first_point: block.first_point,
                points: 0,
                records: 0,
                first_stamp_ns: block.first_stamp_ns,
                last_stamp_ns: block.first_stamp_ns,
            };
            carrier.put_record(RecordKind::Names, flags, |buf| buf.extend_from_slice(chunk));
            carrier
        };
        let first = chunks.iter().map(|chunk| carrier(chunk, 0));
        first.chain(chunks.iter().map(|chunk| carrier(chunk, FLAG_SECOND_COPY))).collect()
    }

    // --- segments

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

    // --- reading what is durable

    /// The oldest durable block that is still in memory.
    pub fn take_durable(&mut self) -> Option<DurableBlock> {
        let block = self.durable.pop_front()?;
        self.durable_bytes -= block.buf.len();
        Some(block)
    }

    /// Gives a block's memory back for the next one.
    pub fn recycle(&mut self, block: DurableBlock) {
        self.reuse(block.buf);
    }

    fn reuse(&mut self, mut buf: AlignedBuf) {
        if self.free.len() < FREE_BUFFERS_MAX && buf.capacity() <= 2 * self.config.block_bytes {
            buf.clear();
            self.free.push(buf);
        }
    }

    /// What to read from disk to have everything durable from `from` on.
    pub fn read_plan(&self, from: Position) -> Vec<ReadSpan> {
        let active = self.active.as_ref().map(|active| ReadSpan {
            segment_id: active.segment_id,
            path: active.path.clone(),
            from: PAGE_BYTES as u64,
            to: active.end,
        });
        let spans = self.history.iter().cloned().chain(active);
        spans
            .filter(|span| span.segment_id >= from.segment_id)
            .map(|mut span| {
                if span.segment_id == from.segment_id {
                    span.from = span.from.max(from.offset);
                }
                span
            })
            .filter(|span| span.from < span.to)
            .collect()
    }

    /// Retention removed these segments.
    pub fn forget_segments_below(&mut self, segment_id: u64) {
        while self.history.front().is_some_and(|span| span.segment_id < segment_id) {
            self.history.pop_front();
        }
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

    /// For drivers that make calls instead of passing addresses: the bytes and the file of the operation in flight.
    pub fn op_bytes(&self, op: u64) -> Option<(&File, &[u8])> {
        let file = &*self.active.as_ref()?.file;
        match self.flight {
            Flight::Header(id) if id == op => Some((file, &self.header_page)),
            Flight::Block(id) if id == op => Some((file, &self.sealed.front()?.buf)),
            Flight::Flush(id) if id == op => Some((file, &[])),
            _ => None,
        }
    }
}

impl Pending {
    fn payload_bytes(&self) -> usize {
        self.buf.len() - BLOCK_HEADER_BYTES
    }

    fn put_record(&mut self, kind: RecordKind, flags: u8, write: impl FnOnce(&mut AlignedBuf)) {
        let at = self.buf.len();
        self.buf.extend_from_slice(&record_header(kind, flags, 0));
        let start = self.buf.len();
        write(&mut self.buf);
        let header = record_header(kind, flags, self.buf.len() - start);
        self.buf[at..start].copy_from_slice(&header);
        self.buf.pad_to(8);
        self.records += 1;
    }
}
