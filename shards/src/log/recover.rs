//! What a start finds in a log's directory: every segment's first page, and the blocks of the tail. Never the backlog.
//!
//! Nothing here keeps a start from going on: a file that cannot be used is left alone and named in `notes`. Nothing
//! acknowledged is changed; what is zeroed is a torn end that never was.

use super::PAGE_BYTES;
use super::aligned::AlignedBuf;
use super::case::{BlockCase, FirstPage, SegmentCase, decide_segment};
use super::footprint::{NotGivenBack, footprint_bytes, give_back};
use super::prepare::{fill, open, sync_dir};
use super::read::{Damage, ReadItem, SegmentReader, TO_THE_TAIL};
use super::segment::{FILLING, HeaderError, SegmentHeader, segment_id_of};
use super::writer::{LogStart, PreviousEnd, ReadSpan};
use std::cmp::Ordering;
use std::io;
use std::path::{Path, PathBuf};

/// A log as a start finds it.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// Where the writer goes on; its `history` is everything readable, oldest first
    pub start: LogStart,
    /// The last receive stamp, for the fold clock; `None`: no records
    pub last_stamp_ns: Option<i64>,
    pub segments: Vec<SegmentInfo>,
    /// Files that may be used again for new segments
    pub unused: Vec<PathBuf>,
    /// In the tail. Damage in the backlog is met when it is read
    pub damage: Vec<Damage>,
    /// Whether a torn end was cut off
    pub torn: bool,
    /// Sentences for the operator
    pub notes: Vec<String>,
    /// What old segments take and do not use. Not in `notes`: where the file system makes no holes it is all of them
    pub not_given_back: NotGivenBack,
}

/// A segment with blocks, or one whose header says there were to be some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentInfo {
    pub segment_id: u64,
    pub path: PathBuf,
    pub file_bytes: u64,
    /// What it takes on the disk
    pub disk_bytes: u64,
    /// End of the durable blocks; `None` where only a full read can tell
    pub end: Option<u64>,
    pub first_stamp_ns: Option<i64>,
    /// No record is younger than this
    pub last_stamp_ns: Option<i64>,
    pub first_point: Option<u64>,
}

/// Reads `dir` (none, or an empty one: an empty log) and makes its tail fit to be read for ever. Blocking.
///
/// An error means that the directory itself cannot be listed.
pub fn recover(dir: &Path, log_id: u32, node_id: u128) -> io::Result<Recovered> {
    let listing = list(dir, log_id, node_id)?;
    let mut out = Recovered {
        start: LogStart::empty(),
        last_stamp_ns: None,
        segments: Vec::new(),
        unused: listing.unused,
        damage: Vec::new(),
        torn: false,
        notes: listing.notes,
        not_given_back: NotGivenBack::default(),
    };
    let used = listing.used;
    out.start.next_segment_id = listing.highest_id + 1;

    // From the newest back to the first whose end the segment behind it knows.
    let first_tail = tail_begins(&used);
    let ends = ends_told(&used);
    let mut epoch = used.iter().filter_map(|found| found.header.ok()).map(|header| header.epoch).max().unwrap_or(0);
    let mut blocks =
        used.iter().filter_map(|f| f.header.ok()).map(|h| h.durable_upto.max(h.first_block.saturating_sub(1))).max();
    let mut next_point: Option<u64> = None;
    for (n, found) in used.iter().enumerate() {
        let behind = used.get(n + 1).and_then(|next| next.header.ok());
        let end = ends[n];
        let mut info = SegmentInfo {
            segment_id: found.segment_id,
            path: found.path.clone(),
            file_bytes: found.file_bytes,
            disk_bytes: 0,
            end,
            first_stamp_ns: found.header.ok().map(|header| header.created_stamp_ns),
            last_stamp_ns: behind.map(|header| header.created_stamp_ns),
            first_point: found.header.ok().map(|header| header.first_point),
        };
        if let Ok(header) = found.header {
            out.last_stamp_ns = out.last_stamp_ns.max(Some(header.created_stamp_ns));
            next_point = next_point.max(Some(header.first_point));
            // Also right when that segment is gone: the chain of ends goes on.
            out.start.previous =
                PreviousEnd { segment_id: header.previous_segment, end: header.previous_end, crc: header.previous_crc };
            out.start.durable_upto = out.start.durable_upto.max(header.durable_upto);
        }
        if n >= first_tail {
            match tail(found, log_id, end, next_point, &mut out) {
                Ok(read) => {
                    info.end = Some(read.end);
                    info.last_stamp_ns = read.last_stamp_ns.or(info.last_stamp_ns).or(info.first_stamp_ns);
                    info.first_stamp_ns = info.first_stamp_ns.or(read.first_stamp_ns);
                    out.last_stamp_ns = out.last_stamp_ns.max(read.last_stamp_ns);
                    next_point = next_point.max(read.next_point);
                    epoch = epoch.max(read.epoch);
                    blocks = blocks.max(Some(read.last_block));
                    if let Some(crc) = read.last_crc {
                        out.start.previous = PreviousEnd { segment_id: found.segment_id, end: read.end, crc };
                        out.start.durable_upto = out.start.durable_upto.max(read.last_block);
                    }
                }
                Err(error) => out.notes.push(format!("{}: cannot be read: {error}", found.path.display())),
            }
        }
        if info.end != Some(PAGE_BYTES as u64) {
            out.start.history.push(ReadSpan {
                segment_id: found.segment_id,
                path: found.path.clone(),
                from: PAGE_BYTES as u64,
                to: info.end.unwrap_or(TO_THE_TAIL),
            });
        }
        // Nothing more is appended to any of these, not even to the newest.
        if let Some(end) = info.end
            && let Err(kept) = give_back(&found.path, end)
        {
            out.not_given_back.add(kept);
        }
        info.disk_bytes = footprint_bytes(&found.path);
        out.segments.push(info);
    }
    out.start.epoch = epoch.saturating_add(1);
    out.start.next_point = next_point.unwrap_or(0);
    // Blocks that were torn so that no number can be read had one all the same: a wide step keeps numbers unique.
    out.start.next_block = blocks.map_or(1, |last| last.saturating_add(1 + BLOCKS_STEP));
    if !used.is_empty() {
        sync_dir(dir)?;
    }
    Ok(out)
}

/// Several blocks, even where each was closed as late as can be.
const FIRST_BLOCKS_BYTES: u64 = 4 << 20;
const BLOCKS_STEP: u64 = 1 << 16;

/// One `.seg` file that holds blocks of this log.
pub(crate) struct Found {
    pub segment_id: u64,
    pub path: PathBuf,
    pub file_bytes: u64,
    pub header: Result<SegmentHeader, HeaderError>,
}

pub(crate) struct Listing {
    /// By segment number
    pub used: Vec<Found>,
    pub unused: Vec<PathBuf>,
    pub notes: Vec<String>,
    pub highest_id: u64,
}

/// `0000000000000007.seg.filling`: becomes a segment when it is filled.
fn is_filling(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == FILLING) && segment_id_of(&path.with_extension("")).is_some()
}

/// Every segment file of the directory, by what its first page says. Changes nothing.
pub(crate) fn list(dir: &Path, log_id: u32, node_id: u128) -> io::Result<Listing> {
    let mut out = Listing { used: Vec::new(), unused: Vec::new(), notes: Vec::new(), highest_id: 0 };
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(out),
        entries => entries?,
    };
    let mut files: Vec<(u64, PathBuf)> = Vec::new();
    for entry in entries {
        let path = entry?.path();
        match segment_id_of(&path) {
            // u64::MAX has no number above it; no writer gets there.
            Some(id) if id < u64::MAX / 2 => files.push((id, path)),
            // Half-made when the process ended; whoever prepares segments removes it.
            _ if is_filling(&path) => {}
            _ => out.notes.push(format!("{}: no segment file, left alone", path.display())),
        }
    }
    files.sort();
    for (segment_id, path) in files {
        out.highest_id = out.highest_id.max(segment_id);
        let mut reader = match SegmentReader::open(&path, segment_id, 0, TO_THE_TAIL) {
            Ok(reader) => reader,
            Err(error) => {
                out.notes.push(format!("{}: cannot be opened, left alone: {error}", path.display()));
                continue;
            }
        };
        reader.of_log(log_id);
        let header = reader.header().copied();
        let first_page = match header {
            Ok(h) if h.log_id != log_id || h.node_id != node_id => FirstPage::OtherLog,
            Ok(h) if h.segment_id != segment_id => FirstPage::OtherSegment,
            Ok(_) => FirstPage::Sound,
            Err(HeaderError::Blank) => FirstPage::Blank,
            Err(HeaderError::Newer(_)) => FirstPage::Newer,
            Err(HeaderError::Damaged) => FirstPage::Damaged,
        };
        let file_bytes = reader.file_bytes();
        let sound_blocks = match first_page {
            FirstPage::Sound | FirstPage::OtherLog | FirstPage::Newer => false,
            // The first blocks decide: a start must not read every spare segment to its end.
            FirstPage::Blank | FirstPage::OtherSegment => reader.has_sound_block(FIRST_BLOCKS_BYTES),
            FirstPage::Damaged => reader.has_sound_block(u64::MAX),
        };
        let case = decide_segment(first_page, sound_blocks);
        let note = match case {
            SegmentCase::InUse => None,
            SegmentCase::Unused | SegmentCase::Recycled => {
                out.unused.push(path.clone());
                None
            }
            SegmentCase::LostHeader => Some("its header is damaged; its blocks are used"),
            SegmentCase::Unreadable => Some("neither header nor blocks can be read, left alone"),
            SegmentCase::Foreign => Some("belongs to another log or node, left alone"),
            SegmentCase::Newer => Some("written by a newer version, left alone"),
        };
        if let Some(note) = note {
            out.notes.push(format!("{}: {note}", path.display()));
        }
        if matches!(case, SegmentCase::InUse | SegmentCase::LostHeader) {
            let header = header.ok().filter(|_| case == SegmentCase::InUse).ok_or(HeaderError::Damaged);
            out.used.push(Found { segment_id, path, file_bytes, header });
        }
    }
    for pair in out.used.windows(2) {
        if let Ok(header) = pair[1].header
            && header.previous_segment > pair[0].segment_id
        {
            out.notes.push(format!(
                "segment {} is missing: {} names it as the one before",
                header.previous_segment,
                pair[1].path.display()
            ));
        }
    }
    Ok(out)
}

/// Where each segment ends, when a header behind it says so: the nearest sound one, as that of the very next may be lost.
/// A segment that it does not name although it could held nothing durable. (What stands in such places may bear point
/// numbers that were given again after a restart: it must not be read.)
pub(crate) fn ends_told(used: &[Found]) -> Vec<Option<u64>> {
    let end = |(n, found): (usize, &Found)| {
        let behind = used[n + 1..].iter().find_map(|found| found.header.ok())?;
        match behind.previous_segment.cmp(&found.segment_id) {
            Ordering::Equal => Some(behind.previous_end),
            Ordering::Less => Some(PAGE_BYTES as u64),
            Ordering::Greater => None,
        }
    };
    used.iter().enumerate().map(end).collect()
}

/// The first segment that has to be read: the newest, and those before it while headers do not tell where they end.
fn tail_begins(used: &[Found]) -> usize {
    let mut first = used.len().saturating_sub(1);
    while first > 0 && used[first].header.is_err() {
        first -= 1;
    }
    first
}

struct Tail {
    end: u64,
    next_point: Option<u64>,
    last_block: u64,
    last_crc: Option<u32>,
    epoch: u64,
    first_stamp_ns: Option<i64>,
    last_stamp_ns: Option<i64>,
}

fn tail(
    found: &Found,
    log_id: u32,
    end: Option<u64>,
    next_point: Option<u64>,
    out: &mut Recovered,
) -> io::Result<Tail> {
    let mut reader = SegmentReader::open(&found.path, found.segment_id, 0, end.unwrap_or(TO_THE_TAIL))?;
    reader.of_log(log_id);
    reader.expect(next_point.or(reader.next_point()));
    let mut read = Tail {
        end: PAGE_BYTES as u64,
        next_point: None,
        last_block: 0,
        last_crc: None,
        epoch: 0,
        first_stamp_ns: None,
        last_stamp_ns: None,
    };
    let case = loop {
        match reader.next_item() {
            ReadItem::Block(block) => {
                read.end = block.end().offset;
                read.next_point = Some(block.header.end_point());
                read.last_block = read.last_block.max(block.header.block_seq);
                read.last_crc = Some(block.crc);
                read.epoch = read.epoch.max(block.header.epoch);
                read.first_stamp_ns = read.first_stamp_ns.or(Some(block.header.first_stamp_ns));
                read.last_stamp_ns = read.last_stamp_ns.max(Some(block.header.last_stamp_ns));
            }
            ReadItem::Damage(damage) => {
                out.damage.push(damage);
                read.end = read.end.max(damage.to);
            }
            ReadItem::End { case, .. } => break case,
        }
    };
    read.next_point = read.next_point.max(reader.next_point());
    if end.is_none() {
        let strays = reader.strays(read.end);
        out.torn |= matches!(case, BlockCase::Torn | BlockCase::TornOutOfOrder) || !strays.is_empty();
        if let Err(error) = settle(&found.path, &strays) {
            // The next segment's header will say where this one ends: the leftovers count for nothing then.
            out.notes.push(format!("{}: its torn end could not be zeroed: {error}", found.path.display()));
        }
    }
    Ok(read)
}

/// Zeroes `strays` and flushes: after a failed flush the page cache can show bytes that the disk does not have.
fn settle(path: &Path, strays: &[(u64, u64)]) -> io::Result<()> {
    let file = open_existing(path)?;
    let mut zeros = AlignedBuf::with_capacity(PAGE_BYTES);
    zeros.set_len(PAGE_BYTES);
    for &(at, bytes) in strays {
        fill(&file, at, at + bytes, &zeros)?;
    }
    file.sync_all()
}

pub(crate) fn open_existing(path: &Path) -> io::Result<std::fs::File> {
    if !path.exists() {
        return Err(io::ErrorKind::NotFound.into());
    }
    open(path, true)
}
