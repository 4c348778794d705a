//! What was found, and what it means: the decisions of recovery and reading as two tables, each case with how it can
//! come about. Pure, so that a test can walk every combination.

/// What a segment file's first page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstPage {
    Sound,
    /// Sound, of this log, with another segment's number
    OtherSegment,
    /// Sound, of another log or node
    OtherLog,
    Newer,
    Blank,
    Damaged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentCase {
    /// Its header is sound: it was begun, and its blocks (perhaps none yet) count.
    InUse,
    /// Prepared and not begun, or cut off while it was made: blank, and no block bears its number. May be used again.
    Unused,
    /// Renamed to be used again, and the process ended before its old header was wiped. May be used again.
    Recycled,
    /// The header was torn by a crash in the segment's first commit, or rotted later. Blocks carry all that is needed:
    /// the sound ones count, and the segment before it is read to its own end.
    LostHeader,
    /// The header is damaged and no block is sound: torn in the first commit, or all of it rotted. Left for a person.
    Unreadable,
    /// Copied here from another log or node, or the node's id was replaced. Left alone.
    Foreign,
    /// Written by a newer version before a downgrade. Left alone; the log goes on in a segment above it.
    Newer,
}

pub fn decide_segment(first_page: FirstPage, sound_blocks: bool) -> SegmentCase {
    match (first_page, sound_blocks) {
        (FirstPage::Sound, _) => SegmentCase::InUse,
        (FirstPage::OtherSegment, false) => SegmentCase::Recycled,
        (FirstPage::OtherLog, _) => SegmentCase::Foreign,
        (FirstPage::Newer, _) => SegmentCase::Newer,
        (FirstPage::Blank, false) => SegmentCase::Unused,
        (FirstPage::Damaged, false) => SegmentCase::Unreadable,
        // Blocks with this file's number were written to this file, whatever its header says now.
        (FirstPage::OtherSegment | FirstPage::Blank | FirstPage::Damaged, true) => SegmentCase::LostHeader,
    }
}

/// What stands where the next block should begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Here {
    Sound,
    /// It begins like a block of this segment and its CRCs say no; or the disk cannot read it
    Bad,
    /// Zeros, or leftovers of a segment that used the file before
    Absent,
}

/// The sound blocks of this segment further on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Later {
    None,
    /// There are some, and none says that anything after the last sound block was flushed
    Unflushed,
    /// One says so (`durable_upto`)
    Flushed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockCase {
    Sound,
    /// Nothing was written here: the log ends.
    End,
    /// Power went while this block was being written. It was never acknowledged: the log ends before it.
    Torn,
    /// A disk kept a later write of an unfinished commit and not this one. None was acknowledged: the log ends here.
    TornOutOfOrder,
    /// It was flushed, so acknowledged, and is gone: bits rotted, a write was lost or went astray, or something wrote
    /// over it. Its points are counted as lost, and reading goes on at the next sound block.
    Damaged,
    /// The same, with no sound block behind it below the known end.
    DamagedToEnd,
}

/// `flushed`: it is known from elsewhere (the next segment's header, the writer) that this place was flushed.
pub fn decide_block(here: Here, flushed: bool, later: Later) -> BlockCase {
    match (here, flushed, later) {
        (Here::Sound, _, _) => BlockCase::Sound,
        (_, _, Later::Flushed) | (_, true, Later::Unflushed) => BlockCase::Damaged,
        (_, true, Later::None) => BlockCase::DamagedToEnd,
        (_, false, Later::Unflushed) => BlockCase::TornOutOfOrder,
        (Here::Bad, false, Later::None) => BlockCase::Torn,
        (Here::Absent, false, Later::None) => BlockCase::End,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_segment_facts_has_its_case() {
        use FirstPage as P;
        for page in [P::Sound, P::OtherSegment, P::OtherLog, P::Newer, P::Blank, P::Damaged] {
            for blocks in [false, true] {
                let case = decide_segment(page, blocks);
                let reads = matches!(case, SegmentCase::InUse | SegmentCase::LostHeader);
                let reuses = matches!(case, SegmentCase::Unused | SegmentCase::Recycled);
                // Sound blocks of this log are never left out or written over; foreign and newer files never touched.
                assert!(!(blocks && reuses), "{page:?}");
                assert_eq!(reads, page == P::Sound || (blocks && !matches!(page, P::OtherLog | P::Newer)), "{page:?}");
                assert!(!(matches!(page, P::OtherLog | P::Newer | P::Damaged) && reuses), "{page:?}");
            }
        }
    }

    #[test]
    fn every_combination_of_block_facts_has_its_case() {
        for here in [Here::Sound, Here::Bad, Here::Absent] {
            for flushed in [false, true] {
                for later in [Later::None, Later::Unflushed, Later::Flushed] {
                    let case = decide_block(here, flushed, later);
                    let evidence = flushed || later == Later::Flushed;
                    let damage = matches!(case, BlockCase::Damaged | BlockCase::DamagedToEnd);
                    assert_eq!(case == BlockCase::Sound, here == Here::Sound);
                    // Damage exactly when something acknowledged is gone.
                    assert_eq!(damage, here != Here::Sound && evidence, "{here:?} {flushed} {later:?}");
                    assert_eq!(case == BlockCase::DamagedToEnd, damage && later == Later::None);
                }
            }
        }
    }
}
