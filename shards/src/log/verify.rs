//! The offline tools: check a log's directory, print its records, repair what can be repaired. Blocking, for a log
//! that no process is writing.

use super::PAGE_BYTES;
use super::aligned::AlignedBuf;
use super::block::RecordKind;
use super::case::BlockCase;
use super::names::NameMap;
use super::prepare::fill;
use super::read::{Damage, ReadItem, SegmentReader, TO_THE_TAIL};
use super::record::{BatchDecoder, EnvelopeView};
use super::recover::{Found, Listing, ends_told, list, open_existing};
use super::writer::{Position, ReadSpan};
use crate::point::{Batch, SeriesRef};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

#[derive(Debug, Default, Clone)]
pub struct Report {
    pub segments: u64,
    pub blocks: u64,
    pub records: u64,
    pub points: u64,
    /// Header pages and blocks
    pub bytes: u64,
    /// Points that damage is known to have cost
    pub points_lost: u64,
    /// Points whose record or series name cannot be read although their block is sound
    pub points_unreadable: u64,
    pub damage: Vec<Damage>,
    /// Torn ends, never acknowledged
    pub torn: Vec<Position>,
    pub unused_files: u64,
    pub notes: Vec<String>,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.damage.is_empty() && self.points_unreadable == 0 && self.notes.is_empty()
    }
}

/// Reads all of a log and checks that every point can be decoded and named.
pub fn verify(dir: &Path, log_id: u32, node_id: u128) -> io::Result<Report> {
    let listing = list(dir, log_id, node_id)?;
    let mut report = Report {
        segments: listing.used.len() as u64,
        bytes: listing.used.len() as u64 * PAGE_BYTES as u64,
        unused_files: listing.unused.len() as u64,
        notes: listing.notes.clone(),
        ..Report::default()
    };
    walk(log_id, &listing, &mut report, |_| {})?;
    Ok(report)
}

/// One record of a dump.
pub struct DumpRecord<'a> {
    pub position: Position,
    pub first_point: u64,
    pub kind: RecordKind,
    pub stamp_ns: i64,
    /// For batches
    pub batch: Option<(EnvelopeView<'a>, &'a Batch)>,
    pub names: &'a NameMap,
    /// For other kinds
    pub bytes: &'a [u8],
}

impl DumpRecord<'_> {
    /// The canonical key of point `n` of the batch.
    pub fn key(&self, n: usize) -> Option<&[u8]> {
        let (_, batch) = self.batch.as_ref()?;
        key_of(batch, n, self.names)
    }
}

/// Calls `each` with every record that can be read, names aside.
pub fn dump(dir: &Path, log_id: u32, node_id: u128, each: impl FnMut(DumpRecord)) -> io::Result<Report> {
    let listing = list(dir, log_id, node_id)?;
    let mut report = Report { notes: listing.notes.clone(), ..Report::default() };
    walk(log_id, &listing, &mut report, each)?;
    Ok(report)
}

fn key_of<'a>(batch: &'a Batch, n: usize, names: &'a NameMap) -> Option<&'a [u8]> {
    match SeriesRef::from_bits(*batch.series.get(n)?) {
        SeriesRef::Known(id) => names.get(id.0),
        SeriesRef::Inline(at) => batch.inline_keys.get(at as usize).map(|key| &**key),
    }
}

/// What to read to have everything in a directory, as far as its headers tell.
pub(crate) fn spans(listing: &Listing) -> Vec<ReadSpan> {
    let ends = ends_told(&listing.used);
    let span = |(found, end): (&Found, Option<u64>)| ReadSpan {
        segment_id: found.segment_id,
        path: found.path.clone(),
        from: PAGE_BYTES as u64,
        to: end.unwrap_or(TO_THE_TAIL),
    };
    listing.used.iter().zip(ends).map(span).collect()
}

fn walk(log_id: u32, listing: &Listing, report: &mut Report, mut each: impl FnMut(DumpRecord)) -> io::Result<()> {
    let mut decoder = BatchDecoder::default();
    let mut end_point = 0;
    for span in spans(listing) {
        let expected = (report.blocks > 0).then_some(end_point);
        let mut reader = SegmentReader::open(&span.path, span.segment_id, span.from, span.to)?;
        reader.of_log(log_id);
        reader.expect(expected.or(reader.next_point()));
        let mut names = NameMap::default();
        loop {
            let block = match reader.next_item() {
                ReadItem::Block(block) => block,
                ReadItem::Damage(damage) => {
                    report.points_lost += damage.points;
                    report.damage.push(damage);
                    continue;
                }
                ReadItem::End { position, case } => {
                    if matches!(case, BlockCase::Torn | BlockCase::TornOutOfOrder) {
                        report.torn.push(position);
                    }
                    end_point = reader.next_point().unwrap_or(end_point);
                    break;
                }
            };
            report.blocks += 1;
            report.points += u64::from(block.header.points);
            report.bytes += block.header.block_bytes() as u64;
            for record in block.records() {
                report.records += 1;
                names.learn(record);
                let mut stamp_ns = block.header.first_stamp_ns;
                let batch = if record.kind == RecordKind::Batch {
                    match decoder.decode(record.bytes) {
                        Ok((view, batch)) => {
                            let batch = &*batch;
                            let unnamed = (0..batch.len()).filter(|&n| key_of(batch, n, &names).is_none()).count();
                            report.points_unreadable += unnamed as u64;
                            stamp_ns = view.stamp_ns;
                            Some((view, batch))
                        }
                        Err(error) => {
                            let points = BatchDecoder::envelope(record.bytes).map_or(1, |view| view.points.max(1));
                            report.points_unreadable += points as u64;
                            report.notes.push(format!("{:?}: {error}", block.position));
                            continue;
                        }
                    }
                } else {
                    None
                };
                each(DumpRecord {
                    position: block.position,
                    first_point: block.header.first_point,
                    kind: record.kind,
                    stamp_ns,
                    batch,
                    names: &names,
                    bytes: record.bytes,
                });
            }
        }
    }
    Ok(())
}

/// What [`repair`] did.
#[derive(Debug, Default, Clone)]
pub struct Repair {
    /// Torn ends zeroed: segment, offset, bytes
    pub zeroed: Vec<(u64, u64, u64)>,
    /// Copies of damaged bytes
    pub set_aside: Vec<PathBuf>,
}

/// Zeroes torn ends and copies damaged bytes to `<segment>.<offset>.damaged` beside the log, for a person to look at.
/// Never changes a byte at or below the flushed end: no point is deleted, damaged ones included.
pub fn repair(dir: &Path, log_id: u32, node_id: u128) -> io::Result<Repair> {
    let listing = list(dir, log_id, node_id)?;
    let mut done = Repair::default();
    for span in spans(&listing) {
        let mut reader = SegmentReader::open(&span.path, span.segment_id, span.from, span.to)?;
        reader.of_log(log_id);
        let end = loop {
            match reader.next_item() {
                ReadItem::Block(_) => {}
                ReadItem::Damage(damage) if damage.from == damage.to => {}
                ReadItem::Damage(damage) => {
                    let copy = PathBuf::from(format!("{}.{}.damaged", span.path.display(), damage.from));
                    if !copy.exists() {
                        set_aside(&span.path, damage.from, damage.to, &copy)?;
                        done.set_aside.push(copy);
                    }
                }
                ReadItem::End { position, .. } => break position.offset,
            }
        };
        if span.to == TO_THE_TAIL {
            let strays = reader.strays(end);
            if strays.is_empty() {
                continue;
            }
            let file = open_existing(&span.path)?;
            let mut zeros = AlignedBuf::with_capacity(PAGE_BYTES);
            zeros.set_len(PAGE_BYTES);
            for (at, bytes) in strays {
                fill(&file, at, at + bytes, &zeros)?;
                done.zeroed.push((span.segment_id, at, bytes));
            }
            file.sync_all()?;
        }
    }
    Ok(done)
}

fn set_aside(path: &Path, from: u64, to: u64, copy: &Path) -> io::Result<()> {
    let mut source = std::fs::File::open(path)?;
    source.seek(SeekFrom::Start(from))?;
    let mut target = std::fs::File::create_new(copy)?;
    io::copy(&mut source.take(to - from), &mut target)?;
    target.sync_all()
}
