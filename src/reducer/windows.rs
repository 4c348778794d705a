//! The cells of base windows, by start and by the reducer's own series numbers.

use metricstream_shards::window::{set::Cell, summary::Detail};
use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasherDefault, Hasher},
};

/// Base windows by start.
#[derive(Default)]
pub(super) struct Windows(pub(super) BTreeMap<i64, Window>);

#[derive(Default)]
pub(super) struct Window {
    pub(super) cells: HashMap<u32, Cell, BuildHasherDefault<NumberHasher>>,
    heap_bytes: usize,
}

/// What became of the points of a merged cell, and whether results may differ now.
pub(super) struct CellMerge {
    pub(super) counted: u64,
    pub(super) repeated: u64,
    pub(super) conflicts: u64,
    pub(super) changed: bool,
}

impl Windows {
    /// The second value: the series had no cell there.
    pub(super) fn merge(&mut self, start_ns: i64, series: u32, cell: Cell, detail: Detail) -> (CellMerge, bool) {
        let window = self.0.entry(start_ns).or_default();
        match window.cells.entry(series) {
            std::collections::hash_map::Entry::Vacant(slot) => {
                let counted = cell.count();
                window.heap_bytes += cell.heap_bytes();
                slot.insert(cell);
                (CellMerge { counted, repeated: 0, conflicts: 0, changed: true }, true)
            }
            std::collections::hash_map::Entry::Occupied(mut slot) => {
                let held = slot.get_mut();
                let unchecked = held.is_unchecked();
                window.heap_bytes -= held.heap_bytes();
                let merged = held.merge(cell, detail);
                window.heap_bytes += held.heap_bytes();
                let merge = CellMerge {
                    counted: merged.counted,
                    repeated: merged.repeated,
                    conflicts: merged.conflicts,
                    changed: merged.counted > 0 || merged.conflicts > 0 || held.is_unchecked() != unchecked,
                };
                (merge, false)
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.values().map(Window::bytes).sum()
    }
}

impl Window {
    pub(super) fn bytes(&self) -> usize {
        // One control byte a slot, and an eighth of the slots stays empty.
        self.heap_bytes + self.cells.capacity() * 8 / 7 * (size_of::<(u32, Cell)>() + 1)
    }
}

/// For our own dense numbers, which no client chooses: one multiplication.
#[derive(Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(u32::from(byte)));
    }
    fn write_u32(&mut self, n: u32) {
        let product = (self.0 ^ u64::from(n)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = product ^ (product >> 32);
    }
}
