//! A unit of work for a sink: the points of one read, in order, past the filter, each with its number in the log.
//!
//! Records are validated here, once a sink, and read in place: a point is a view into the piece and the decoded columns.

use std::ops::Range;

use metricstream_shards::log::{BatchDecoder, RecordKind};
use metricstream_shards::point::{INLINE_BIT, Kind, NO_TIMESTAMP};

use super::filter::{Decisions, Filter};
use super::piece::Piece;
use super::sink::UnitId;
use crate::reducer::encode::{RecordView, decode_aggregates};

/// A raw point.
#[derive(Clone, Copy, Debug)]
pub struct Point<'a> {
    /// In its log
    pub number: u64,
    /// Of the process that took it in
    pub epoch: u64,
    /// Whether (series, timestamp) identifies it: the client gave the time, and did not ask for all points of one time
    pub is_identified: bool,
    /// Canonical series key
    pub key: &'a [u8],
    /// Number of the series in its segment; `None`: the point carries its key itself
    pub series: Option<u32>,
    /// The receive stamp where the client gave no time
    pub timestamp_ns: i64,
    pub value: Value<'a>,
    pub request_id: &'a str,
    pub traceparent: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    Float(f64),
    Int(i64),
    UInt(u64),
    Bool(bool),
    Text(&'a str),
}

/// A closed window.
pub struct Window<'a> {
    /// In the aggregate log
    pub number: u64,
    pub epoch: u64,
    pub view: RecordView<'a>,
}

impl Window<'_> {
    /// Its numbers beside the count, by the names they have everywhere. Quantiles that are not kept are NaN: like what has
    /// overflowed, they have no value to write.
    pub fn numbers(&self) -> [(&'static str, f64); 7] {
        let a = &self.view.aggregates;
        let [p50, p95, p99] = a.quantiles.map_or([f64::NAN; 3], |q| [q.p50, q.p95, q.p99]);
        [("sum", a.sum), ("min", a.min), ("max", a.max), ("avg", a.avg), ("p50", p50), ("p95", p95), ("p99", p99)]
    }
}

/// What a sink is shown.
pub enum Item<'a> {
    Point(Point<'a>),
    Window(Window<'a>),
}

/// What a replay makes of an item that the filter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    Take,
    /// Its time is not in the range
    Outside,
    /// A later revision says what its window is
    Superseded,
}

/// Part of a unit, as a replay wants it.
#[derive(Clone)]
pub struct Part<'a> {
    /// Only points with these numbers; the others are not counted either
    pub numbers: Range<u64>,
    pub choose: &'a dyn Fn(&Item<'_>) -> Choice,
}

/// What a sink's look at a unit has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Shown to the sink
    pub passed: u64,
    pub filtered: u64,
    /// Not chosen, by their time or because there is a later revision
    pub outside: u64,
    pub superseded: u64,
    /// In records that cannot be read, or of series that have no name
    pub unreadable: u64,
}

/// Scratch space of one sink and log, used again for every unit.
#[derive(Default)]
pub struct Scratch {
    decoder: BatchDecoder,
    decisions: Decisions,
}

pub struct Unit<'a> {
    pub id: UnitId,
    pub log_id: u32,
    /// Series numbers mean something within one segment
    pub segment_id: u64,
    pub(super) piece: &'a Piece,
    /// Offset of the first block that is meant
    pub(super) from: u64,
    /// Points below were had before: blocks written a second time after a failure
    pub(super) first_point: u64,
    pub(super) filter: &'a Filter,
    /// `None`: all of it
    pub(super) part: Option<Part<'a>>,
    pub(super) scratch: &'a mut Scratch,
    pub(super) seen: Seen,
}

impl Unit<'_> {
    /// Shows every point or window of the unit that the filter lets through, in log order. To be called once a unit.
    /// A sink that fails in the middle returns its error from `show`; the rest is not shown then.
    pub fn for_each<E>(&mut self, mut show: impl FnMut(Item<'_>) -> Result<(), E>) -> Result<(), E> {
        let (filter, piece) = (self.filter, self.piece);
        let Scratch { decoder, decisions } = &mut *self.scratch;
        let mut seen = Seen::default();
        let mut expected = self.first_point;
        let part = self.part.clone();
        let is_meant = |number: u64| part.as_ref().is_none_or(|part| part.numbers.contains(&number));
        // Answers whether an item that the filter takes is to be shown.
        let chosen = |item: &Item<'_>, seen: &mut Seen| {
            let choice = part.as_ref().map_or(Choice::Take, |part| (part.choose)(item));
            match choice {
                Choice::Take => seen.passed += 1,
                Choice::Outside => seen.outside += 1,
                Choice::Superseded => seen.superseded += 1,
            }
            choice == Choice::Take
        };
        let names = &*piece.names;
        let mut walk = || {
            for block in piece.blocks(self.from) {
                let end_point = block.header.end_point();
                if end_point <= expected {
                    continue;
                }
                let mut number = block.header.first_point;
                let mut block_seen = 0;
                for record in block.records() {
                    match record.kind {
                        RecordKind::Batch => {
                            let Ok((envelope, batch)) = decoder.decode(record.bytes) else { continue };
                            for n in 0..batch.len() {
                                let this = number + n as u64;
                                if !is_meant(this) {
                                    block_seen += 1;
                                    continue;
                                }
                                let series = batch.series[n];
                                let (key, taken) = if series & INLINE_BIT != 0 {
                                    let key = &*batch.inline_keys[(series & !INLINE_BIT) as usize];
                                    (Some(key), Some(filter.takes_key(key)))
                                } else {
                                    let key = names.get(series);
                                    (key, decisions.decide(filter, piece.segment_id, series, || key))
                                };
                                let text = match Kind::from_u8(batch.kinds[n]) {
                                    Some(Kind::Text) => {
                                        let text = batch.strings.get(batch.bits[n] as usize);
                                        text.and_then(|text| std::str::from_utf8(text).ok())
                                    }
                                    _ => None,
                                };
                                let value = match Kind::from_u8(batch.kinds[n]) {
                                    Some(Kind::Float) => Some(Value::Float(f64::from_bits(batch.bits[n]))),
                                    Some(Kind::Int) => Some(Value::Int(batch.bits[n] as i64)),
                                    Some(Kind::UInt) => Some(Value::UInt(batch.bits[n])),
                                    Some(Kind::Bool) => Some(Value::Bool(batch.bits[n] != 0)),
                                    Some(Kind::Text) => text.map(Value::Text),
                                    None => None,
                                };
                                let (Some(key), Some(taken), Some(value)) = (key, taken, value) else { continue };
                                block_seen += 1;
                                if !taken {
                                    seen.filtered += 1;
                                    continue;
                                }
                                let is_identified =
                                    batch.timestamps_ns[n] != NO_TIMESTAMP && !envelope.same_timestamp_all;
                                let timestamp_ns = match batch.timestamps_ns[n] {
                                    NO_TIMESTAMP => envelope.stamp_ns,
                                    given => given,
                                };
                                let item = Item::Point(Point {
                                    number: this,
                                    epoch: block.header.epoch,
                                    is_identified,
                                    key,
                                    series: (series & INLINE_BIT == 0).then_some(series),
                                    timestamp_ns,
                                    value,
                                    request_id: envelope.request_id,
                                    traceparent: envelope.traceparent,
                                });
                                if chosen(&item, &mut seen) {
                                    show(item)?;
                                }
                            }
                            number += batch.len() as u64;
                        }
                        RecordKind::Aggregates => {
                            let mut shown = Ok(());
                            let _ = decode_aggregates(record.bytes, &mut |view| {
                                let this = number;
                                number += 1;
                                block_seen += 1;
                                if shown.is_err() || !is_meant(this) {
                                    return;
                                }
                                if !filter.takes_key(view.key) {
                                    seen.filtered += 1;
                                    return;
                                }
                                let item = Item::Window(Window { number: this, epoch: block.header.epoch, view });
                                if chosen(&item, &mut seen) {
                                    shown = show(item);
                                }
                            });
                            shown?;
                        }
                        RecordKind::Names | RecordKind::Mark | RecordKind::Era => {}
                    }
                }
                seen.unreadable += u64::from(block.header.points).saturating_sub(block_seen);
                expected = end_point;
            }
            Ok(())
        };
        let shown = walk();
        self.seen = seen;
        shown
    }

    /// How many points `for_each` has shown.
    pub fn passed(&self) -> u64 {
        self.seen.passed
    }
}
