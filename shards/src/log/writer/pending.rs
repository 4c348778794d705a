//! A block in memory that is not durable yet: records are put into it one behind the other.

use super::super::aligned::AlignedBuf;
use super::super::block::{BLOCK_HEADER_BYTES, FLAG_SECOND_COPY, RecordKind, record_header};
use super::CommitSeq;

/// Records on their way to the disk.
pub(super) struct Pending {
    pub(super) buf: AlignedBuf,
    /// `None`: carries only names
    pub(super) commit: Option<CommitSeq>,
    /// Which segment it is planned for, counted from the start of the writer
    pub(super) generation: u32,
    /// The one in which it was appended: its numbers are those of the series table of then
    pub(super) appended_in: u32,
    pub(super) first_point: u64,
    pub(super) points: u32,
    pub(super) records: u32,
    pub(super) first_stamp_ns: i64,
    pub(super) last_stamp_ns: i64,
}

impl Pending {
    /// An empty block in `buf`, planned for a segment.
    pub(super) fn begin(
        mut buf: AlignedBuf,
        commit: Option<CommitSeq>,
        generation: u32,
        first_point: u64,
        stamp_ns: i64,
    ) -> Pending {
        buf.clear();
        buf.set_len(BLOCK_HEADER_BYTES);
        Pending {
            buf,
            commit,
            generation,
            appended_in: generation,
            first_point,
            points: 0,
            records: 0,
            first_stamp_ns: stamp_ns,
            last_stamp_ns: stamp_ns,
        }
    }

    /// The names of the block before once more.
    pub(super) fn put_second_copy(&mut self, names: &mut Vec<u8>) {
        if !names.is_empty() {
            self.put_record(RecordKind::Names, FLAG_SECOND_COPY, |buf| buf.extend_from_slice(names));
            names.clear();
        }
    }

    pub(super) fn payload_bytes(&self) -> usize {
        self.buf.len() - BLOCK_HEADER_BYTES
    }

    pub(super) fn put_record(&mut self, kind: RecordKind, flags: u8, write: impl FnOnce(&mut AlignedBuf)) {
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
