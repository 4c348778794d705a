//! Reads one log from its files for a replay, beside the process that writes it or without one.
//!
//! Promises: nothing is handed out that is not durable; nothing whose checksum does not hold; points come in the order of
//! their numbers, each once. It takes no lock and changes nothing. A segment that retention takes away meanwhile is no
//! error: the numbers of the points tell what went with it, and that is counted apart from damage.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use metricstream_shards::log::{
    BLOCK_HEADER_BYTES, Block, BlockHeader, PAGE_BYTES, Position, ReadItem, SegmentHeader, SegmentReader, TO_THE_TAIL,
};

use crate::forward::piece::{Piece, SegmentNames};
use crate::forward::share::list_segments;

const FIRST_BLOCK: u64 = PAGE_BYTES as u64;
/// A piece ends behind the block that reaches this.
const PIECE_BYTES: usize = 256 << 10;
/// .. and before the first block that was received this much later than its own first: logs are merged piece by piece.
const PIECE_SPAN_NS: i64 = 1_000_000_000;

/// How far a log goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Where its durable blocks end
    pub at: Position,
    /// Number of the point behind the last one
    pub point: u64,
}

/// Points of a log that it cannot give any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Gone with segments that retention took away while the replay ran
    pub removed: u64,
    /// In damaged blocks
    pub damaged: u64,
}

/// What comes next of a log.
pub struct Next {
    /// `None`: the log is at its end
    pub piece: Option<Arc<Piece>>,
    /// Number of the first point of the piece, and of the first behind it
    pub from: u64,
    pub to: u64,
    /// Receive stamp of its first record
    pub stamp_ns: i64,
    /// Before it
    pub missing: Missing,
}

pub struct Source {
    pub log_id: u32,
    dir: PathBuf,
    pub end: End,
    /// Number of the first point that the log had at the start
    pub first_point: u64,
    /// Segment that is read, or is to be opened
    segment_id: u64,
    /// Number of the next point
    next_point: u64,
    open: Option<Open>,
    /// A segment that was to be read is not there any more
    is_gone: bool,
}

struct Open {
    path: PathBuf,
    reader: SegmentReader,
    names: Arc<SegmentNames>,
    /// A block that was read and begins the next piece
    kept: Option<(BlockHeader, Vec<u8>)>,
}

impl Source {
    /// `None`: the log has no segment in use.
    pub fn open(dir: &Path, log_id: u32, node_id: u128) -> io::Result<Option<Source>> {
        let segments = used_segments(dir, log_id, node_id)?;
        let Some((oldest, _, header)) = segments.first() else { return Ok(None) };
        let (first_point, segment_id) = (header.first_point, *oldest);
        let Some(end) = find_end(dir, log_id, node_id)? else { return Ok(None) };
        Ok(Some(Source {
            log_id,
            dir: dir.to_owned(),
            end,
            first_point,
            segment_id,
            next_point: first_point,
            open: None,
            is_gone: false,
        }))
    }

    pub fn next_point(&self) -> u64 {
        self.next_point
    }

    /// Looks how far the log goes now.
    pub fn extend(&mut self, node_id: u128) -> io::Result<()> {
        // The segment that was the last may go on.
        self.open = None;
        self.segment_id = self.segment_id.min(self.end.at.segment_id);
        match find_end(&self.dir, self.log_id, node_id)? {
            Some(end) if end.point >= self.end.point => self.end = end,
            // All of it was taken away, or replaced.
            _ => {}
        }
        Ok(())
    }

    /// Goes on with this point.
    pub fn seek(&mut self, point: u64, node_id: u128) -> io::Result<()> {
        self.open = None;
        self.next_point = point;
        let segments = used_segments(&self.dir, self.log_id, node_id)?;
        let holds = segments.iter().rev().find(|(_, _, header)| header.first_point <= point);
        // What the oldest segment does not reach back to has been taken away.
        self.is_gone = holds.is_none();
        if let Some((segment_id, ..)) = holds.or(segments.first()) {
            self.segment_id = *segment_id;
        }
        Ok(())
    }

    /// The next piece of the log, and what is missing before it.
    pub fn next(&mut self) -> io::Result<Next> {
        let mut piece = Building::default();
        loop {
            if self.next_point >= self.end.point || self.segment_id > self.end.at.segment_id {
                break;
            }
            if self.open.is_none() && !self.open_segment()? {
                break;
            }
            let next_point = self.next_point;
            let Some(open) = &mut self.open else { break };
            let ended = loop {
                let kept = open.kept.take();
                let (header, payload) = match kept {
                    Some(kept) => kept,
                    None => match open.reader.next_item() {
                        // Numbers tell what is missing.
                        ReadItem::Damage(_) => continue,
                        ReadItem::End { .. } => break true,
                        ReadItem::Block(Block { header, payload, .. }) => {
                            open.names.learn(payload);
                            let expected = piece.to.unwrap_or(next_point);
                            if header.points == 0 || header.end_point() <= expected {
                                continue;
                            }
                            (header, payload.to_vec())
                        }
                    },
                };
                if !piece.takes(&header) {
                    open.kept = Some((header, payload));
                    break false;
                }
                piece.push(&header, &payload, next_point);
                if piece.bytes.len() >= PIECE_BYTES || header.end_point() >= self.end.point {
                    break false;
                }
            };
            if let Some(to) = piece.to {
                let names = open.names.clone();
                return Ok(self.found(piece, to, names));
            }
            if ended {
                // Recycled segments have another name, and others' bytes.
                self.is_gone |= !open.path.exists();
                self.segment_id += 1;
                self.open = None;
            }
        }
        let missing = self.missing(self.end.point);
        self.next_point = self.next_point.max(self.end.point);
        let (from, to) = (self.next_point, self.next_point);
        Ok(Next { piece: None, from, to, stamp_ns: i64::MAX, missing })
    }

    fn found(&mut self, piece: Building, to: u64, names: Arc<SegmentNames>) -> Next {
        let missing = self.missing(piece.from);
        let end = Position { segment_id: self.segment_id, offset: piece.end };
        let from = piece.from.max(self.next_point);
        self.next_point = to;
        let stamp_ns = piece.stamp_ns;
        let piece = Piece::new(self.log_id, end, piece.bytes, piece.blocks, names);
        Next { piece: Some(Arc::new(piece)), from, to, stamp_ns, missing }
    }

    /// Between the next point and this one.
    fn missing(&mut self, found: u64) -> Missing {
        let points = found.saturating_sub(self.next_point);
        if std::mem::take(&mut self.is_gone) {
            Missing { removed: points, damaged: 0 }
        } else {
            Missing { removed: 0, damaged: points }
        }
    }

    /// The segment at hand, or the next one there is. False: there is none before the end.
    fn open_segment(&mut self) -> io::Result<bool> {
        let segments = list_segments(&self.dir)?;
        let Some((n, (segment_id, path))) =
            segments.iter().enumerate().find(|(_, (id, _))| *id >= self.segment_id && *id <= self.end.at.segment_id)
        else {
            self.is_gone = true;
            return Ok(false);
        };
        // Numbers of segments have no gaps but where one was taken away, or was never used: then no point is missing.
        self.is_gone |= *segment_id != self.segment_id;
        self.segment_id = *segment_id;
        let to = if *segment_id == self.end.at.segment_id {
            self.end.at.offset
        } else {
            told_end(&segments[n + 1..], *segment_id)
        };
        let reader = match SegmentReader::open(path, *segment_id, FIRST_BLOCK, to) {
            Ok(reader) => reader,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Taken away since it was listed.
                self.is_gone = true;
                self.segment_id += 1;
                return Ok(self.segment_id <= self.end.at.segment_id);
            }
            Err(error) => return Err(error),
        };
        self.open = Some(Open { path: path.clone(), reader, names: SegmentNames::new(), kept: None });
        Ok(true)
    }
}

/// A piece as it grows.
#[derive(Default)]
struct Building {
    bytes: Vec<u8>,
    blocks: Vec<(BlockHeader, usize)>,
    from: u64,
    to: Option<u64>,
    stamp_ns: i64,
    end: u64,
}

impl Building {
    fn takes(&self, header: &BlockHeader) -> bool {
        // A gap begins a new piece, so that what is missing stands before one.
        self.to.is_none_or(|to| {
            header.first_point <= to && header.first_stamp_ns.saturating_sub(self.stamp_ns) < PIECE_SPAN_NS
        })
    }

    fn push(&mut self, header: &BlockHeader, payload: &[u8], next_point: u64) {
        if self.to.is_none() {
            self.from = header.first_point.max(next_point);
            self.stamp_ns = header.first_stamp_ns;
        }
        self.blocks.push((*header, self.bytes.len()));
        self.bytes.resize(self.bytes.len() + BLOCK_HEADER_BYTES, 0);
        self.bytes.extend_from_slice(payload);
        self.to = Some(header.end_point());
        self.end = header.offset + header.block_bytes() as u64;
    }
}

/// Where the durable blocks of a segment end, from the first readable header behind it.
fn told_end(later: &[(u64, PathBuf)], segment_id: u64) -> u64 {
    let header = later.iter().find_map(|(id, path)| header(path).filter(|header| header.segment_id == *id));
    match header {
        Some(header) if header.previous_segment == segment_id => header.previous_end,
        // Nothing in it ever became durable.
        Some(header) if header.previous_segment < segment_id => FIRST_BLOCK,
        _ => TO_THE_TAIL,
    }
}

fn header(path: &Path) -> Option<SegmentHeader> {
    use std::io::Read;
    let mut page = [0; PAGE_BYTES];
    std::fs::File::open(path).ok()?.read_exact(&mut page).ok()?;
    SegmentHeader::parse(&page).ok()
}

/// Segments that this log has begun, oldest first.
fn used_segments(dir: &Path, log_id: u32, node_id: u128) -> io::Result<Vec<(u64, PathBuf, SegmentHeader)>> {
    let used = |(id, path): (u64, PathBuf)| {
        let header = header(&path)?;
        ((header.segment_id, header.log_id, header.node_id) == (id, log_id, node_id)).then_some((id, path, header))
    };
    Ok(list_segments(dir)?.into_iter().filter_map(used).collect())
}

/// How far a log is on disk. A block in the file may be one that its writer has not flushed yet; it is flushed here.
fn find_end(dir: &Path, log_id: u32, node_id: u128) -> io::Result<Option<End>> {
    loop {
        let Some((segment_id, path, _)) = used_segments(dir, log_id, node_id)?.pop() else { return Ok(None) };
        let read = SegmentReader::open(&path, segment_id, FIRST_BLOCK, TO_THE_TAIL);
        let mut reader = match read {
            Ok(reader) => reader,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut at = Position { segment_id, offset: FIRST_BLOCK };
        let mut point = reader.next_point().unwrap_or(0);
        while let item @ (ReadItem::Block(_) | ReadItem::Damage(_)) = reader.next_item() {
            if let ReadItem::Block(block) = item {
                at = block.end();
                point = point.max(block.header.end_point());
            }
        }
        match std::fs::File::open(&path).and_then(|file| file.sync_data()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            flushed => flushed?,
        }
        return Ok(Some(End { at, point }));
    }
}
