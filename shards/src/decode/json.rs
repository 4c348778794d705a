//! Metrics as JSON, by the tape of simd-json.
//!
//! Three documents are accepted: `{"metrics":[..]}`, `[..]`, and one element alone. An element is either native,
//! `{"name","value","timestamp"?,"tags"?}`, or Telegraf's, `{"name","tags"?,"fields":{..},"timestamp"?}`, whose fields
//! become points named `name_field`, or `name` when the field is `value`. An element with a `value` is native.
//!
//! - Unknown keys are ignored; of equal keys the last wins, in `fields` and `tags` too (every tag must be a good one).
//! - A native value is a number. A field may also be a string or a boolean, which are kept as such.
//! - An integer of at most 2^53 is a float like any other number; beyond that it stays an integer while it fits in 64
//!   bits. A number that overflows a float is refused alone, not with its document.
//! - A tag is a string; a number or a boolean becomes one as it is written (Telegraf sends neither).
//! - A timestamp may have a fraction, which is read exactly; `null` for it, or for the tags, is like none.
//!
//! The tape forgets how numbers were written, and fails on those beyond 64 bits. So the scan works in a copy, and where
//! the text of a number matters it is found in the body by the place of its key.

use simd_json::{Buffers, ErrorType, INPUT_PADDING, Node, StaticNode, Tape};

use super::fault::Fault;
use super::group::{Group, ParsedKey, Protocol, Value};
use super::{Bounds, TimestampUnit, number, time};
use crate::point::{Batch, Kind, NO_TIMESTAMP, Rejections, SeriesResolver};

/// First byte of raw keys, what stands before each tag, and what between its key and value and before a field.
const RAW_KEY: u8 = b'J';
const TAG_MARK: u8 = 0xFF;
const PAIR_MARK: u8 = 0xFE;

/// The whole document is refused: it is no JSON, or of no shape we know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (at byte {offset})")]
pub struct JsonError {
    /// In the body, from 0
    pub offset: usize,
    /// One sentence, no newline
    pub message: String,
}

/// Decodes JSON bodies; keeps its scratch, some six times the largest body.
pub struct JsonDecoder {
    group: Group,
    buffers: Buffers,
    /// What `buffers` was made for
    depth_max: u16,
    /// The body and what simd-json wants behind it; strings are unescaped in it
    copy: Vec<u8>,
    tape: Tape<'static>,
    order: Vec<u32>,
}

impl Default for JsonDecoder {
    fn default() -> JsonDecoder {
        JsonDecoder::new()
    }
}

impl JsonDecoder {
    pub fn new() -> JsonDecoder {
        JsonDecoder {
            group: Group::default(),
            buffers: Buffers::with_max_depth(0, 0),
            depth_max: 0,
            copy: Vec::new(),
            tape: Tape(Vec::new()),
            order: Vec::new(),
        }
    }

    /// Appends the points of `body` to `out` and what is wrong with its elements to `rejected`; `index` there counts
    /// elements from 0. An error means that nothing was appended.
    pub fn decode(
        &mut self,
        body: &[u8],
        unit: TimestampUnit,
        bounds: &Bounds,
        series: &mut impl SeriesResolver,
        out: &mut Batch,
        rejected: &mut Rejections,
    ) -> Result<(), JsonError> {
        if self.depth_max != bounds.json_depth_max {
            self.depth_max = bounds.json_depth_max;
            self.buffers = Buffers::with_max_depth(0, usize::from(bounds.json_depth_max));
        }
        let spare = std::mem::replace(&mut self.tape, Tape(Vec::new()));
        copy_padded(body, &mut self.copy);
        let mut numbers_lost = false;
        let copy_at = self.copy.as_ptr() as usize;
        let (mut parsed, mut tape) = fill(&mut self.copy, &mut self.buffers, spare);
        if parsed.as_ref().is_err_and(|error| *error.error() == ErrorType::InvalidNumber) {
            let spare = tape.reset();
            copy_padded(body, &mut self.copy);
            numbers_lost = blank_long_numbers(&mut self.copy[..body.len()]);
            (parsed, tape) = fill(&mut self.copy, &mut self.buffers, spare);
        }
        let result = match parsed {
            Ok(()) => {
                let text = Text { body, copy_at, numbers_lost };
                let group = &mut self.group;
                let mut elements = Elements { text, nodes: &tape.0, unit, bounds, group, order: &mut self.order };
                elements.decode(series, out, rejected)
            }
            Err(error) => Err(describe(&error, body, bounds)),
        };
        self.tape = tape.reset();
        result
    }
}

/// `copy` keeps its capacity, so this does not move it between the two attempts at one body.
fn copy_padded(body: &[u8], copy: &mut Vec<u8>) {
    copy.clear();
    copy.reserve(body.len() + INPUT_PADDING);
    copy.extend_from_slice(body);
    copy.resize(body.len() + INPUT_PADDING, b' ');
}

fn fill<'a>(
    copy: &'a mut [u8],
    buffers: &mut Buffers,
    spare: Tape<'static>,
) -> (Result<(), simd_json::Error>, Tape<'a>) {
    let len = copy.len() - INPUT_PADDING;
    let mut tape = spare.reset();
    let parsed = simd_json::fill_tape_padded(copy, len, buffers, &mut tape);
    (parsed, tape)
}

/// Writes 0 and spaces over the numbers that simd-json may fail on: all that are long or have an exponent. Only over
/// valid ones, so the document stays as valid as it was. Answers whether there were any.
#[cold]
fn blank_long_numbers(document: &mut [u8]) -> bool {
    let mut any = false;
    let mut at = 0;
    while let Some(&byte) = document.get(at) {
        if byte == b'"' {
            at = after_string(document, at + 1);
        } else if is_number_byte(byte) {
            let end = at + document[at..].iter().take_while(|&&byte| is_number_byte(byte)).count();
            let token = &mut document[at..end];
            let lossy = token.len() >= 19 || token.iter().any(|byte| matches!(byte, b'e' | b'E'));
            if lossy && is_json_number(token) {
                token.fill(b' ');
                token[0] = b'0';
                any = true;
            }
            at = end;
        } else {
            at += 1;
        }
    }
    any
}

fn is_number_byte(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')
}

/// The grammar of RFC 8259: stricter than [`number::scan`], which takes `5.`, `.5` and `007` as well.
fn is_json_number(token: &[u8]) -> bool {
    let unsigned = token.strip_prefix(b"-").unwrap_or(token);
    let integer = unsigned.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let after = unsigned.get(integer..).unwrap_or_default();
    let fraction_ok = after.first() != Some(&b'.') || after.get(1).is_some_and(u8::is_ascii_digit);
    let zero_ok = integer == 1 || unsigned.first() != Some(&b'0');
    integer > 0 && zero_ok && fraction_ok && number::scan(token).is_some_and(|(_, len)| len == token.len())
}

/// `at` is the first byte inside a string; answers what follows its closing quote.
fn after_string(document: &[u8], mut at: usize) -> usize {
    while let Some(found) = document.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found;
        if document[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    document.len()
}

/// Finds numbers as they were written.
#[derive(Clone, Copy)]
struct Text<'a> {
    body: &'a [u8],
    /// Address of the copy that the strings of the tape point into
    copy_at: usize,
    /// Some numbers of the tape are wrong
    numbers_lost: bool,
}

impl<'a> Text<'a> {
    /// The number that is the value of `key`, a string of the tape. A string keeps its place when it is unescaped, and
    /// `body` still has the escapes.
    fn number_after(self, key: &str) -> &'a [u8] {
        let start = (key.as_ptr() as usize).wrapping_sub(self.copy_at);
        let mut at = after_string(self.body, start);
        while let Some(b' ' | b'\t' | b'\n' | b'\r' | b':') = self.body.get(at) {
            at += 1;
        }
        let rest = self.body.get(at..).unwrap_or_default();
        &rest[..rest.iter().take_while(|&&byte| is_number_byte(byte)).count()]
    }

    fn value(self, key: &str, node: Node<'_>) -> Result<Value<'static>, Fault> {
        let Node::Static(node) = node else { return Err(Fault::ValueNoNumber) };
        if matches!(node, StaticNode::Null | StaticNode::Bool(_)) {
            return Err(Fault::ValueNoNumber);
        }
        let (kind, bits) = match node {
            _ if self.numbers_lost => written_value(self.number_after(key))?,
            StaticNode::U64(value) => integer(value, false),
            // the tape has positive integers as U64, so this zero was written "-0"
            StaticNode::I64(0) => (Kind::Float, (-0.0_f64).to_bits()),
            StaticNode::I64(value) => integer(value.unsigned_abs(), true),
            StaticNode::F64(value) => (Kind::Float, value.to_bits()),
            _ => return Err(Fault::ValueNoNumber),
        };
        Ok(Value::Plain(kind, bits))
    }

    fn timestamp(self, key: &str, node: Node<'_>, unit: TimestampUnit) -> Result<i64, Fault> {
        match node {
            Node::Static(StaticNode::Null) => Ok(NO_TIMESTAMP),
            Node::Static(StaticNode::Bool(_)) => Err(Fault::BadTimestamp),
            Node::Static(_) if self.numbers_lost => time::from_decimal(self.number_after(key), unit),
            Node::Static(StaticNode::I64(value)) => time::from_integer(value, unit),
            Node::Static(StaticNode::U64(value)) => {
                time::from_integer(i64::try_from(value).map_err(|_| Fault::BadTimestamp)?, unit)
            }
            Node::Static(_) => time::from_decimal(self.number_after(key), unit),
            _ => Err(Fault::BadTimestamp),
        }
    }
}

fn integer(magnitude: u64, negative: bool) -> (Kind, u64) {
    if magnitude <= 1 << 53 {
        let value = magnitude as f64;
        (Kind::Float, if negative { -value } else { value }.to_bits())
    } else if negative {
        (Kind::Int, magnitude.wrapping_neg())
    } else if magnitude <= i64::MAX as u64 {
        (Kind::Int, magnitude)
    } else {
        (Kind::UInt, magnitude)
    }
}

#[cold]
fn written_value(text: &[u8]) -> Result<(Kind, u64), Fault> {
    let (decimal, _) = number::scan(text).ok_or(Fault::ValueNoNumber)?;
    if decimal.integer && !(decimal.negative && decimal.mantissa == 0) {
        if let Some(value) = decimal.to_i64(text) {
            return Ok(integer(value.unsigned_abs(), value < 0));
        }
        if let Some(value) = decimal.to_u64(text) {
            return Ok(integer(value, false));
        }
    }
    let value = decimal.to_f64(text);
    if value.is_finite() { Ok((Kind::Float, value.to_bits())) } else { Err(Fault::NonFinite) }
}

/// Walks the tape. Without recursion: what is unknown is skipped by its length.
struct Elements<'a, 'tape> {
    text: Text<'a>,
    nodes: &'a [Node<'tape>],
    unit: TimestampUnit,
    bounds: &'a Bounds,
    group: &'a mut Group,
    order: &'a mut Vec<u32>,
}

impl<'tape> Elements<'_, 'tape> {
    fn decode(
        &mut self,
        series: &mut impl SeriesResolver,
        out: &mut Batch,
        rejected: &mut Rejections,
    ) -> Result<(), JsonError> {
        self.group.clear();
        let (mut at, count) = match self.node(0) {
            Node::Array { len, .. } => (1, len),
            Node::Object { .. } => match self.member(0, "metrics") {
                Some((_, at)) => match self.node(at) {
                    Node::Array { len, .. } => (at + 1, len),
                    _ => return Err(no_known_shape()),
                },
                None if ["name", "value", "fields"].iter().any(|key| self.member(0, key).is_some()) => (0, 1),
                None => return Err(no_known_shape()),
            },
            _ => return Err(no_known_shape()),
        };
        for index in 0..count {
            match self.element(at) {
                Ok(timestamp_ns) => self.group.end(index, timestamp_ns),
                Err(fault) => {
                    let points = self.group.seen().max(1);
                    self.group.abandon();
                    self.group.resolve(&Documents, self.bounds, series, out, rejected); // refusals keep their order
                    Documents.refuse(index, fault, points, rejected);
                }
            }
            if self.group.is_full() {
                self.group.resolve(&Documents, self.bounds, series, out, rejected);
            }
            at = self.after(at);
        }
        self.group.resolve(&Documents, self.bounds, series, out, rejected);
        Ok(())
    }

    fn element(&mut self, at: usize) -> Result<i64, Fault> {
        let Node::Object { len, .. } = self.node(at) else { return Err(Fault::NotAnObject) };
        let (mut name, mut value, mut timestamp, mut tags, mut fields) = (None, None, None, None, None);
        let mut at = at + 1;
        for _ in 0..len {
            let key = self.string(at);
            let member = Some((key, at + 1));
            match key {
                "name" => name = member,
                "value" => value = member,
                "timestamp" => timestamp = member,
                "tags" => tags = member,
                "fields" => fields = member,
                _ => {}
            }
            at = self.after(at + 1);
        }

        self.group.begin().push(RAW_KEY);
        match name.map(|(_, at)| self.node(at)) {
            Some(Node::String(name)) if !name.is_empty() => self.group.shared().extend_from_slice(name.as_bytes()),
            _ => return Err(Fault::NoName),
        }
        let timestamp_ns = match timestamp {
            Some((key, at)) => self.text.timestamp(key, self.node(at), self.unit)?,
            None => NO_TIMESTAMP,
        };
        if let Some((_, at)) = tags {
            self.tags(at)?;
        }
        if self.group.shared_part_is_written() > self.bounds.series_bytes_max as usize {
            return Err(Fault::TooLong { what: "name and tags", bytes_max: self.bounds.series_bytes_max });
        }
        match (value, fields) {
            (Some((key, at)), _) => {
                let value = self.text.value(key, self.node(at))?;
                self.group.point(PAIR_MARK, None, value, self.bounds);
            }
            (None, Some((_, at))) => self.fields(at)?,
            (None, None) => return Err(Fault::NoValue),
        }
        Ok(timestamp_ns)
    }

    /// Writes the tags to the raw key.
    fn tags(&mut self, at: usize) -> Result<(), Fault> {
        let len = match self.node(at) {
            Node::Object { len, .. } => len,
            Node::Static(StaticNode::Null) => 0,
            _ => return Err(Fault::TagsNoObject),
        };
        let mut at = at + 1;
        for _ in 0..len {
            let key = self.string(at);
            let value = match self.node(at + 1) {
                Node::String(value) => value.as_bytes(),
                Node::Static(StaticNode::Bool(true)) => b"true",
                Node::Static(StaticNode::Bool(false)) => b"false",
                Node::Static(StaticNode::Null) | Node::Array { .. } | Node::Object { .. } => {
                    return Err(Fault::TagType);
                }
                Node::Static(_) => self.text.number_after(key),
            };
            let raw = self.group.shared();
            raw.push(TAG_MARK);
            raw.extend_from_slice(key.as_bytes());
            raw.push(PAIR_MARK);
            raw.extend_from_slice(value);
            at = self.after(at + 1);
        }
        Ok(())
    }

    fn fields(&mut self, at: usize) -> Result<(), Fault> {
        let Node::Object { len, .. } = self.node(at) else { return Err(Fault::FieldsNoObject) };
        if len == 0 {
            return Err(Fault::NoFields);
        }
        let unique = self.keys_are_unique(at, len);
        let mut fault = None;
        let mut at = at + 1;
        for _ in 0..len {
            let key = self.string(at);
            let overruled = !unique && self.order.binary_search(&(at as u32)).is_ok();
            let value = match self.node(at + 1) {
                Node::String(text) if text.len() > self.bounds.text_bytes_max as usize => {
                    Err(Fault::TooLong { what: "a string", bytes_max: self.bounds.text_bytes_max })
                }
                Node::String(text) => Ok(Value::Text(text.as_bytes())),
                Node::Static(StaticNode::Bool(value)) => Ok(Value::Plain(Kind::Bool, value.into())),
                node => self.text.value(key, node).map_err(|fault| match fault {
                    Fault::ValueNoNumber => Fault::FieldType,
                    fault => fault,
                }),
            };
            match value {
                _ if overruled => {}
                Ok(value) => self.group.point(PAIR_MARK, Some(key.as_bytes()), value, self.bounds),
                Err(found) => {
                    // counted like the others, so that all fields of the element are
                    fault = fault.or(Some(found));
                    self.group.point(PAIR_MARK, None, Value::Plain(Kind::Bool, 0), self.bounds);
                }
            }
            at = self.after(at + 1);
        }
        fault.map_or(Ok(()), Err)
    }

    /// Else `order` has the places of all keys that a later one overrules, ascending.
    fn keys_are_unique(&mut self, at: usize, len: usize) -> bool {
        self.order.clear();
        let mut at = at + 1;
        for _ in 0..len {
            self.order.push(at as u32); // a body is shorter than 4 GiB, or simd-json refuses it
            at = self.after(at + 1);
        }
        let nodes = self.nodes;
        let key = |&at: &u32| string(nodes, at as usize);
        if len <= 8 {
            let order = &self.order;
            if (1..len).all(|n| order[..n].iter().all(|before| key(before) != key(&order[n]))) {
                return true;
            }
        }
        self.order.sort_unstable_by_key(|at| (key(at), *at));
        let mut kept = 0;
        for n in 1..len {
            if key(&self.order[n - 1]) == key(&self.order[n]) {
                self.order[kept] = self.order[n - 1];
                kept += 1;
            }
        }
        self.order.truncate(kept);
        self.order.sort_unstable();
        kept == 0
    }

    /// The last member of the object at `at` with that key: its key, and where its value is.
    fn member(&self, at: usize, wanted: &str) -> Option<(&'tape str, usize)> {
        let Node::Object { len, .. } = self.node(at) else { return None };
        let mut found = None;
        let mut at = at + 1;
        for _ in 0..len {
            let key = self.string(at);
            if key == wanted {
                found = Some((key, at + 1));
            }
            at = self.after(at + 1);
        }
        found
    }

    #[inline]
    fn node(&self, at: usize) -> Node<'tape> {
        node(self.nodes, at)
    }

    #[inline]
    fn string(&self, at: usize) -> &'tape str {
        string(self.nodes, at)
    }

    /// Where the value after the one at `at` stands.
    #[inline]
    fn after(&self, at: usize) -> usize {
        match self.node(at) {
            Node::Object { count, .. } | Node::Array { count, .. } => at + 1 + count,
            _ => at + 1,
        }
    }
}

#[inline]
fn node<'tape>(nodes: &[Node<'tape>], at: usize) -> Node<'tape> {
    nodes.get(at).copied().unwrap_or(Node::Static(StaticNode::Null))
}

#[inline]
fn string<'tape>(nodes: &[Node<'tape>], at: usize) -> &'tape str {
    match node(nodes, at) {
        Node::String(text) => text,
        _ => "",
    }
}

struct Documents;

impl Protocol for Documents {
    fn parse_key(raw: &[u8], bounds: &Bounds, parsed: &mut ParsedKey) -> Result<(), Fault> {
        let copy = |text: &[u8], out: &mut Vec<u8>| out.extend_from_slice(text);
        let split = |part: &'_ [u8]| part.iter().position(|&byte| byte == PAIR_MARK);
        parsed.clear();
        // JSON is UTF-8, so the marks are nobody else's. A field follows the last tag, or the name.
        let mut parts = raw[1..].split(|&byte| byte == TAG_MARK);
        let first = parts.next().unwrap_or_default();
        let last = parts.clone().next_back().map_or(Some(first), |tag| split(tag).map(|at| &tag[at + 1..]));
        let field = last.and_then(|last| split(last).map(|at| &last[at + 1..]));
        parsed.text().extend_from_slice(&first[..split(first).unwrap_or(first.len())]);
        parsed.end_name(Fault::NoName, field, copy, bounds)?;
        for tag in parts {
            let at = split(tag).unwrap_or(tag.len());
            let value = tag.get(at + 1..).unwrap_or_default();
            parsed.tag(&tag[..at], &value[..split(value).unwrap_or(value.len())], copy, bounds)?;
        }
        Ok(())
    }

    fn refuse(&self, place: usize, fault: Fault, points: u32, rejected: &mut Rejections) {
        rejected.add(u32::try_from(place).unwrap_or(u32::MAX), fault.reason(), points, || fault.to_string());
    }
}

#[cold]
fn no_known_shape() -> JsonError {
    let message = "the document must be {\"metrics\":[..]}, an array of metrics, or one metric with a name".to_owned();
    JsonError { offset: 0, message }
}

/// The errors of simd-json's first pass carry no place, so it is looked for.
#[cold]
fn describe(error: &simd_json::Error, body: &[u8], bounds: &Bounds) -> JsonError {
    if let Err(error) = std::str::from_utf8(body) {
        return JsonError { offset: error.valid_up_to(), message: "invalid JSON: not UTF-8".to_owned() };
    }
    // both that, and a document that does not begin well, have the same error; it is at the last byte that was good
    let after_end = match error.error() {
        ErrorType::TrailingData => true,
        ErrorType::InternalError => {
            let before = body.get(..error.index()).unwrap_or_default().trim_ascii_end();
            matches!(body.get(error.index()), Some(b']' | b'}')) && before.last() != Some(&b',')
        }
        _ => false,
    };
    let (offset, what) = match error.error() {
        ErrorType::DepthLimitExceeded => {
            let depth_max = bounds.json_depth_max;
            let message = format!("invalid JSON: more than {depth_max} arrays and objects inside each other");
            return JsonError { offset: error.index(), message };
        }
        ErrorType::InputTooLarge => (0, "the document is too large"),
        ErrorType::Eof => (body.len(), "it is empty or ends too early"),
        ErrorType::InvalidNumber => (error.index(), "invalid number"),
        // the vector code for strings tells no place
        ErrorType::InvalidEscape | ErrorType::InvalidUnicodeCodepoint | ErrorType::InvalidUtf8 => {
            (bad_escape(body).unwrap_or(0), "invalid escape in a string")
        }
        _ if after_end => (after_blanks(body, error.index() + 1), "something follows the document"),
        _ if error.index() == 0 => bad_string(body).unwrap_or((0, "unexpected character")),
        ErrorType::Syntax => (body.len(), "it ends too early"),
        _ => (error.index(), "unexpected character"),
    };
    JsonError { offset: offset.min(body.len()), message: format!("invalid JSON: {what}") }
}

fn after_blanks(body: &[u8], at: usize) -> usize {
    let rest = body.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|&&byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count()
}

/// The first backslash that begins no escape, or half of a surrogate pair.
fn bad_escape(body: &[u8]) -> Option<usize> {
    let unit = |at: usize| {
        let digits = std::str::from_utf8(body.get(at + 2..at + 6)?).ok()?;
        let hex = body.get(at..at + 2)? == b"\\u" && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
    };
    let mut at = 0;
    while let Some(found) = body.get(at..).and_then(|rest| memchr::memchr(b'\\', rest)) {
        at += found;
        at += match body.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') => match unit(at) {
                Some(0xD800..0xDC00) if matches!(unit(at + 6), Some(0xDC00..0xE000)) => 12,
                Some(0..0xD800 | 0xE000..) => 6,
                _ => return Some(at),
            },
            _ => return Some(at),
        };
    }
    None
}

/// The first string that has a control character in it, or no end.
fn bad_string(body: &[u8]) -> Option<(usize, &'static str)> {
    let mut at = 0;
    while let Some(found) = body.get(at..).and_then(|rest| memchr::memchr(b'"', rest)) {
        let start = at + found;
        at = after_string(body, start + 1);
        if let Some(control) = body[start..at.min(body.len())].iter().position(|&byte| byte < b' ') {
            return Some((start + control, "a control character in a string needs an escape"));
        }
        if at >= body.len() && (body.last() != Some(&b'"') || start + 1 == body.len()) {
            return Some((start, "a string without an end"));
        }
    }
    None
}
