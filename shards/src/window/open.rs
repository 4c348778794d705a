//! The cells of one open base window, dense by series number.
//!
//! Series come in pages of 64: a bitmap of those that have a cell, and their cells without gaps. A window in which
//! every series reports costs 24.5 bytes a series; one late point in a far window costs one cell and the directory
//! (half a byte a series), not a page. A lookup reads one directory entry and one cell, both known from the series
//! number before the point is looked at, so they can be prefetched. Closing walks the pages: no list of open series.

use super::{prefetch::prefetch, set::Cell};
use std::collections::BTreeMap;

const PAGE_SERIES: u32 = 64;

#[derive(Debug)]
pub(super) struct OpenWindow {
    pub(super) start_ns: i64,
    pages: Vec<Page>,
    /// Cells in `pages`
    cells: usize,
    /// No page before this one has cells
    first_page: usize,
    /// `__overflow__` cells by client
    pub(super) overflow: BTreeMap<Box<str>, Cell>,
}

#[derive(Debug, Default)]
struct Page {
    present: u64,
    /// One a set bit of `present`, in its order
    cells: Vec<Cell>,
}

/// Emptied parts of closed windows, for the next to open: in steady state windows allocate nothing.
#[derive(Debug, Default)]
pub(super) struct Spares {
    directories: Vec<Vec<Page>>,
    cells: Vec<Vec<Cell>>,
}

impl Spares {
    const DIRECTORIES_MAX: usize = 4;
    /// For 1 million series in two windows
    const CELLS_MAX: usize = 32 * 1024;

    pub(super) fn memory_bytes(&self) -> usize {
        self.cells.iter().map(|cells| cells.capacity() * size_of::<Cell>()).sum::<usize>()
            + self.directories.iter().map(|pages| pages.capacity() * size_of::<Page>()).sum::<usize>()
    }
}

impl OpenWindow {
    pub(super) fn new(start_ns: i64, spares: &mut Spares) -> OpenWindow {
        let pages = spares.directories.pop().unwrap_or_default();
        OpenWindow { start_ns, pages, cells: 0, first_page: usize::MAX, overflow: BTreeMap::new() }
    }

    /// The cell of a series, if it has one.
    #[inline]
    pub(super) fn cell(&mut self, series: u32) -> Option<&mut Cell> {
        let page = self.pages.get_mut((series / PAGE_SERIES) as usize)?;
        let bit = 1 << (series % PAGE_SERIES);
        if page.present & bit == 0 {
            return None;
        }
        page.cells.get_mut((page.present & (bit - 1)).count_ones() as usize)
    }

    /// Adds a cell for a series that has none.
    pub(super) fn insert(&mut self, series: u32, cell: Cell, spares: &mut Spares) {
        let at = (series / PAGE_SERIES) as usize;
        if at >= self.pages.len() {
            self.pages.resize_with(at + 1, Page::default);
        }
        let page = &mut self.pages[at];
        let bit = 1 << (series % PAGE_SERIES);
        debug_assert!(page.present & bit == 0, "a series has one cell in a window");
        if page.cells.capacity() == 0
            && let Some(cells) = spares.cells.pop()
        {
            page.cells = cells;
        }
        page.cells.insert((page.present & (bit - 1)).count_ones() as usize, cell);
        page.present |= bit;
        self.cells += 1;
        self.first_page = self.first_page.min(at);
    }

    pub(super) fn has(&self, series: u32) -> bool {
        self.pages
            .get((series / PAGE_SERIES) as usize)
            .is_some_and(|page| page.present & (1 << (series % PAGE_SERIES)) != 0)
    }

    pub(super) fn cells(&self) -> usize {
        self.cells
    }

    pub(super) fn is_empty(&self) -> bool {
        self.cells == 0 && self.overflow.is_empty()
    }

    /// Moves out at most `max` cells, lowest series numbers first.
    pub(super) fn take(&mut self, max: usize, spares: &mut Spares) -> Vec<(u32, Cell)> {
        let mut taken = Vec::with_capacity(max.min(self.cells));
        while taken.len() < max && self.cells > 0 {
            let page = &mut self.pages[self.first_page];
            let number = self.first_page as u32 * PAGE_SERIES;
            let count = page.cells.len().min(max - taken.len());
            for cell in page.cells.drain(..count) {
                taken.push((number + page.present.trailing_zeros(), cell));
                page.present &= page.present - 1;
            }
            self.cells -= count;
            if page.cells.is_empty() {
                let cells = std::mem::take(&mut page.cells);
                if spares.cells.len() < Spares::CELLS_MAX && cells.capacity() > 0 {
                    spares.cells.push(cells);
                }
                self.first_page += 1;
            }
        }
        taken
    }

    /// Gives back what an empty window leaves.
    pub(super) fn recycle(mut self, spares: &mut Spares) {
        debug_assert!(self.is_empty());
        if spares.directories.len() < Spares::DIRECTORIES_MAX {
            self.pages.clear();
            spares.directories.push(self.pages);
        }
    }

    /// First look-ahead: the directory entry. Any number will do: hints read nothing.
    #[inline]
    pub(super) fn prefetch_page(&self, series: u32) {
        prefetch(self.pages.as_ptr().wrapping_add((series / PAGE_SERIES) as usize));
    }

    /// Second: the cell, through the directory entry.
    #[inline]
    pub(super) fn prefetch_cell(&self, series: u32) {
        if let Some(page) = self.pages.get((series / PAGE_SERIES) as usize) {
            let at = (page.present & ((1 << (series % PAGE_SERIES)) - 1)).count_ones() as usize;
            prefetch(page.cells.as_ptr().wrapping_add(at));
        }
    }

    /// Third: what the cell points to.
    #[inline]
    pub(super) fn prefetch_points(&self, series: u32) {
        if let Some(cell) = self.near_cell(series) {
            cell.prefetch_points();
        }
    }

    /// Fourth: where a summary will count the value.
    #[inline]
    pub(super) fn prefetch_bin(&self, series: u32, value: f64) {
        if let Some(cell) = self.near_cell(series) {
            cell.prefetch_bin(value);
        }
    }

    /// The series' cell, or a neighbour's where it has none: good enough for a hint.
    #[inline]
    fn near_cell(&self, series: u32) -> Option<&Cell> {
        let page = self.pages.get((series / PAGE_SERIES) as usize)?;
        page.cells.get((page.present & ((1 << (series % PAGE_SERIES)) - 1)).count_ones() as usize)
    }

    /// Directory and cells; not what cells hold beyond themselves.
    pub(super) fn memory_bytes(&self) -> usize {
        self.pages.capacity() * size_of::<Page>()
            + self.pages.iter().map(|page| page.cells.capacity() * size_of::<Cell>()).sum::<usize>()
            + self.overflow.keys().map(|client| client.len() + size_of::<(Box<str>, Cell)>()).sum::<usize>()
    }
}
