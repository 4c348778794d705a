//! A commit block: a header of 128 bytes, records, zeros up to the next page.
//!
//! Parsing meets any bytes: it never panics, never reads past the slice, and believes a length only after the header's
//! CRC and the bound on payloads. Layout in FORMAT.md, "Block" and "Record".

use super::{FORMAT_VERSION, PAYLOAD_BYTES_MAX, field, pages};

pub const BLOCK_MAGIC: [u8; 8] = *b"MSblock\0";
pub const BLOCK_HEADER_BYTES: usize = 128;
pub const RECORD_HEADER_BYTES: usize = 8;
const CRC_AT: usize = BLOCK_HEADER_BYTES - 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockHeader {
    pub log_id: u32,
    pub segment_id: u64,
    pub epoch: u64,
    /// Never used twice in a log
    pub block_seq: u64,
    /// Number of the first point; the points of a log are numbered without gaps
    pub first_point: u64,
    pub points: u32,
    pub payload_bytes: u32,
    /// Highest block sequence known flushed when this was written
    pub durable_upto: u64,
    pub first_stamp_ns: i64,
    pub last_stamp_ns: i64,
    pub payload_crc: u32,
    /// Header CRC of the block before it in the log (0 for the first): two blocks cannot change places unseen
    pub previous_crc: u32,
    pub records: u32,
    /// Where in the file it belongs: a misdirected write is no block
    pub offset: u64,
    pub salt: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockError {
    /// No block begins here: another segment's leftovers, zeros, or the middle of something
    Absent,
    /// Begins like a block, but its header fails the CRC or says impossible things
    Header,
    /// The header is sound and the payload is not (or is cut short)
    Payload,
    /// Written by a newer format
    Newer(u16),
}

impl BlockHeader {
    /// Fills `at[..128]` and returns the header's CRC.
    pub fn write(&self, at: &mut [u8]) -> u32 {
        let at = &mut at[..BLOCK_HEADER_BYTES];
        at.fill(0);
        field::put(at, 0, &BLOCK_MAGIC);
        field::put(at, 8, &FORMAT_VERSION.to_le_bytes());
        field::put(at, 12, &self.log_id.to_le_bytes());
        field::put(at, 16, &self.segment_id.to_le_bytes());
        field::put(at, 24, &self.epoch.to_le_bytes());
        field::put(at, 32, &self.block_seq.to_le_bytes());
        field::put(at, 40, &self.first_point.to_le_bytes());
        field::put(at, 48, &self.points.to_le_bytes());
        field::put(at, 52, &self.payload_bytes.to_le_bytes());
        field::put(at, 56, &self.durable_upto.to_le_bytes());
        field::put(at, 64, &self.first_stamp_ns.to_le_bytes());
        field::put(at, 72, &self.last_stamp_ns.to_le_bytes());
        field::put(at, 80, &self.payload_crc.to_le_bytes());
        field::put(at, 84, &self.previous_crc.to_le_bytes());
        field::put(at, 88, &self.records.to_le_bytes());
        field::put(at, 96, &self.offset.to_le_bytes());
        field::put(at, 104, &self.salt.to_le_bytes());
        let crc = crc32c::crc32c(&at[..CRC_AT]);
        field::put(at, CRC_AT, &crc.to_le_bytes());
        crc
    }

    /// The header at the start of `bytes`, and its CRC.
    pub fn parse(bytes: &[u8]) -> Result<(BlockHeader, u32), BlockError> {
        if bytes.len() < BLOCK_HEADER_BYTES || bytes[..8] != BLOCK_MAGIC {
            return Err(BlockError::Absent);
        }
        let crc = field::u32(bytes, CRC_AT);
        if crc32c::crc32c(&bytes[..CRC_AT]) != crc {
            return Err(BlockError::Header);
        }
        match field::u16(bytes, 8) {
            0 => return Err(BlockError::Header),
            version if version > FORMAT_VERSION => return Err(BlockError::Newer(version)),
            _ => {}
        }
        let header = BlockHeader {
            log_id: field::u32(bytes, 12),
            segment_id: field::u64(bytes, 16),
            epoch: field::u64(bytes, 24),
            block_seq: field::u64(bytes, 32),
            first_point: field::u64(bytes, 40),
            points: field::u32(bytes, 48),
            payload_bytes: field::u32(bytes, 52),
            durable_upto: field::u64(bytes, 56),
            first_stamp_ns: field::i64(bytes, 64),
            last_stamp_ns: field::i64(bytes, 72),
            payload_crc: field::u32(bytes, 80),
            previous_crc: field::u32(bytes, 84),
            records: field::u32(bytes, 88),
            offset: field::u64(bytes, 96),
            salt: field::u64(bytes, 104),
        };
        // The sums below cannot overflow for what a writer of ours can have written.
        let sane = header.payload_bytes as usize <= PAYLOAD_BYTES_MAX
            && header.first_point.checked_add(u64::from(header.points)).is_some()
            && header.offset.checked_add(header.block_bytes() as u64).is_some();
        if sane { Ok((header, crc)) } else { Err(BlockError::Header) }
    }

    /// Header, payload and padding.
    pub fn block_bytes(&self) -> usize {
        pages(BLOCK_HEADER_BYTES + self.payload_bytes as usize)
    }

    pub fn end_point(&self) -> u64 {
        self.first_point + u64::from(self.points)
    }
}

/// A whole block at the start of `bytes`: header, its CRC, and a payload whose CRC holds.
pub fn parse_block(bytes: &[u8]) -> Result<(BlockHeader, u32, &[u8]), BlockError> {
    let (header, crc) = BlockHeader::parse(bytes)?;
    let end = BLOCK_HEADER_BYTES + header.payload_bytes as usize;
    let payload = bytes.get(BLOCK_HEADER_BYTES..end).ok_or(BlockError::Payload)?;
    if crc32c::crc32c(payload) != header.payload_crc {
        return Err(BlockError::Payload);
    }
    Ok((header, crc, payload))
}

/// What a record is. Stored: numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// Series number -> canonical key
    Names = 1,
    /// The points of one request
    Batch = 2,
    /// Closed windows; the reducer's bytes
    Aggregates = 3,
    /// How far windows are closed; the reducer's bytes
    Mark = 4,
    /// The fold clock began a new era; the reducer's bytes
    Era = 5,
}

impl RecordKind {
    pub const fn from_u8(n: u8) -> Option<RecordKind> {
        Some(match n {
            1 => RecordKind::Names,
            2 => RecordKind::Batch,
            3 => RecordKind::Aggregates,
            4 => RecordKind::Mark,
            5 => RecordKind::Era,
            _ => return None,
        })
    }
}

/// Set on a Names record that repeats the one of the block before.
pub const FLAG_SECOND_COPY: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef<'a> {
    pub kind: RecordKind,
    pub flags: u8,
    pub bytes: &'a [u8],
}

/// The records of a payload, in order. Kinds it does not know are passed over: a newer minor writer may add some.
/// Ends early at a length that does not fit; behind a payload CRC that cannot come from a disk.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    pub fn new(payload: &'a [u8]) -> Records<'a> {
        Records { rest: payload }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = RecordRef<'a>;
    fn next(&mut self) -> Option<RecordRef<'a>> {
        loop {
            let header = self.rest.get(..RECORD_HEADER_BYTES)?;
            let (kind, flags, len) = (header[0], header[1], field::u32(header, 4) as usize);
            let end = RECORD_HEADER_BYTES.checked_add(len)?;
            let bytes = self.rest.get(RECORD_HEADER_BYTES..end)?;
            self.rest = self.rest.get(end.next_multiple_of(8)..).unwrap_or(&[]);
            if let Some(kind) = RecordKind::from_u8(kind) {
                return Some(RecordRef { kind, flags, bytes });
            }
        }
    }
}

pub fn record_header(kind: RecordKind, flags: u8, len: usize) -> [u8; RECORD_HEADER_BYTES] {
    let len = u32::try_from(len).expect("a record is shorter than a payload").to_le_bytes();
    [kind as u8, flags, 0, 0, len[0], len[1], len[2], len[3]]
}
