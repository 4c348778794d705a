//! The first page of a segment file: whose it is, and where the segment before it ended.
//!
//! Never panics on any bytes. Layout in FORMAT.md, "Segment header".

use super::{FORMAT_VERSION, PAGE_BYTES, field};
use std::path::Path;

pub const SEGMENT_MAGIC: [u8; 8] = *b"MSsegmnt";
/// Where the CRC of the page stands.
const CRC_AT: usize = PAGE_BYTES - 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Which shard's log, or [`super::AGGREGATE_LOG_ID`]
    pub log_id: u32,
    pub node_id: u128,
    pub segment_id: u64,
    pub epoch: u64,
    /// Receive stamp of the first record
    pub created_stamp_ns: i64,
    /// Random per start; every block repeats it, so that bytes a client sent are never taken for a block
    pub salt: u64,
    /// 0: there is none
    pub previous_segment: u64,
    /// Offset behind the last durable block of the previous segment; what lies beyond it there counts for nothing
    pub previous_end: u64,
    /// Header CRC of the last durable block
    pub previous_crc: u32,
    pub first_block: u64,
    pub first_point: u64,
    /// Highest block sequence known flushed when this was written
    pub durable_upto: u64,
    pub segment_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderError {
    /// All zero: prepared, not used yet
    Blank,
    /// Of a newer format: to be left as it is
    Newer(u16),
    /// No segment header, or one that fails its CRC
    Damaged,
}

impl SegmentHeader {
    /// Fills one page.
    pub fn write(&self, page: &mut [u8]) {
        assert_eq!(page.len(), PAGE_BYTES);
        page.fill(0);
        field::put(page, 0, &SEGMENT_MAGIC);
        field::put(page, 8, &FORMAT_VERSION.to_le_bytes());
        field::put(page, 12, &self.log_id.to_le_bytes());
        field::put(page, 16, &self.node_id.to_le_bytes());
        field::put(page, 32, &self.segment_id.to_le_bytes());
        field::put(page, 40, &self.epoch.to_le_bytes());
        field::put(page, 48, &self.created_stamp_ns.to_le_bytes());
        field::put(page, 56, &self.salt.to_le_bytes());
        field::put(page, 64, &self.previous_segment.to_le_bytes());
        field::put(page, 72, &self.previous_end.to_le_bytes());
        field::put(page, 80, &self.previous_crc.to_le_bytes());
        field::put(page, 88, &self.first_block.to_le_bytes());
        field::put(page, 96, &self.first_point.to_le_bytes());
        field::put(page, 104, &self.durable_upto.to_le_bytes());
        field::put(page, 112, &self.segment_bytes.to_le_bytes());
        let crc = crc32c::crc32c(&page[..CRC_AT]);
        field::put(page, CRC_AT, &crc.to_le_bytes());
    }

    pub fn parse(page: &[u8]) -> Result<SegmentHeader, HeaderError> {
        if page.len() < PAGE_BYTES {
            return Err(HeaderError::Damaged);
        }
        let page = &page[..PAGE_BYTES];
        if page.iter().all(|&b| b == 0) {
            return Err(HeaderError::Blank);
        }
        if page[..8] != SEGMENT_MAGIC {
            return Err(HeaderError::Damaged);
        }
        // Before the CRC: a newer format may keep it elsewhere. A damaged version byte so leads to "left as it is".
        let version = field::u16(page, 8);
        if version > FORMAT_VERSION {
            return Err(HeaderError::Newer(version));
        }
        if crc32c::crc32c(&page[..CRC_AT]) != field::u32(page, CRC_AT) || version == 0 {
            return Err(HeaderError::Damaged);
        }
        Ok(SegmentHeader {
            log_id: field::u32(page, 12),
            node_id: u128::from_le_bytes(field::bytes(page, 16)),
            segment_id: field::u64(page, 32),
            epoch: field::u64(page, 40),
            created_stamp_ns: field::i64(page, 48),
            salt: field::u64(page, 56),
            previous_segment: field::u64(page, 64),
            previous_end: field::u64(page, 72),
            previous_crc: field::u32(page, 80),
            first_block: field::u64(page, 88),
            first_point: field::u64(page, 96),
            durable_upto: field::u64(page, 104),
            segment_bytes: field::u64(page, 112),
        })
    }
}

/// `0000000000000007.seg`: sixteen decimal digits, so that names sort as numbers.
pub fn segment_file_name(segment_id: u64) -> String {
    format!("{segment_id:016}.seg")
}

/// Extension of a file that is being filled to become a segment: `0000000000000007.seg.filling`.
pub const FILLING: &str = "filling";

/// The number in a segment's file name; `None` for any other file.
pub fn segment_id_of(path: &Path) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_suffix(".seg")?;
    if digits.len() < 16 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|&id| id != 0)
}
