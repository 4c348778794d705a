//! The headers of a segment's blocks: of large blocks a page each is read, by which a reader may pass over the rest.
//!
//! Promise: an answer only where every block, from the first to the end, begins with a sound header of this segment, one
//! behind the other. Whatever is amiss is for [`SegmentReader`](super::SegmentReader) to find, which reads everything.

use super::PAGE_BYTES;
use super::block::BlockHeader;
use super::read::Pages;
use super::segment::SegmentHeader;
use std::io;
use std::path::Path;

/// What was found, and how many bytes were read for it.
#[derive(Debug, Default)]
pub struct BlockHeaders {
    pub headers: Option<Vec<BlockHeader>>,
    pub read_bytes: u64,
}

/// Blocks smaller than this are read along: one large read is sooner done than many small ones.
const HOP_BYTES_MIN: usize = 16 << 10;
const AHEAD_BYTES: u64 = 256 << 10;

/// `to`: where the segment's durable blocks end. An error is a file that cannot be opened.
pub fn block_headers(path: &Path, segment_id: u64, to: u64) -> io::Result<BlockHeaders> {
    let mut pages = Pages::open(path)?;
    let headers = walk(&mut pages, segment_id, to);
    Ok(BlockHeaders { headers, read_bytes: pages.read_bytes })
}

fn walk(pages: &mut Pages, segment_id: u64, to: u64) -> Option<Vec<BlockHeader>> {
    pages.ahead_to = 0;
    let segment = SegmentHeader::parse(pages.view(0, PAGE_BYTES)?).ok()?;
    if segment.segment_id != segment_id {
        return None;
    }
    let mut headers = Vec::new();
    let (mut at, mut block_seq) = (PAGE_BYTES as u64, segment.first_block);
    while at < to {
        let (header, _) = BlockHeader::parse(pages.view(at, PAGE_BYTES)?).ok()?;
        let of_segment = (header.segment_id, header.log_id, header.salt) == (segment_id, segment.log_id, segment.salt);
        if !of_segment || header.offset != at || header.block_seq != block_seq {
            return None;
        }
        at += header.block_bytes() as u64;
        block_seq += 1;
        pages.ahead_to = if header.block_bytes() < HOP_BYTES_MIN { at + AHEAD_BYTES } else { at };
        headers.push(header);
    }
    (at == to).then_some(headers)
}

#[cfg(test)]
mod tests {
    use super::super::crash_tests::{Keys, config, envelope, push, scratch_dir};
    use super::super::{BlockingLog, LogStart, LogWriter, ReadItem, SegmentReader, TO_THE_TAIL, segment_file_name};
    use super::*;
    use crate::point::Batch;
    use std::fs::OpenOptions;
    use std::os::unix::fs::FileExt;

    #[test]
    fn headers_are_told_where_all_of_them_are_sound_and_not_where_one_is_not() {
        let dir = scratch_dir();
        let keys = Keys::new(3);
        let mut log = BlockingLog::new(dir.path(), LogWriter::new(config(), LogStart::empty()));
        for n in 0..5u64 {
            let mut batch = Batch::default();
            (0..40 * n + 1).for_each(|point| push(&mut batch, point as u32 % 3, point));
            log.append_batch(&envelope(), 100 + n as i64, &batch, &keys).expect("taken");
            log.flush(&keys).expect("durable");
        }
        let path = dir.path().join(segment_file_name(1));
        let mut reader = SegmentReader::open(&path, 1, 0, TO_THE_TAIL).expect("opens");
        let mut end = 0;
        while let ReadItem::Block(block) = reader.next_item() {
            end = block.end().offset;
        }
        assert!(reader.read_bytes() >= end);
        let found = block_headers(&path, 1, end).expect("opens");
        let headers = found.headers.expect("sound");
        assert_eq!(headers.iter().map(|header| header.first_stamp_ns).collect::<Vec<_>>(), [100, 101, 102, 103, 104]);
        assert_eq!(headers[4].end_point(), 405);
        assert!(found.read_bytes <= 64 << 10, "{} bytes: no page of the file twice", found.read_bytes);

        let is_told = |segment_id, to| block_headers(&path, segment_id, to).expect("opens").headers.is_some();
        assert!(is_told(1, headers[4].offset) && !is_told(2, end));
        assert!(!is_told(1, end + PAGE_BYTES as u64) && !is_told(1, end - 1));
        let file = OpenOptions::new().write(true).open(&path).expect("opens");
        file.write_all_at(&[7], headers[2].offset + 70).expect("written");
        file.sync_all().expect("flushed");
        assert!(is_told(1, headers[2].offset) && !is_told(1, end), "a byte of a header is another");
    }
}
