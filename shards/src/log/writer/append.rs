//! Taking records in: which block they go to, which segment it is planned for, and when that is refused.

use super::super::aligned::AlignedBuf;
use super::super::block::{BLOCK_HEADER_BYTES, RECORD_HEADER_BYTES, RecordKind};
use super::super::names::{name_bytes, put_name};
use super::super::record::{self, BatchEncoder, Envelope};
use super::super::{PAGE_BYTES, RECORD_POINTS_MAX, pages};
use super::pending::Pending;
use super::{AppendError, CommitSeq, LogState, LogWriter, Names, OPEN_CAPACITY_BYTES};
use crate::point::{Batch, INLINE_BIT};
use std::ops::Range;

impl LogWriter {
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
        let buf = AlignedBuf::with_capacity(PAGE_BYTES);
        let mut seal = Pending::begin(buf, None, self.generation, self.next_point, stamp_ns);
        seal.put_second_copy(&mut self.second_copy);
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
        let buf = self.free.pop().unwrap_or_else(|| AlignedBuf::with_capacity(OPEN_CAPACITY_BYTES));
        self.last_commit.0 += 1;
        let mut open = Pending::begin(buf, Some(self.last_commit), self.generation, self.next_point, stamp_ns);
        open.put_second_copy(&mut self.second_copy);
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

    pub(super) fn seal(&mut self) {
        if let Some(open) = self.open.take() {
            self.planned_end += pages(open.buf.len()) as u64;
            std::mem::swap(&mut self.second_copy, &mut self.open_names);
            self.open_names.clear();
            self.sealed.push_back(open);
        }
    }

    pub(super) fn plan_next_segment(&mut self) {
        self.generation += 1;
        self.planned_end = PAGE_BYTES as u64;
        self.second_copy.clear();
        self.open_names.clear();
    }
}
