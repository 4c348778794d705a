//! The words the stages of a shard share: series ids, point columns, the reasons a point can be refused for.
//!
//! Stages (`http`, `limiter`, `decode`, `series`, `window`, `log`) do not import each other; they meet in the types
//! here, and only `shard` knows all of them.

/// Which protocol a batch came in by. Stored in records: numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// `POST /metrics`
    Json = 0,
    /// `POST /write`, `/api/v2/write`, `/api/v3/write_lp`
    Influx = 1,
}

impl Protocol {
    pub const ALL: [Protocol; 2] = [Protocol::Json, Protocol::Influx];
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Json => "json",
            Protocol::Influx => "influx",
        }
    }
    pub const fn from_u8(n: u8) -> Option<Protocol> {
        match n {
            0 => Some(Protocol::Json),
            1 => Some(Protocol::Influx),
            _ => None,
        }
    }
}

/// A series of one shard's table. Dense, reused only after the segment that named it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct SeriesId(pub u32);

/// Where a point's series is found: in the shard's table, or (when the client is at its limit of live series) only
/// in the batch itself, as `Batch::inline_keys[n]`; such points fold into `__overflow__`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeriesRef {
    Known(SeriesId),
    Inline(u32),
}

/// The top bit of a stored series number says "inline key" (see [`SeriesRef`]).
pub const INLINE_BIT: u32 = 1 << 31;

impl SeriesRef {
    pub const fn to_bits(self) -> u32 {
        match self {
            SeriesRef::Known(id) => id.0,
            SeriesRef::Inline(n) => n | INLINE_BIT,
        }
    }
    pub const fn from_bits(bits: u32) -> SeriesRef {
        if bits & INLINE_BIT != 0 { SeriesRef::Inline(bits & !INLINE_BIT) } else { SeriesRef::Known(SeriesId(bits)) }
    }
}

/// What a value was on the wire. Stored in records: numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// `bits` is `f64::to_bits`
    Float = 0,
    /// `bits` is an `i64`
    Int = 1,
    /// `bits` is a `u64`
    UInt = 2,
    /// `bits` is 0 or 1; kept for forwarding, not aggregated
    Bool = 3,
    /// `bits` is an index into `Batch::strings`; kept for forwarding, not aggregated
    Text = 4,
}

impl Kind {
    pub const fn from_u8(n: u8) -> Option<Kind> {
        Some(match n {
            0 => Kind::Float,
            1 => Kind::Int,
            2 => Kind::UInt,
            3 => Kind::Bool,
            4 => Kind::Text,
            _ => return None,
        })
    }
    /// The number that the windows fold, `None` for what is only kept. Zero is stored as +0.
    #[inline]
    pub fn number(self, bits: u64) -> Option<f64> {
        match self {
            Kind::Float => Some(f64::from_bits(bits) + 0.0),
            Kind::Int => Some(bits as i64 as f64),
            Kind::UInt => Some(bits as f64),
            Kind::Bool | Kind::Text => None,
        }
    }
}

/// "The client gave no timestamp": the record's receive stamp stands for it, and the point has no identity.
pub const NO_TIMESTAMP: i64 = i64::MIN;

/// The points of one request, column by column. All columns but the last two have one entry a point.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Batch {
    /// [`SeriesRef::to_bits`]
    pub series: Vec<u32>,
    /// Unix time in ns, or [`NO_TIMESTAMP`]
    pub timestamps_ns: Vec<i64>,
    /// [`Kind`] as u8
    pub kinds: Vec<u8>,
    /// The value's bits, read by its kind
    pub bits: Vec<u64>,
    /// Canonical series keys (see `series_key`) of points over the series limit
    pub inline_keys: Vec<Box<[u8]>>,
    /// Text field values
    pub strings: Vec<Box<[u8]>>,
}

impl Batch {
    pub fn len(&self) -> usize {
        self.series.len()
    }
    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }
    pub fn clear(&mut self) {
        self.series.clear();
        self.timestamps_ns.clear();
        self.kinds.clear();
        self.bits.clear();
        self.inline_keys.clear();
        self.strings.clear();
    }
    #[inline]
    pub fn push(&mut self, series: SeriesRef, timestamp_ns: i64, kind: Kind, bits: u64) {
        self.series.push(series.to_bits());
        self.timestamps_ns.push(timestamp_ns);
        self.kinds.push(kind as u8);
        self.bits.push(bits);
    }
}

/// One record as the fold sees it, whether it was just flushed or is read back after a restart.
/// Series numbers are already those of the folding table (`log` maps a segment's own numbers).
#[derive(Debug, Clone, Copy)]
pub struct FoldInput<'a> {
    pub protocol: Protocol,
    /// Client id as it stands in the series keys; for `__overflow__`
    pub client: &'a str,
    /// Receive stamp, ns of the fold clock
    pub stamp_ns: i64,
    /// The record's `same_timestamp = "all"` choice: its points have no identity
    pub same_timestamp_all: bool,
    pub batch: &'a Batch,
}

/// Why one point was refused. Its name is the `reason` label of the counters and the text clients see first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// Not of the shape the format asks for
    Malformed = 0,
    /// No metric name, or an empty one
    MissingName,
    /// No value, or no field
    MissingValue,
    /// The value is no number (JSON), or no known field type
    InvalidValue,
    /// NaN or an infinity, or a number that overflows to one
    NonFinite,
    /// No integer in the unit's range
    InvalidTimestamp,
    /// A tag with an empty key or a value of the wrong type
    InvalidTag,
    /// Name, tag or text longer than its limit
    TooLong,
    /// More tags than the limit
    TooManyTags,
    /// Not UTF-8, or a control character where none may be
    InvalidText,
    /// More points than one request may hold
    TooManyPoints,
}

impl Reason {
    pub const COUNT: usize = 11;
    pub const ALL: [Reason; Self::COUNT] = [
        Reason::Malformed,
        Reason::MissingName,
        Reason::MissingValue,
        Reason::InvalidValue,
        Reason::NonFinite,
        Reason::InvalidTimestamp,
        Reason::InvalidTag,
        Reason::TooLong,
        Reason::TooManyTags,
        Reason::InvalidText,
        Reason::TooManyPoints,
    ];
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed",
            Reason::MissingName => "missing_name",
            Reason::MissingValue => "missing_value",
            Reason::InvalidValue => "invalid_value",
            Reason::NonFinite => "non_finite",
            Reason::InvalidTimestamp => "invalid_timestamp",
            Reason::InvalidTag => "invalid_tag",
            Reason::TooLong => "too_long",
            Reason::TooManyTags => "too_many_tags",
            Reason::InvalidText => "invalid_text",
            Reason::TooManyPoints => "too_many_points",
        }
    }
}

/// What a decoder refused: counts by reason, and the first few with words.
#[derive(Debug, Default, Clone)]
pub struct Rejections {
    pub by_reason: [u32; Reason::COUNT],
    pub first: Vec<Rejection>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Rejection {
    /// Line number from 1 (line protocol) or element index from 0 (JSON)
    pub index: u32,
    pub reason: Reason,
    /// One sentence that says what is wrong and what would be right; no newline
    pub message: String,
}

impl Rejections {
    /// Words are kept for this many; all are counted.
    pub const FIRST_MAX: usize = 5;

    pub fn clear(&mut self) {
        self.by_reason = [0; Reason::COUNT];
        self.first.clear();
    }
    pub fn total(&self) -> u32 {
        self.by_reason.iter().sum()
    }
    /// Counts `points` refused points; `message` runs only while words are kept.
    pub fn add(&mut self, index: u32, reason: Reason, points: u32, message: impl FnOnce() -> String) {
        self.by_reason[reason as usize] += points;
        if self.first.len() < Self::FIRST_MAX {
            self.first.push(Rejection { index, reason, message: message() });
        }
    }
}

/// How a decoder finds series without knowing the table: first by the raw bytes the client sent (cheap, no parsing),
/// and only on a miss by parsed name and tags.
///
/// A raw key is any bytes that name the series unambiguously *within a protocol* (line protocol: the raw
/// `measurement,tags` span, 0xFF, the raw field key). Decoders start it with a byte of their own.
pub trait SeriesResolver {
    /// Keyed hash of a raw key (flooding-resistant).
    fn hash(&self, raw: &[u8]) -> u64;
    /// Asks the memory for what `get` will read.
    fn prefetch(&self, hash: u64);
    /// A hit compares the bytes.
    fn get(&mut self, hash: u64, raw: &[u8]) -> Option<SeriesId>;
    /// Makes (or finds) the series of `name` and `tags`, unescaped, in any order; sorts them, lets the last of equal
    /// tag keys win, drops tags with empty values, adds the static and client tags where absent, and remembers `raw`.
    /// Over the series limit it answers `None` and leaves the canonical key in `overflow_key`.
    fn insert(
        &mut self,
        hash: u64,
        raw: &[u8],
        name: &[u8],
        tags: &mut Vec<(&[u8], &[u8])>,
        overflow_key: &mut Vec<u8>,
    ) -> Option<SeriesId>;
}

/// The canonical series key: what the log stores, what the reducer merges by, what readers parse.
///
/// `client 0xFF name (0xFF tagkey 0xFE tagvalue)*`, tags sorted by key bytes. 0xFE and 0xFF never occur in UTF-8, so
/// equal keys mean equal series and the form needs no escapes.
pub mod series_key {
    pub const FIELD: u8 = 0xFF;
    pub const PAIR: u8 = 0xFE;
    /// Name of the series that take in what is over the limit of live series.
    pub const OVERFLOW_NAME: &str = "__overflow__";

    /// `tags` must be sorted by key, keys unique.
    pub fn write(out: &mut Vec<u8>, client: &[u8], name: &[u8], tags: &[(&[u8], &[u8])]) {
        out.extend_from_slice(client);
        out.push(FIELD);
        out.extend_from_slice(name);
        for (key, value) in tags {
            out.push(FIELD);
            out.extend_from_slice(key);
            out.push(PAIR);
            out.extend_from_slice(value);
        }
    }

    /// A key taken apart; borrowed, in the key's order. `None` when the bytes are no canonical key.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Parsed<'a> {
        pub client: &'a str,
        pub name: &'a str,
        pub tags: Vec<(&'a str, &'a str)>,
    }

    pub fn parse(key: &[u8]) -> Option<Parsed<'_>> {
        let mut fields = key.split(|&b| b == FIELD);
        let client = std::str::from_utf8(fields.next()?).ok()?;
        let name = std::str::from_utf8(fields.next()?).ok()?;
        let mut tags = Vec::new();
        for field in fields {
            let at = field.iter().position(|&b| b == PAIR)?;
            tags.push((std::str::from_utf8(&field[..at]).ok()?, std::str::from_utf8(&field[at + 1..]).ok()?));
        }
        Some(Parsed { client, name, tags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_key_comes_apart_as_it_was_put_together() {
        let mut key = Vec::new();
        series_key::write(&mut key, b"10.0.0.1", b"cpu", &[(b"dc", b"eu"), (b"host", b"a")]);
        let parsed = series_key::parse(&key).expect("just written");
        assert_eq!((parsed.client, parsed.name), ("10.0.0.1", "cpu"));
        assert_eq!(parsed.tags, vec![("dc", "eu"), ("host", "a")]);
        assert_eq!(series_key::parse(b"no separator"), None);
    }

    #[test]
    fn a_series_ref_survives_its_bits() {
        for r in [SeriesRef::Known(SeriesId(7)), SeriesRef::Inline(7)] {
            assert_eq!(SeriesRef::from_bits(r.to_bits()), r);
        }
    }
}
