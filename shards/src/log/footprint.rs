//! What a segment takes on the disk, and how the part of it that will never be used is given back.
//!
//! A segment is allocated whole, and every start begins a new one. Were each counted whole for ever, a process that starts
//! again every few seconds would fill the log's bound with empty space: it would refuse points, or let go of windows that the
//! retention still wants. So a start makes a hole of what lies behind the end of each segment it finds. The length of the
//! file stays, and a hole reads as zeros, as the space behind a log's end always did.

use super::pages;
use super::prepare::open;
use rustix::fs::{FallocateFlags, fallocate};
use std::io;
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
/// holes that is an error, and nothing has changed.
pub(super) fn give_back(path: &Path, end: u64) -> io::Result<()> {
    let metadata = path.metadata()?;
    let from = pages(end as usize) as u64;
    let taken = (metadata.blocks() * STAT_BLOCK_BYTES).min(metadata.len());
    if taken < from + WORTH_BYTES {
        return Ok(());
    }
    let file = open(path, true)?;
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, metadata.len() - from)?;
    Ok(())
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
