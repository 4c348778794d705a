//! Reads one log from its files for a replay, beside the process that writes it or without one.
//!
//! Promises: nothing is handed out that is not durable; nothing whose checksum does not hold; points come in the order of
//! their numbers, each once. It takes no lock and changes nothing. A segment that retention takes away meanwhile is no
//! error: the numbers of the points tell what went with it, and that is counted apart from damage.
//!
//! What was received outside a span that was asked for is passed over. The headers of blocks say when that was; of a segment
//! without such blocks they are all that is read. Within a segment everything before the last such block is read, for the names in it.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use metricstream_shards::log::{
    BLOCK_HEADER_BYTES, Block, BlockHeader, PAGE_BYTES, Position, ReadItem, SegmentHeader, SegmentReader, TO_THE_TAIL,
    block_headers,
};

use crate::forward::piece::{Piece, SegmentNames};
use crate::forward::share::list_segments;

const FIRST_BLOCK: u64 = PAGE_BYTES as u64;
/// A piece ends behind the block that reaches this.
const PIECE_BYTES: usize = 256 << 10;
/// .. and before the first block that was received this much later than its own first: logs are merged piece by piece.
const PIECE_SPAN_NS: i64 = 1_000_000_000;

/// A block tells the stamps of its first and its last record. They rise but where the clock was set, so that all others are as
/// near to one of the two as the block was open: far less than this. (After a step back stamps are ahead of the clock by the
/// windows' horizon at most: the span that is asked for has room for it.)
const STAMP_SLACK_NS: i64 = 60_000_000_000;

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
    /// Points before it that were received outside the span
    pub passed_over: u64,
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
    /// Only what may have been received in this span is wanted
    received_ns: Option<Range<i64>>,
    /// Before the next point, not told yet
    missing: Missing,
    passed_over: u64,
    /// From files that are closed
    read_bytes: u64,
}

struct Open {
    path: PathBuf,
    reader: SegmentReader,
    names: Arc<SegmentNames>,
    /// A block that was read and begins the next piece
    kept: Option<(BlockHeader, Vec<u8>)>,
    /// Offset of the first wanted block; those before it are read for their names
    wanted_from: u64,
    /// Headers of the blocks behind the last wanted one
    behind: Vec<BlockHeader>,
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
            end: end.end,
            first_point,
            segment_id,
            next_point: first_point,
            open: None,
            is_gone: false,
            received_ns: None,
            missing: Missing::default(),
            passed_over: 0,
            read_bytes: end.read_bytes,
        }))
    }

    /// From here on passes over what was certainly received outside of this span.
    pub fn only_received(&mut self, span_ns: Option<Range<i64>>) {
        self.close();
        self.received_ns = span_ns;
    }

    /// From files so far.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes + self.open.as_ref().map_or(0, |open| open.reader.read_bytes())
    }

    /// What of the log is in files, blocks behind the end of one not counted.
    pub fn log_bytes(&self) -> u64 {
        let segments = list_segments(&self.dir).unwrap_or_default();
        let whole = segments.iter().filter(|(id, _)| (self.segment_id..self.end.at.segment_id).contains(id));
        whole.filter_map(|(_, path)| Some(path.metadata().ok()?.len())).sum::<u64>() + self.end.at.offset
    }

    fn close(&mut self) {
        self.read_bytes = self.read_bytes();
        self.open = None;
    }

    pub fn next_point(&self) -> u64 {
        self.next_point
    }

    /// Looks how far the log goes now.
    pub fn extend(&mut self, node_id: u128) -> io::Result<()> {
        // The segment that was the last may go on.
        self.close();
        self.segment_id = self.segment_id.min(self.end.at.segment_id);
        if let Some(FoundEnd { end, read_bytes }) = find_end(&self.dir, self.log_id, node_id)? {
            self.read_bytes += read_bytes;
            // Else all of it was taken away, or replaced.
            if end.point >= self.end.point {
                self.end = end;
            }
        }
        Ok(())
    }

    /// Goes on with this point.
    pub fn seek(&mut self, point: u64, node_id: u128) -> io::Result<()> {
        self.close();
        (self.missing, self.passed_over) = (Missing::default(), 0);
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
            // Taken away since it was listed: the next one.
            let Some(open) = &mut self.open else { continue };
            let mut unwanted = Vec::new();
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
                            let expected = piece.to.unwrap_or(self.next_point);
                            if header.points == 0 || header.end_point() <= expected {
                                continue;
                            }
                            if header.offset < open.wanted_from {
                                unwanted.push(header);
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
                piece.push(&header, &payload, self.next_point);
                if piece.bytes.len() >= PIECE_BYTES || header.end_point() >= self.end.point {
                    break false;
                }
            };
            let names = open.names.clone();
            if ended && piece.to.is_none() {
                // Recycled segments have another name, and others' bytes.
                self.is_gone |= !open.path.exists();
                unwanted.append(&mut open.behind);
                self.segment_id += 1;
                self.close();
            }
            self.pass_over(&unwanted);
            if let Some(to) = piece.to {
                return Ok(self.found(piece, to, names));
            }
        }
        self.count_missing(self.end.point);
        self.next_point = self.next_point.max(self.end.point);
        let (from, to) = (self.next_point, self.next_point);
        let (missing, passed_over) = (std::mem::take(&mut self.missing), std::mem::take(&mut self.passed_over));
        Ok(Next { piece: None, from, to, stamp_ns: i64::MAX, missing, passed_over })
    }

    fn found(&mut self, piece: Building, to: u64, names: Arc<SegmentNames>) -> Next {
        self.count_missing(piece.from);
        let end = Position { segment_id: self.segment_id, offset: piece.end };
        let from = piece.from.max(self.next_point);
        self.next_point = to;
        let stamp_ns = piece.stamp_ns;
        let piece = Piece::new(self.log_id, end, piece.bytes, piece.blocks, names);
        let (missing, passed_over) = (std::mem::take(&mut self.missing), std::mem::take(&mut self.passed_over));
        Next { piece: Some(Arc::new(piece)), from, to, stamp_ns, missing, passed_over }
    }

    /// The points of these blocks are not wanted.
    fn pass_over(&mut self, blocks: &[BlockHeader]) {
        for block in blocks.iter().filter(|block| block.points > 0) {
            self.count_missing(block.first_point);
            let from = block.first_point.max(self.next_point);
            self.passed_over += block.end_point().saturating_sub(from);
            self.next_point = self.next_point.max(block.end_point());
        }
    }

    /// Between the next point and this one.
    fn count_missing(&mut self, found: u64) {
        let points = found.saturating_sub(self.next_point);
        if std::mem::take(&mut self.is_gone) {
            self.missing.removed += points;
        } else {
            self.missing.damaged += points;
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
        let wanted = self.wanted(path, *segment_id, to);
        let reader = match SegmentReader::open(path, *segment_id, FIRST_BLOCK, wanted.to) {
            Ok(reader) => reader,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Taken away since it was listed.
                self.is_gone = true;
                self.segment_id += 1;
                return Ok(self.segment_id <= self.end.at.segment_id);
            }
            Err(error) => return Err(error),
        };
        let Wanted { from: wanted_from, behind, .. } = wanted;
        let (path, names) = (path.clone(), SegmentNames::new());
        self.open = Some(Open { path, reader, names, kept: None, wanted_from, behind });
        Ok(true)
    }

    /// The part of a segment that may hold what was received in the span; all of it, where its headers cannot tell.
    fn wanted(&mut self, path: &Path, segment_id: u64, to: u64) -> Wanted {
        let whole = Wanted { from: FIRST_BLOCK, to, behind: Vec::new() };
        let Some(span_ns) = self.received_ns.clone().filter(|_| to != TO_THE_TAIL) else { return whole };
        let Ok(found) = block_headers(path, segment_id, to) else { return whole };
        self.read_bytes += found.read_bytes;
        let Some(mut headers) = found.headers else { return whole };
        let is_wanted = |header: &BlockHeader| {
            let (one, other) = (header.first_stamp_ns, header.last_stamp_ns);
            header.points > 0
                && one.min(other).saturating_sub(STAMP_SLACK_NS) < span_ns.end
                && one.max(other).saturating_add(STAMP_SLACK_NS) >= span_ns.start
        };
        let Some(last) = headers.iter().rposition(is_wanted) else {
            return Wanted { from: FIRST_BLOCK, to: FIRST_BLOCK, behind: headers };
        };
        let behind = headers.split_off(last + 1);
        let first = headers.iter().find(|header| is_wanted(header)).expect("there is a last one");
        let to = headers[last].offset + headers[last].block_bytes() as u64;
        Wanted { from: first.offset, to, behind }
    }
}

/// Offsets in a segment.
struct Wanted {
    from: u64,
    to: u64,
    /// The blocks that follow
    behind: Vec<BlockHeader>,
}

struct FoundEnd {
    end: End,
    read_bytes: u64,
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
fn find_end(dir: &Path, log_id: u32, node_id: u128) -> io::Result<Option<FoundEnd>> {
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
        return Ok(Some(FoundEnd { end: End { at, point }, read_bytes: reader.read_bytes() }));
    }
}
