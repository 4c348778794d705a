//! When each series last had a point: what eviction goes by.

use crate::point::SeriesId;

/// By series number: the Unix second, or `NEVER_S`.
#[derive(Debug, Default)]
pub(super) struct LastSeen(Vec<u32>);

const NEVER_S: u32 = 0;

impl LastSeen {
    /// `series_max` bounds the memory: numbers are below it.
    #[inline]
    pub fn saw(&mut self, series: u32, stamp_ns: i64, series_max: u32) {
        assert!(series < series_max, "series number {series} is out of bounds");
        if self.0.len() <= series as usize {
            self.0.resize(series as usize + 1, NEVER_S);
        }
        self.0[series as usize] = (stamp_ns / 1_000_000_000).clamp(1, u32::MAX as i64) as u32;
    }

    pub fn get_s(&self, series: SeriesId) -> Option<u32> {
        self.0.get(series.0 as usize).copied().filter(|&seen| seen != NEVER_S)
    }

    pub fn forget(&mut self, series: SeriesId) {
        if let Some(seen) = self.0.get_mut(series.0 as usize) {
            *seen = NEVER_S;
        }
    }

    pub fn memory_bytes(&self) -> usize {
        self.0.capacity() * size_of::<u32>()
    }
}
