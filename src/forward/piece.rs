//! A stretch of one segment as it travels from the reader to the sinks: read once, checked once, shared, never copied.

use std::sync::{Arc, OnceLock};

use metricstream_shards::log::{BLOCK_HEADER_BYTES, BlockHeader, Position, RecordKind, Records, names_in};

/// Sound blocks of a segment, in order. Their checksums held; records are validated by whoever reads them.
pub struct Piece {
    pub log_id: u32,
    pub segment_id: u64,
    bytes: Vec<u8>,
    /// Offset in the file, and in `bytes`
    blocks: Vec<(BlockHeader, usize)>,
    /// Where reading goes on behind it
    pub end: Position,
    pub names: Arc<SegmentNames>,
}

/// One block of a piece.
#[derive(Clone, Copy)]
pub struct BlockView<'a> {
    pub header: &'a BlockHeader,
    payload: &'a [u8],
}

impl<'a> BlockView<'a> {
    pub fn records(&self) -> Records<'a> {
        Records::new(self.payload)
    }
    /// Where the next block begins, if it follows at once.
    pub fn end(&self) -> Position {
        Position { segment_id: self.header.segment_id, offset: self.header.offset + self.header.block_bytes() as u64 }
    }
}

impl Piece {
    pub fn new(
        log_id: u32,
        end: Position,
        bytes: Vec<u8>,
        blocks: Vec<(BlockHeader, usize)>,
        names: Arc<SegmentNames>,
    ) -> Piece {
        Piece { log_id, segment_id: end.segment_id, bytes, blocks, end, names }
    }

    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The blocks from file offset `from` on.
    pub fn blocks(&self, from: u64) -> impl Iterator<Item = BlockView<'_>> {
        let first = self.blocks.partition_point(|(header, _)| header.offset < from);
        self.blocks[first..].iter().map(|(header, at)| {
            let start = at + BLOCK_HEADER_BYTES;
            BlockView { header, payload: &self.bytes[start..start + header.payload_bytes as usize] }
        })
    }

    /// Whether reading may begin at this offset: at one of its blocks.
    pub fn has_block_at(&self, offset: u64) -> bool {
        self.blocks.binary_search_by_key(&offset, |(header, _)| header.offset).is_ok()
    }
}

/// The names of one segment, as far as anybody has read it. Numbers are given once in a segment, so names of blocks
/// further on do no harm to those who stand before them.
///
/// A table in three levels, each entry written once: the reader adds while sinks look, and nobody waits for anybody. (A
/// lock would let a sink whose disk hangs stop the backplane.)
pub struct SegmentNames {
    top: Vec<OnceLock<Middle>>,
}

type Middle = Box<[OnceLock<Leaf>]>;
type Leaf = Box<[OnceLock<Box<[u8]>>]>;

const LEAF_BITS: u32 = 9;
const MIDDLE_BITS: u32 = 11;
const TOP: usize = 1 << (31 - LEAF_BITS - MIDDLE_BITS);

fn cells<T>(bits: u32) -> Box<[OnceLock<T>]> {
    (0..1usize << bits).map(|_| OnceLock::new()).collect()
}

impl SegmentNames {
    pub fn new() -> Arc<SegmentNames> {
        Arc::new(SegmentNames { top: (0..TOP).map(|_| OnceLock::new()).collect() })
    }

    pub fn learn(&self, payload: &[u8]) {
        for record in Records::new(payload).filter(|record| record.kind == RecordKind::Names) {
            for (series, key) in names_in(record.bytes) {
                let [top, middle, leaf] = place(series);
                // Bit 31 marks inline keys: no number has it.
                let Some(top) = self.top.get(top) else { continue };
                let middle = &top.get_or_init(|| cells(MIDDLE_BITS))[middle];
                // The second copy finds the first.
                middle.get_or_init(|| cells(LEAF_BITS))[leaf].get_or_init(|| key.into());
            }
        }
    }

    pub fn get(&self, series: u32) -> Option<&[u8]> {
        let [top, middle, leaf] = place(series);
        self.top.get(top)?.get()?[middle].get()?[leaf].get().map(|key| &**key)
    }
}

fn place(series: u32) -> [usize; 3] {
    let n = series as usize;
    [n >> (LEAF_BITS + MIDDLE_BITS), n >> LEAF_BITS & ((1 << MIDDLE_BITS) - 1), n & ((1 << LEAF_BITS) - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_place_of_its_own_and_the_first_name_stays() {
        let names = SegmentNames::new();
        let numbers = [0, 1, 511, 512, 1 << 20, (1 << 31) - 1];
        for n in numbers {
            let key = format!("key {n}");
            let mut payload = vec![1, 0, 0, 0];
            payload.extend_from_slice(&(8 + key.len() as u32).to_le_bytes());
            payload.extend_from_slice(&u32::to_le_bytes(n));
            payload.extend_from_slice(&(key.len() as u32).to_le_bytes());
            payload.extend_from_slice(key.as_bytes());
            names.learn(&payload);
        }
        for n in numbers {
            assert_eq!(names.get(n), Some(format!("key {n}").as_bytes()));
        }
        assert_eq!((names.get(2), names.get(1 << 31), names.get(u32::MAX)), (None, None, None));
    }
}
