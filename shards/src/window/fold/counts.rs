//! The books of a fold: every point is counted once.

/// What became of points. `folded + late_beyond + too_far_ahead + not_aggregated` is all of them; the others are
/// labels of folded ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FoldCounts {
    pub folded: u64,
    /// Their window is frozen: it ends at or before the floor
    pub late_beyond: u64,
    pub too_far_ahead: u64,
    /// Booleans and text, kept for forwarding
    pub not_aggregated: u64,
    /// Folded; known already in this shard's open cells, so not counted in a window
    pub repeated_in_shard: u64,
    /// Repeated, with another value: the greater one stays
    pub conflicts: u64,
    /// Folded; arrived after their window's lateness
    pub late: u64,
    /// Folded into a client's `__overflow__`
    pub overflowed: u64,
    /// Cells that became summaries early because of the byte budget (cells, not points)
    pub summarised_early: u64,
}

impl FoldCounts {
    pub fn points(&self) -> u64 {
        self.folded + self.late_beyond + self.too_far_ahead + self.not_aggregated
    }

    pub fn add(&mut self, other: &FoldCounts) {
        self.folded += other.folded;
        self.late_beyond += other.late_beyond;
        self.too_far_ahead += other.too_far_ahead;
        self.not_aggregated += other.not_aggregated;
        self.repeated_in_shard += other.repeated_in_shard;
        self.conflicts += other.conflicts;
        self.late += other.late;
        self.overflowed += other.overflowed;
        self.summarised_early += other.summarised_early;
    }
}
