//! What a segment takes on the disk, and how the part of it that will never be used is given back.
//!
//! A segment is allocated whole, and every start begins a new one. Were each counted whole for ever, a process that starts
//! again every few seconds would fill the log's bound with empty space: it would refuse points, or let go of windows that the
//! retention still wants. So a start makes a hole of what lies behind the end of each segment it finds. The length of the
//! file stays, and a hole reads as zeros, as the space behind a log's end always did.

use super::pages;
use super::prepare::open;
use rustix::fs::{FallocateFlags, fallocate};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Less than this is not worth a hole.
const WORTH_BYTES: u64 = 64 << 10;
/// What `stat` counts blocks in, whatever the file system's own size
const STAT_BLOCK_BYTES: u64 = 512;

/// Bytes of the disk that a file takes; 0 when it is not there.
pub fn footprint_bytes(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.blocks() * STAT_BLOCK_BYTES)
}

/// Whether a file has all its blocks. One with holes is no segment to be written again: its first write to each place
/// would change metadata.
pub(super) fn is_whole(metadata: &std::fs::Metadata) -> bool {
    metadata.blocks() * STAT_BLOCK_BYTES >= metadata.len()
}

/// Gives back what lies behind `end` of a segment that nothing is appended to any more. Where the file system cannot make
/// holes nothing has changed, and the answer says how much stays taken.
pub(super) fn give_back(path: &Path, end: u64) -> Result<(), NotGivenBack> {
    let from = pages(end as usize) as u64;
    let unused_bytes =
        footprint_bytes(path).min(path.metadata().map_or(0, |metadata| metadata.len())).saturating_sub(from);
    if unused_bytes < WORTH_BYTES {
        return Ok(());
    }
    let punched = open(path, true).and_then(|file| {
        let behind = file.metadata()?.len().saturating_sub(from);
        Ok(fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, behind)?)
    });
    punched.map_err(|error| NotGivenBack { segments: 1, bytes: unused_bytes, why: error.to_string() })
}

/// Space that segments keep although nothing will use it: the file system cannot make holes, or did not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NotGivenBack {
    pub segments: u64,
    pub bytes: u64,
    /// What the system said of the first; empty while there is none
    pub why: String,
}

impl NotGivenBack {
    pub fn add(&mut self, other: NotGivenBack) {
        self.segments += other.segments;
        self.bytes += other.bytes;
        if self.why.is_empty() {
            self.why = other.why;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_lies_behind_the_end_goes_and_the_rest_reads_as_before() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory on a disk");
        let path = dir.path().join("0000000000000001.seg");
        let whole = vec![7u8; 1 << 20];
        fs::write(&path, &whole).expect("written");
        fs::File::open(&path).and_then(|file| file.sync_all()).expect("allocated");
        assert!(is_whole(&path.metadata().expect("there")));
        let before = footprint_bytes(&path);
        give_back(&path, 5000).expect("this file system makes holes");
        let read = fs::read(&path).expect("read");
        assert_eq!((read.len(), &read[..8192], read[8192..].iter().all(|&b| b == 0)), (1 << 20, &whole[..8192], true));
        assert!(footprint_bytes(&path) <= before - (1 << 20) + 3 * 4096, "{} of {before}", footprint_bytes(&path));
        assert!(!is_whole(&path.metadata().expect("there")));
        let again = footprint_bytes(&path);
        give_back(&path, 5000).expect("nothing left to give");
        assert_eq!(footprint_bytes(&path), again);
        assert_eq!(footprint_bytes(&dir.path().join("missing")), 0);
    }
}
