//! The bytes that cells hold beyond themselves, and what happens above their bound: cells become summaries early.

use super::counts::FoldCounts;
use crate::window::set::{Cell, ENTRIES_MAX, Identity, Inserted};
use crate::window::summary::Detail;

/// Beyond the budget a cell keeps this many points before it becomes a summary: below that, a summary is larger.
const ENTRIES_OVER_BUDGET: usize = 8;

#[derive(Debug)]
pub(super) struct Budget {
    used_bytes: usize,
    bytes_max: usize,
    detail: Detail,
}

impl Budget {
    pub fn new(bytes_max: usize, detail: Detail) -> Budget {
        Budget { used_bytes: 0, bytes_max, detail }
    }

    /// Inserts within the budget and keeps its books.
    #[inline]
    pub fn insert(&mut self, cell: &mut Cell, identity: Identity, value: f64, counts: &mut FoldCounts) -> Inserted {
        let is_over = self.used_bytes > self.bytes_max;
        let entries_max = if is_over { ENTRIES_OVER_BUDGET } else { ENTRIES_MAX };
        let before_bytes = cell.heap_bytes();
        let early = is_over && cell.summary().is_none() && cell.count() < ENTRIES_MAX as u64;
        let inserted = cell.insert_within(identity, value, entries_max, self.detail);
        self.used_bytes = self.used_bytes + cell.heap_bytes() - before_bytes;
        counts.summarised_early += (early && cell.summary().is_some()) as u64;
        inserted
    }

    /// The cell goes to the reducer.
    pub fn release(&mut self, cell: &Cell) {
        self.used_bytes -= cell.heap_bytes();
    }

    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }
}
