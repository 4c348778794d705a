//! Some 16 points between the scanner and the batch, so that their series are looked up together.
//!
//! A unit (a line, or a JSON element) is written with [`Group::begin`], [`Group::point`] for each field, and
//! [`Group::end`], or given up with [`Group::abandon`]. [`Group::resolve`] moves the units, in order, into the batch or
//! into the refusals, whole.

use super::Bounds;
use super::fault::Fault;
use crate::point::{Batch, Kind, NO_TIMESTAMP, Rejections, SeriesId, SeriesRef, SeriesResolver};

/// What a protocol adds to the common path.
pub(super) trait Protocol {
    /// Takes a raw key of this protocol apart and checks name and tags. Runs only when a key is met first.
    fn parse_key(raw: &[u8], bounds: &Bounds, parsed: &mut ParsedKey) -> Result<(), Fault>;
    /// Counts a refusal and words it. `place` is what [`Group::begin`] was given.
    fn refuse(&self, place: usize, fault: Fault, points: u32, rejected: &mut Rejections);
}

/// From so many points on, [`Group::is_full`].
const POINTS: usize = 16;
/// Beyond this, keys of a unit's further fields are put together when they are needed instead of stored whole, so that
/// many fields under long tags cannot fill the memory.
const WHOLE_KEYS_BYTES_MAX: usize = 64 * 1024;

#[derive(Default)]
pub(super) struct Group {
    units: Vec<Unit>,
    points: Vec<Point>,
    /// Raw keys: of each unit the part its points share, then what is their own
    keys: Vec<u8>,
    /// String values
    texts: Vec<u8>,
    /// Where the shared part of the unit being written stands
    shared: (usize, usize),
    /// Points of the unit being written, those beyond `points_max` included, which are only counted
    seen: u32,
    accepted: u32,
    full: bool,
    scratch: Vec<u8>,
    parsed: ParsedKey,
    overflow_key: Vec<u8>,
}

struct Unit {
    place: usize,
    points_end: usize,
    seen: u32,
}

struct Point {
    /// `keys[shared.0..shared.1]` then `keys[own.0..own.1]`; one range when `shared.1 == own.0`
    shared: (usize, usize),
    own: (usize, usize),
    hash: u64,
    timestamp_ns: i64,
    kind: Kind,
    /// The value's bits; of a text, its place in `texts`
    bits: u64,
    text_len: u32,
    found: Option<SeriesId>,
}

impl Group {
    /// Must come first in each request.
    pub(super) fn clear(&mut self) {
        self.units.clear();
        self.points.clear();
        self.keys.clear();
        self.texts.clear();
        self.seen = 0;
        self.accepted = 0;
        self.full = false;
    }

    pub(super) fn is_full(&self) -> bool {
        self.points.len() >= POINTS
    }

    /// Begins a unit, and hands out the place where the shared part of its raw keys is to be written.
    #[inline]
    pub(super) fn begin(&mut self) -> &mut Vec<u8> {
        debug_assert_eq!(self.seen, 0, "the last unit was ended or abandoned");
        self.shared.0 = self.keys.len();
        &mut self.keys
    }

    /// Where more of the shared part is to be written.
    #[inline]
    pub(super) fn shared(&mut self) -> &mut Vec<u8> {
        &mut self.keys
    }

    /// Ends the shared part of the raw keys; answers its length.
    #[inline]
    pub(super) fn shared_part_is_written(&mut self) -> usize {
        self.shared.1 = self.keys.len();
        self.shared.1 - self.shared.0
    }

    /// Adds a point; its raw key is the shared part, then `own` with `mark` before it (unless `own` is `None`).
    #[inline]
    pub(super) fn point(&mut self, mark: u8, own: Option<&[u8]>, value: Value<'_>, bounds: &Bounds) {
        self.seen += 1;
        if self.full || self.seen > bounds.points_max {
            return;
        }
        let mut shared = self.shared;
        let mut own_start = self.keys.len();
        if own_start != shared.1 && own_start < WHOLE_KEYS_BYTES_MAX {
            self.keys.extend_from_within(shared.0..shared.1);
            shared = (own_start, self.keys.len());
            own_start = self.keys.len();
        }
        if let Some(own) = own {
            self.keys.push(mark);
            self.keys.extend_from_slice(own);
        }
        let own = (own_start, self.keys.len());
        let (kind, bits, text_len) = match value {
            Value::Plain(kind, bits) => (kind, bits, 0),
            Value::Text(text) => {
                let start = self.texts.len();
                self.texts.extend_from_slice(text);
                (Kind::Text, start as u64, text.len() as u32)
            }
        };
        let timestamp_ns = NO_TIMESTAMP;
        self.points.push(Point { shared, own, hash: 0, timestamp_ns, kind, bits, text_len, found: None });
    }

    /// Points of the unit being written.
    pub(super) fn seen(&self) -> u32 {
        self.seen
    }

    #[inline]
    pub(super) fn end(&mut self, place: usize, timestamp_ns: i64) {
        let start = self.units.last().map_or(0, |unit| unit.points_end);
        for point in &mut self.points[start..] {
            point.timestamp_ns = timestamp_ns;
        }
        self.units.push(Unit { place, points_end: self.points.len(), seen: self.seen });
        self.seen = 0;
    }

    /// Forgets the unit being written.
    pub(super) fn abandon(&mut self) {
        self.points.truncate(self.units.last().map_or(0, |unit| unit.points_end));
        self.seen = 0;
    }

    /// Looks up all series and empties the group.
    pub(super) fn resolve<P: Protocol>(
        &mut self,
        protocol: &P,
        bounds: &Bounds,
        series: &mut impl SeriesResolver,
        out: &mut Batch,
        rejected: &mut Rejections,
    ) {
        for point in &mut self.points {
            point.hash = series.hash(whole_key(&self.keys, point, &mut self.scratch));
            series.prefetch(point.hash);
        }
        let mut start = 0;
        for at in 0..self.units.len() {
            let Unit { place, points_end, seen } = self.units[at];
            let points = start..points_end;
            start = points_end;
            if self.full || seen > bounds.points_max - self.accepted {
                self.full = true;
                protocol.refuse(place, Fault::TooManyPoints { points_max: bounds.points_max }, seen, rejected);
                continue;
            }
            let mut all_found = true;
            for point in &mut self.points[points.clone()] {
                point.found = series.get(point.hash, whole_key(&self.keys, point, &mut self.scratch));
                all_found &= point.found.is_some();
            }
            if !all_found && let Err(fault) = self.check_new::<P>(points.clone(), bounds) {
                protocol.refuse(place, fault, seen, rejected);
                continue;
            }
            for at in points {
                let id = match self.points[at].found {
                    Some(id) => SeriesRef::Known(id),
                    None => self.insert::<P>(at, bounds, series, out),
                };
                let point = &self.points[at];
                let mut bits = point.bits;
                if point.kind == Kind::Text {
                    let text = point.bits as usize..point.bits as usize + point.text_len as usize;
                    bits = out.strings.len() as u64;
                    out.strings.push(self.texts[text].into());
                }
                out.push(id, point.timestamp_ns, point.kind, bits);
            }
            self.accepted += seen;
        }
        self.units.clear();
        self.points.clear();
        self.keys.clear();
        self.texts.clear();
    }

    /// Before the first insert, so that a unit that is refused leaves no series behind.
    #[cold]
    fn check_new<P: Protocol>(&mut self, points: std::ops::Range<usize>, bounds: &Bounds) -> Result<(), Fault> {
        for point in self.points[points].iter().filter(|point| point.found.is_none()) {
            P::parse_key(whole_key(&self.keys, point, &mut self.scratch), bounds, &mut self.parsed)?;
        }
        Ok(())
    }

    /// Allocates, as a new series does anyway.
    #[cold]
    fn insert<P: Protocol>(
        &mut self,
        at: usize,
        bounds: &Bounds,
        series: &mut impl SeriesResolver,
        out: &mut Batch,
    ) -> SeriesRef {
        let point = &self.points[at];
        let raw = whole_key(&self.keys, point, &mut self.scratch);
        P::parse_key(raw, bounds, &mut self.parsed).expect("checked just before");
        let mut tags = self.parsed.tags().collect();
        self.overflow_key.clear();
        match series.insert(point.hash, raw, self.parsed.name(), &mut tags, &mut self.overflow_key) {
            Some(id) => SeriesRef::Known(id),
            None => {
                out.inline_keys.push(self.overflow_key.as_slice().into());
                SeriesRef::Inline(out.inline_keys.len() as u32 - 1)
            }
        }
    }
}

/// A point's value; texts are copied.
pub(super) enum Value<'a> {
    Plain(Kind, u64),
    Text(&'a [u8]),
}

#[inline]
fn whole_key<'a>(keys: &'a [u8], point: &Point, scratch: &'a mut Vec<u8>) -> &'a [u8] {
    if point.shared.1 == point.own.0 {
        return &keys[point.shared.0..point.own.1];
    }
    scratch.clear();
    scratch.extend_from_slice(&keys[point.shared.0..point.shared.1]);
    scratch.extend_from_slice(&keys[point.own.0..point.own.1]);
    scratch
}

/// A metric name and its tags, unescaped, in the order of the wire.
#[derive(Default)]
pub(super) struct ParsedKey {
    text: Vec<u8>,
    name_end: usize,
    /// Where in `text` a key ends and its value ends; it begins where the one before ends
    tags: Vec<(usize, usize)>,
}

impl ParsedKey {
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.tags.clear();
        self.name_end = 0;
    }

    /// Where the name is to be written, before any tag.
    pub(super) fn text(&mut self) -> &mut Vec<u8> {
        &mut self.text
    }

    /// Ends the name. A field called `value` is the metric itself; another one is appended to its name.
    pub(super) fn end_name(
        &mut self,
        missing: Fault,
        field: Option<&[u8]>,
        unescape: impl FnOnce(&[u8], &mut Vec<u8>),
        bounds: &Bounds,
    ) -> Result<(), Fault> {
        if self.text.is_empty() {
            return Err(missing);
        }
        if let Some(field) = field.filter(|&field| field != b"value") {
            self.text.push(b'_');
            unescape(field, &mut self.text);
        }
        self.name_end = self.text.len();
        check(&self.text, "a metric name", bounds.name_bytes_max)
    }

    pub(super) fn tag(
        &mut self,
        key: &[u8],
        value: &[u8],
        unescape: impl Fn(&[u8], &mut Vec<u8>),
        bounds: &Bounds,
    ) -> Result<(), Fault> {
        if key.is_empty() {
            return Err(Fault::MissingTagKey);
        }
        if self.tags.len() >= usize::from(bounds.tags_max) {
            return Err(Fault::TooManyTags { tags_max: bounds.tags_max });
        }
        let start = self.text.len();
        unescape(key, &mut self.text);
        let key_end = self.text.len();
        check(&self.text[start..], "a tag key", bounds.tag_bytes_max)?;
        unescape(value, &mut self.text);
        check(&self.text[key_end..], "a tag value", bounds.tag_bytes_max)?;
        self.tags.push((key_end, self.text.len()));
        Ok(())
    }

    fn name(&self) -> &[u8] {
        &self.text[..self.name_end]
    }

    fn tags(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let starts = std::iter::once(self.name_end).chain(self.tags.iter().map(|&(_, end)| end));
        starts.zip(&self.tags).map(|(start, &(key_end, end))| (&self.text[start..key_end], &self.text[key_end..end]))
    }
}

/// Series keys are separated by 0xFE and 0xFF, which UTF-8 cannot contain; control characters would break every text
/// format behind us.
fn check(text: &[u8], what: &'static str, bytes_max: u16) -> Result<(), Fault> {
    if text.len() > usize::from(bytes_max) {
        return Err(Fault::TooLong { what, bytes_max: bytes_max.into() });
    }
    match std::str::from_utf8(text) {
        Ok(text) if !text.chars().any(char::is_control) => Ok(()),
        _ => Err(Fault::NotText { what }),
    }
}
