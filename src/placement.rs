//! Which core runs what: one core a shard, the backplane and the reducer on what is left.

/// Core numbers this process may use, in order.
pub fn cores() -> Vec<usize> {
    let mut cores: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    cores.sort_unstable();
    if cores.is_empty() { vec![0] } else { cores }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// One per shard; `None`: not pinned
    pub shards: Vec<Option<usize>>,
    /// `None` lets the scheduler choose
    pub backplane: Option<usize>,
}

/// One shard fewer than cores, at least one, unless `shards_wanted` says otherwise. With more shards than cores nothing
/// is pinned: two pinned threads on one core would wait for each other while another idles.
pub fn place(cores: &[usize], shards_wanted: usize, pin: bool) -> Placement {
    let count = if shards_wanted > 0 { shards_wanted } else { cores.len().saturating_sub(1).max(1) };
    let fits = pin && count < cores.len();
    Placement {
        shards: (0..count).map(|shard| fits.then(|| cores[shard])).collect(),
        // Pinned only when exactly one core is left; on more the scheduler does better.
        backplane: (fits && cores.len() == count + 1).then(|| cores[count]),
    }
}

/// Pins the calling thread; says whether it worked.
pub fn pin_this_thread(core: usize) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId { id: core })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_core_is_left_for_the_backplane() {
        let placement = place(&[0, 1, 2, 3], 0, true);
        assert_eq!(placement.shards, vec![Some(0), Some(1), Some(2)]);
        assert_eq!(placement.backplane, Some(3));
    }

    #[test]
    fn more_shards_than_cores_are_not_pinned() {
        assert_eq!(place(&[0, 1], 4, true), Placement { shards: vec![None; 4], backplane: None });
        assert_eq!(place(&[0], 0, true), Placement { shards: vec![None], backplane: None });
    }
}
