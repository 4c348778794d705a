//! Reading segments from disk, sound or not. Blocking; the backplane, the refold and the offline tools use it.
//!
//! Any bytes: no panic, memory bounded by one block (16 MiB), and no record is returned whose CRC does not hold. A bad
//! block is passed over: the next sound block of the same segment is looked for page by page.

use super::aligned::AlignedBuf;
use super::block::{BlockError, BlockHeader, Records, parse_block};
use super::case::{BlockCase, Here, Later, decide_block};
use super::names::NameMap;
use super::prepare::open;
use super::segment::{HeaderError, SegmentHeader};
use super::writer::{Position, ReadSpan};
use super::{PAGE_BYTES, pages};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A span that ends here is read as a tail: until nothing more was flushed.
pub const TO_THE_TAIL: u64 = u64::MAX;

/// A sound block.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    pub position: Position,
    pub header: BlockHeader,
    pub crc: u32,
    pub payload: &'a [u8],
}

impl<'a> Block<'a> {
    pub fn records(&self) -> Records<'a> {
        Records::new(self.payload)
    }
    pub fn end(&self) -> Position {
        Position { offset: self.position.offset + self.header.block_bytes() as u64, ..self.position }
    }
}

/// Bytes that should hold blocks and do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    pub segment_id: u64,
    pub from: u64,
    pub to: u64,
    /// Points known to be lost with them. What only the next segment can tell is reported there, with `from == to`.
    pub points: u64,
}

#[derive(Debug, Clone, Copy)]
pub enum ReadItem<'a> {
    Block(Block<'a>),
    Damage(Damage),
    /// No more; where the sound part ends, and what the end looks like
    End {
        position: Position,
        case: BlockCase,
    },
}

/// The blocks of one segment file.
pub struct SegmentReader {
    pages: Pages,
    segment_id: u64,
    header: Result<SegmentHeader, HeaderError>,
    at: u64,
    to: u64,
    last_block: Option<u64>,
    next_point: Option<u64>,
    log_id: Option<u32>,
    salt: Option<u64>,
    /// From here on to the end of the file no block of this segment begins: a look at all that follows has shown it
    bare_from: Option<u64>,
}

enum Step {
    Block(BlockHeader),
    Damage(Damage),
    End(BlockCase),
}

impl SegmentReader {
    /// `from`: the offset of a block (or anything up to the first). `to`: everything below is known to be flushed; or
    /// [`TO_THE_TAIL`]. The file's name, not its header, says which segment it is.
    pub fn open(path: &Path, segment_id: u64, from: u64, to: u64) -> io::Result<SegmentReader> {
        let mut pages = Pages::open(path)?;
        pages.ahead_to = to;
        // Only this page: a start looks at the headers of the whole backlog.
        pages.read(0, PAGE_BYTES);
        let header = match pages.view(0, PAGE_BYTES) {
            Some(page) => SegmentHeader::parse(page),
            None => Err(HeaderError::Damaged),
        };
        let known = header.ok().filter(|header| header.segment_id == segment_id);
        let from = from.max(PAGE_BYTES as u64).next_multiple_of(PAGE_BYTES as u64);
        let whole = from == PAGE_BYTES as u64;
        Ok(SegmentReader {
            pages,
            segment_id,
            header,
            at: from,
            to,
            last_block: known.filter(|_| whole).map(|header| header.first_block.wrapping_sub(1)),
            next_point: known.filter(|_| whole).map(|header| header.first_point),
            log_id: known.map(|header| header.log_id),
            salt: known.map(|header| header.salt),
            bare_from: None,
        })
    }

    pub fn header(&self) -> Result<&SegmentHeader, HeaderError> {
        self.header.as_ref().map_err(|&error| error)
    }

    pub fn file_bytes(&self) -> u64 {
        self.pages.bytes
    }

    /// From the file so far, what was read ahead included.
    pub fn read_bytes(&self) -> u64 {
        self.pages.read_bytes
    }

    /// The point number that the next block should begin with, where it is known.
    pub fn next_point(&self) -> Option<u64> {
        self.next_point
    }

    pub(crate) fn expect(&mut self, next_point: Option<u64>) {
        self.next_point = next_point;
    }

    /// Takes blocks of this log only, also when the header cannot say so.
    pub(crate) fn of_log(&mut self, log_id: u32) {
        self.log_id = Some(log_id);
    }

    pub fn next_item(&mut self) -> ReadItem<'_> {
        let step = self.step();
        let at = self.at;
        let position = Position { segment_id: self.segment_id, offset: at };
        match step {
            Step::Damage(damage) => ReadItem::Damage(damage),
            Step::End(case) => ReadItem::End { position, case },
            Step::Block(header) => {
                let end = at + header.block_bytes() as u64;
                let bytes = self.pages.view(at, header.block_bytes()).unwrap_or(&[]);
                match parse_block(bytes) {
                    Ok((header, crc, payload)) => {
                        self.at = end;
                        ReadItem::Block(Block { position, header, crc, payload })
                    }
                    // The page was sound a moment ago: the disk changed its mind.
                    Err(_) => {
                        self.at = end;
                        let points = u64::from(header.points);
                        ReadItem::Damage(Damage { segment_id: self.segment_id, from: at, to: end, points })
                    }
                }
            }
        }
    }

    /// Looks at the place where the next block should be; moves past damage, not past a sound block.
    fn step(&mut self) -> Step {
        loop {
            let limit = self.to.min(self.pages.bytes);
            let bounded = self.to != TO_THE_TAIL;
            if self.at >= limit {
                // A file shorter than what was flushed was cut.
                if bounded && self.pages.bytes < self.to {
                    let damage = Damage { segment_id: self.segment_id, from: self.at, to: self.to, points: 0 };
                    self.to = self.at;
                    return Step::Damage(damage);
                }
                return Step::End(BlockCase::End);
            }
            let (here, found) = self.look(self.at);
            if here == Here::Sound {
                let Some(header) = found else { return Step::End(BlockCase::End) };
                let expected = self.next_point.unwrap_or(header.first_point);
                self.salt = Some(header.salt);
                self.log_id = Some(header.log_id);
                if header.points > 0 && header.end_point() <= expected {
                    // Written a second time after a failure; the first copy was read.
                    self.last_block = Some(header.block_seq);
                    self.at += header.block_bytes() as u64;
                    continue;
                }
                if header.first_point > expected {
                    self.next_point = Some(header.first_point);
                    let points = header.first_point - expected;
                    return Step::Damage(Damage { segment_id: self.segment_id, from: self.at, to: self.at, points });
                }
                // Names written again before a superseded block bear that block's older point number.
                self.next_point = Some(header.end_point().max(expected));
                self.last_block = Some(header.block_seq);
                return Step::Block(header);
            }
            let after = match found {
                Some(header) => self.at + header.block_bytes() as u64,
                None => self.at + PAGE_BYTES as u64,
            };
            let (later, resume) = self.look_later(after, limit, found.map(|header| header.block_seq));
            let case = decide_block(here, bounded, later);
            let to = match case {
                BlockCase::Damaged => resume,
                BlockCase::DamagedToEnd => limit,
                _ => return Step::End(case),
            };
            let mut points = 0;
            if let Some((header, _)) = self.header_at(to).filter(|_| case == BlockCase::Damaged) {
                if let Some(expected) = self.next_point {
                    points = header.first_point.saturating_sub(expected);
                }
                self.next_point = Some(header.first_point.max(self.next_point.unwrap_or(0)));
            } else if let Some(header) = found {
                // The header of the damaged block tells what it held.
                points = self.next_point.map_or(u64::from(header.points), |e| header.end_point().saturating_sub(e));
                self.next_point = Some(header.end_point());
            }
            let damage = Damage { segment_id: self.segment_id, from: self.at, to, points };
            self.at = to;
            return Step::Damage(damage);
        }
    }

    /// What stands at `at`; the header when that much is sound.
    fn look(&mut self, at: u64) -> (Here, Option<BlockHeader>) {
        let Some(page) = self.pages.view(at, PAGE_BYTES) else { return (Here::Bad, None) };
        match BlockHeader::parse(page) {
            Ok((header, _)) if self.ours(&header, at) => match self.pages.view(at, header.block_bytes()) {
                Some(bytes) if parse_block(bytes).is_ok() => (Here::Sound, Some(header)),
                _ => (Here::Bad, Some(header)),
            },
            Err(BlockError::Header) => (Here::Bad, None),
            Ok(_) | Err(BlockError::Absent | BlockError::Payload | BlockError::Newer(_)) => (Here::Absent, None),
        }
    }

    fn header_at(&mut self, at: u64) -> Option<(BlockHeader, u32)> {
        let parsed = BlockHeader::parse(self.pages.view(at, PAGE_BYTES)?).ok()?;
        self.ours(&parsed.0, at).then_some(parsed)
    }

    fn ours(&self, header: &BlockHeader, at: u64) -> bool {
        header.segment_id == self.segment_id
            && header.offset == at
            && self.log_id.is_none_or(|id| header.log_id == id)
            && self.salt.is_none_or(|salt| header.salt == salt)
            && self.last_block.is_none_or(|last| last == u64::MAX || header.block_seq > last)
    }

    /// The sound blocks behind `after`: the first that says that something behind the last sound block was flushed,
    /// or else the first at all.
    fn look_later(&mut self, after: u64, limit: u64, bad_block: Option<u64>) -> (Later, u64) {
        let mut first = None;
        let mut at = after;
        let mut bare_from = after;
        let flushed_from = bad_block.or(self.last_block.map(|last| last.wrapping_add(1)));
        while at < limit {
            let begins = self.begins_at(at) > 0;
            if let (Here::Sound, Some(header)) = self.look(at) {
                let resume = *first.get_or_insert(at);
                if flushed_from.is_none_or(|seq| header.durable_upto >= seq) {
                    return (Later::Flushed, resume);
                }
                at += header.block_bytes() as u64;
            } else {
                at += PAGE_BYTES as u64;
            }
            if begins {
                bare_from = at;
            }
        }
        if limit == self.pages.bytes {
            self.bare_from = Some(bare_from);
        }
        first.map_or((Later::None, limit), |at| (Later::Unflushed, at))
    }

    /// Whether any block of this segment is sound, or any that begins within the first `bytes`.
    pub(crate) fn has_sound_block(&mut self, bytes: u64) -> bool {
        let (at, limit) = (self.at, self.pages.bytes.min(bytes));
        matches!(self.look(at).0, Here::Sound) || self.look_later(at, limit, None).0 != Later::None
    }

    /// Offsets from `from` on where a block of this segment seems to begin: what has to be zeroed behind a torn tail.
    pub(crate) fn strays(&mut self, from: u64) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        let mut at = from;
        while at < self.bare_from.unwrap_or(self.pages.bytes) {
            let bytes = self.begins_at(at);
            if bytes > 0 {
                found.push((at, bytes.min(self.pages.bytes - at)));
            }
            at += bytes.max(PAGE_BYTES as u64);
        }
        found
    }

    /// How long the block is that seems to begin here; 0: none of this segment's.
    fn begins_at(&mut self, at: u64) -> u64 {
        match self.pages.view(at, PAGE_BYTES).map(BlockHeader::parse) {
            Some(Ok((header, _))) if header.segment_id == self.segment_id => header.block_bytes() as u64,
            // Unreadable, or torn inside its header.
            None | Some(Err(BlockError::Header)) => PAGE_BYTES as u64,
            _ => 0,
        }
    }
}

/// The blocks of a list of spans, in order, with the names of the segment at hand.
pub struct LogReader {
    spans: std::vec::IntoIter<ReadSpan>,
    log_id: u32,
    reader: Option<SegmentReader>,
    names: NameMap,
    next_point: Option<u64>,
    /// The reader has reported its end
    ended: bool,
}

impl LogReader {
    /// `next_point`: the number of the first point wanted, where it is known; losses before it then count.
    pub fn new(log_id: u32, spans: Vec<ReadSpan>, next_point: Option<u64>) -> LogReader {
        LogReader {
            spans: spans.into_iter(),
            log_id,
            reader: None,
            names: NameMap::default(),
            next_point,
            ended: false,
        }
    }

    /// Names of the segment that the last block came from, as far as needed for that block.
    pub fn names(&self) -> &NameMap {
        &self.names
    }

    /// `None` after the last span. Each span ends with an `End`. A file that cannot be opened is damage.
    pub fn next_item(&mut self) -> Option<ReadItem<'_>> {
        if std::mem::take(&mut self.ended) {
            self.reader = None;
        }
        if self.reader.is_none() {
            let span = self.spans.next()?;
            self.names.clear();
            match self.open(&span) {
                Ok(reader) => self.reader = Some(reader),
                Err(error) => {
                    tracing::warn!(path = %span.path.display(), %error, "a segment cannot be opened");
                    let to = if span.to == TO_THE_TAIL { span.from } else { span.to };
                    let damage = Damage { segment_id: span.segment_id, from: span.from, to, points: 0 };
                    return Some(ReadItem::Damage(damage));
                }
            }
        }
        let reader = self.reader.as_mut()?;
        let step = reader.step();
        self.next_point = reader.next_point;
        let (segment_id, at) = (reader.segment_id, reader.at);
        match step {
            Step::Damage(damage) => Some(ReadItem::Damage(damage)),
            Step::End(case) => {
                self.ended = true;
                Some(ReadItem::End { position: Position { segment_id, offset: at }, case })
            }
            Step::Block(header) => {
                let position = Position { segment_id, offset: at };
                reader.at += header.block_bytes() as u64;
                match parse_block(reader.pages.view(at, header.block_bytes()).unwrap_or(&[])) {
                    Ok((header, crc, payload)) => {
                        self.names.learn_payload(payload);
                        Some(ReadItem::Block(Block { position, header, crc, payload }))
                    }
                    Err(_) => {
                        let (to, points) = (at + header.block_bytes() as u64, u64::from(header.points));
                        Some(ReadItem::Damage(Damage { segment_id, from: at, to, points }))
                    }
                }
            }
        }
    }

    fn open(&mut self, span: &ReadSpan) -> io::Result<SegmentReader> {
        let first = PAGE_BYTES as u64;
        if span.from > first {
            // Names that later blocks use may stand in front of where reading begins.
            let mut before = SegmentReader::open(&span.path, span.segment_id, first, span.from)?;
            before.of_log(self.log_id);
            loop {
                match before.next_item() {
                    ReadItem::Block(block) => self.names.learn_payload(block.payload),
                    ReadItem::Damage(_) => {}
                    ReadItem::End { .. } => break,
                }
            }
            self.next_point = self.next_point.or(before.next_point);
        }
        let mut reader = SegmentReader::open(&span.path, span.segment_id, span.from, span.to)?;
        reader.of_log(self.log_id);
        reader.expect(self.next_point.or(reader.next_point));
        Ok(reader)
    }
}

/// A window of a file, read in large pieces.
pub(super) struct Pages {
    file: File,
    bytes: u64,
    buf: AlignedBuf,
    start: u64,
    /// Nothing from here on is read before it is asked for
    pub(super) ahead_to: u64,
    /// In all
    pub(super) read_bytes: u64,
}

const READ_AHEAD_BYTES: usize = 1 << 20;

impl Pages {
    pub(super) fn open(path: &Path) -> io::Result<Pages> {
        let file = open(path, false)?;
        let bytes = file.metadata()?.len();
        Ok(Pages {
            file,
            bytes,
            buf: AlignedBuf::with_capacity(PAGE_BYTES),
            start: 0,
            ahead_to: u64::MAX,
            read_bytes: 0,
        })
    }

    /// `len` bytes at `offset` (a multiple of the page size); `None` when they are not there or cannot be read.
    pub(super) fn view(&mut self, offset: u64, len: usize) -> Option<&[u8]> {
        if offset.checked_add(len as u64)? > self.bytes {
            return None;
        }
        let inside = offset >= self.start && offset + len as u64 <= self.start + self.buf.len() as u64;
        if !inside {
            let ahead = self.ahead_to.saturating_sub(offset).min(READ_AHEAD_BYTES as u64) as usize;
            // A bad sector must cost its own page, not everything read along with it.
            if !self.read(offset, len.max(ahead)) && !self.read(offset, len) {
                self.buf.clear();
                return None;
            }
        }
        let at = (offset - self.start) as usize;
        self.buf.get(at..at + len)
    }

    fn read(&mut self, offset: u64, len: usize) -> bool {
        let len = pages(len.min((self.bytes - offset) as usize));
        self.start = offset;
        self.buf.clear();
        self.buf.set_len(len);
        let mut got = 0;
        while got < len {
            match self.file.read_at(&mut self.buf[got..], offset + got as u64) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.buf.set_len(got);
        self.read_bytes += got as u64;
        got as u64 >= (len as u64).min(self.bytes - offset)
    }
}
