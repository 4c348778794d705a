//! What a fold is told: lengths, bounds and what windows keep.

use crate::window::summary::Detail;

const S_NS: i64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoldConfig {
    /// Length of the base windows; at most 17 s, because offsets in it have 34 bits
    pub window_ns: i64,
    /// For the label `late` only
    pub lateness_ns: i64,
    /// Points further ahead of their record's stamp are not folded
    pub future_bound_ns: i64,
    /// Series numbers are below this
    pub series_max: u32,
    /// Bound of the bytes that cells hold beyond themselves; above it they become summaries early
    pub points_bytes_max: usize,
    /// Clients with an `__overflow__` series of their own in one window; further ones share one
    pub overflow_clients_max: usize,
    pub detail: Detail,
}

impl Default for FoldConfig {
    fn default() -> FoldConfig {
        FoldConfig {
            window_ns: 10 * S_NS,
            lateness_ns: 15 * S_NS,
            future_bound_ns: 600 * S_NS,
            series_max: 1 << 21,
            points_bytes_max: 512 << 20,
            overflow_clients_max: 4096,
            detail: Detail::Quantiles,
        }
    }
}
