//! Names records: which series a segment's numbers stand for.
//!
//! A number is defined in its segment before its first use, and a second time at the start of the *next block of the
//! same segment*. So every block after the two has the name from either of them, and damage to one block costs that
//! block's own points only. Nothing is written when no block follows: then nothing uses the name any more.

use super::block::{RecordKind, RecordRef, Records};
use super::field;

/// One definition: number, length, key.
pub fn put_name(out: &mut Vec<u8>, series: u32, key: &[u8]) {
    out.extend_from_slice(&series.to_le_bytes());
    out.extend_from_slice(&(key.len() as u32).to_le_bytes());
    out.extend_from_slice(key);
}

pub const fn name_bytes(key: &[u8]) -> usize {
    8 + key.len()
}

/// The definitions of a Names record. Ends early at a length that does not fit.
pub fn names_in(bytes: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let head = rest.get(..8)?;
        let (series, len) = (field::u32(head, 0), field::u32(head, 4) as usize);
        let key = rest.get(8..)?.get(..len)?;
        rest = &rest[8 + len..];
        Some((series, key))
    })
}

/// The names of one segment, as far as it has been read.
#[derive(Debug, Default)]
pub struct NameMap {
    keys: hashbrown::HashMap<u32, Box<[u8]>, ahash::RandomState>,
}

impl NameMap {
    /// Call at the start of every segment: numbers are a segment's own.
    pub fn clear(&mut self) {
        self.keys.clear();
    }
    pub fn get(&self, series: u32) -> Option<&[u8]> {
        self.keys.get(&series).map(|key| &**key)
    }
    pub fn len(&self) -> usize {
        self.keys.len()
    }
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
    pub fn learn(&mut self, record: RecordRef) {
        if record.kind == RecordKind::Names {
            for (series, key) in names_in(record.bytes) {
                self.keys.entry(series).or_insert_with(|| key.into());
            }
        }
    }
    pub fn learn_payload(&mut self, payload: &[u8]) {
        Records::new(payload).for_each(|record| self.learn(record));
    }
}
