//! Closed windows as bytes: the records of the aggregate log. FORMAT.md has the layout, byte by byte.
//!
//! Reading never panics, never allocates in proportion to a length it has not checked, and never reads past the buffer;
//! a record is checked to its end before the first result of it is used. All numbers are little-endian; varints are
//! LEB128. A record needs no other record to be read: keys are spelled out, front-coded against the one before.

use super::record::{Flags, WindowRecord};
use metricstream_shards::{
    point::series_key,
    window::{
        state::StateView,
        summary::{Aggregates, Quantiles},
    },
};

/// In the first byte of every record. Older ones stay readable; a newer one is refused.
pub const VERSION: u8 = 1;
/// Of Aggregates records in which an entry has its state.
pub const VERSION_WITH_STATE: u8 = 2;
/// Longest series key that is accepted, so that front coding cannot blow up a small record.
pub const KEY_BYTES_MAX: usize = 64 * 1024;

const HEADER_BYTES: usize = 24;
const FIXED_BYTES: usize = 32;

const INCOMPLETE: u8 = 1;
const UNCHECKED: u8 = 2;
const DAMAGED: u8 = 4;
/// All values were equal: min stands for max and the quantiles too
const ONE_VALUE: u8 = 8;
/// With `ONE_VALUE`: min stands for the sum too
const SUM_IS_MIN: u8 = 16;
/// p50, p95 and p99 were not wanted, and are not there
const NO_QUANTILES: u8 = 32;
/// What the result can be merged from stands behind it (version 2)
const STATE: u8 = 64;
const KNOWN_FLAGS: u8 = 63;

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("written by a newer version ({0})")]
    Newer(u8),
    #[error("ends in the middle")]
    Truncated,
    #[error("{0}")]
    Invalid(&'static str),
}

/// How far windows are closed: everything before this record is the whole truth for windows that end by M.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkRecord {
    pub era: u32,
    pub epoch: u64,
    pub m_ns: i64,
    pub floor_ns: i64,
}

/// The fold clock went back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EraRecord {
    pub era: u32,
    pub epoch: u64,
    pub from_ns: i64,
    pub to_ns: i64,
}

impl MarkRecord {
    pub fn encode(&self) -> [u8; FIXED_BYTES] {
        fixed(self.era, self.epoch, self.m_ns, self.floor_ns)
    }
    pub fn decode(bytes: &[u8]) -> Result<MarkRecord, Malformed> {
        let (era, epoch, m_ns, floor_ns) = read_fixed(bytes)?;
        if floor_ns > m_ns {
            return Err(Malformed::Invalid("the floor is above M"));
        }
        Ok(MarkRecord { era, epoch, m_ns, floor_ns })
    }
}

impl EraRecord {
    pub fn encode(&self) -> [u8; FIXED_BYTES] {
        fixed(self.era, self.epoch, self.from_ns, self.to_ns)
    }
    pub fn decode(bytes: &[u8]) -> Result<EraRecord, Malformed> {
        let (era, epoch, from_ns, to_ns) = read_fixed(bytes)?;
        Ok(EraRecord { era, epoch, from_ns, to_ns })
    }
}

fn fixed(era: u32, epoch: u64, a: i64, b: i64) -> [u8; FIXED_BYTES] {
    let mut out = [0; FIXED_BYTES];
    out[0] = VERSION;
    out[4..8].copy_from_slice(&era.to_le_bytes());
    out[8..16].copy_from_slice(&epoch.to_le_bytes());
    out[16..24].copy_from_slice(&a.to_le_bytes());
    out[24..32].copy_from_slice(&b.to_le_bytes());
    out
}

fn read_fixed(bytes: &[u8]) -> Result<(u32, u64, i64, i64), Malformed> {
    let mut r = Reader { rest: bytes };
    r.version()?;
    if r.array::<3>()? != [0; 3] {
        return Err(Malformed::Invalid("a reserved byte is set"));
    }
    let out = (
        u32::from_le_bytes(r.array()?),
        u64::from_le_bytes(r.array()?),
        i64::from_le_bytes(r.array()?),
        i64::from_le_bytes(r.array()?),
    );
    if !r.rest.is_empty() {
        return Err(Malformed::Invalid("bytes after the end"));
    }
    Ok(out)
}

/// Writes one Aggregates record after another into the same buffer.
#[derive(Debug, Default)]
pub struct AggregatesEncoder {
    bytes: Vec<u8>,
    previous_key: Vec<u8>,
    entries: u32,
    rule: bool,
}

impl AggregatesEncoder {
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }
    pub fn entries(&self) -> u32 {
        self.entries
    }
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    pub fn clear(&mut self) {
        self.entries = 0;
        self.bytes.clear();
    }

    /// Starts a record: results of one window of all series, or of one rule's outputs.
    pub fn begin(&mut self, rule: Option<&str>, window_s: u32, start_ms: i64, era: u32) {
        let rule_id = rule.unwrap_or("").as_bytes();
        let rule_length = u16::try_from(rule_id.len()).expect("rule ids are bounded by the configuration");
        self.clear();
        self.previous_key.clear();
        self.rule = rule.is_some();
        self.bytes.extend_from_slice(&[VERSION, u8::from(self.rule)]);
        self.bytes.extend_from_slice(&rule_length.to_le_bytes());
        self.bytes.extend_from_slice(&window_s.to_le_bytes());
        self.bytes.extend_from_slice(&start_ms.to_le_bytes());
        self.bytes.extend_from_slice(&era.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(rule_id);
    }

    /// Keys must ascend within a record. `state`: bytes of [`metricstream_shards::window::state`], or nothing; of values
    /// that are all equal it follows from the results, and is not stored.
    pub fn push(&mut self, key: &[u8], revision: u32, flags: Flags, series: u64, a: &Aggregates, state: &[u8]) {
        let shared = key.iter().zip(&self.previous_key).take_while(|(a, b)| a == b).count();
        let out = &mut self.bytes;
        varint(out, shared as u64);
        varint(out, (key.len() - shared) as u64);
        out.extend_from_slice(&key[shared..]);
        self.previous_key.truncate(shared);
        self.previous_key.extend_from_slice(&key[shared..]);

        let min = a.min.to_bits();
        let one_value = a.max.to_bits() == min && a.quantiles.is_none_or(|q| q.to_bits() == [min; 3]);
        let sum_is_min = one_value && a.sum.to_bits() == a.min.to_bits();
        let state = if one_value { &[][..] } else { state };
        if !state.is_empty() {
            out[0] = VERSION_WITH_STATE;
        }
        out.push(
            (u8::from(flags.incomplete) * INCOMPLETE)
                | (u8::from(flags.unchecked) * UNCHECKED)
                | (u8::from(flags.damaged) * DAMAGED)
                | (u8::from(one_value) * ONE_VALUE)
                | (u8::from(sum_is_min) * SUM_IS_MIN)
                | (u8::from(a.quantiles.is_none()) * NO_QUANTILES)
                | (u8::from(!state.is_empty()) * STATE),
        );
        varint(out, u64::from(revision));
        varint(out, a.count);
        if self.rule {
            varint(out, series);
        }
        let mut put = |value: f64| out.extend_from_slice(&value.to_le_bytes());
        put(a.min);
        if !sum_is_min {
            put(a.sum);
        }
        if !one_value {
            put(a.max);
            if let Some(q) = a.quantiles {
                [q.p50, q.p95, q.p99].into_iter().for_each(put);
            }
        }
        out.extend_from_slice(state);
        self.entries += 1;
        self.bytes[20..24].copy_from_slice(&self.entries.to_le_bytes());
    }
}

/// One result, borrowed from the record it was read from.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    pub key: &'a [u8],
    pub rule: Option<&'a str>,
    pub window_s: u32,
    pub start_ms: i64,
    pub aggregates: Aggregates,
    pub series: u64,
    pub era: u32,
    pub revision: u32,
    pub flags: Flags,
    /// What the result can be merged from, where it is stored
    pub state: Option<StateView<'a>>,
}

impl RecordView<'_> {
    pub fn to_record(&self) -> WindowRecord {
        WindowRecord {
            key: self.key.into(),
            rule: self.rule.map(Into::into),
            window_s: self.window_s,
            start_ms: self.start_ms,
            aggregates: self.aggregates,
            series: self.series,
            era: self.era,
            revision: self.revision,
            flags: self.flags,
        }
    }
}

/// Calls `each` with every result of an Aggregates record, in order; with none when the record is not right to its end.
pub fn decode_aggregates(bytes: &[u8], each: &mut impl FnMut(RecordView<'_>)) -> Result<(), Malformed> {
    walk(bytes, &mut |_| {})?;
    walk(bytes, each)
}

fn walk(bytes: &[u8], each: &mut impl FnMut(RecordView<'_>)) -> Result<(), Malformed> {
    let mut r = Reader { rest: bytes };
    let known_flags = if r.version_up_to(VERSION_WITH_STATE)? == VERSION { KNOWN_FLAGS } else { KNOWN_FLAGS | STATE };
    let is_rule = match r.byte()? {
        0 => false,
        1 => true,
        _ => return Err(Malformed::Invalid("unknown kind of output")),
    };
    let rule_length = usize::from(u16::from_le_bytes(r.array()?));
    let window_s = u32::from_le_bytes(r.array()?);
    let start_ms = i64::from_le_bytes(r.array()?);
    let era = u32::from_le_bytes(r.array()?);
    let entries = u32::from_le_bytes(r.array()?);
    debug_assert_eq!(bytes.len() - r.rest.len(), HEADER_BYTES);
    let rule = std::str::from_utf8(r.take(rule_length)?).map_err(|_| Malformed::Invalid("a rule id is not UTF-8"))?;
    if window_s == 0 || !is_rule && !rule.is_empty() {
        return Err(Malformed::Invalid("a header field is out of range"));
    }
    let rule = is_rule.then_some(rule);
    let mut key: Vec<u8> = Vec::new();
    for entry in 0..entries {
        let shared = r.length()?;
        let suffix_length = r.length()?;
        let suffix = r.take(suffix_length)?;
        if shared > key.len() || shared + suffix.len() > KEY_BYTES_MAX {
            return Err(Malformed::Invalid("a key is out of range"));
        }
        if entry > 0 && *suffix <= key[shared..] {
            return Err(Malformed::Invalid("keys do not ascend"));
        }
        key.truncate(shared);
        key.extend_from_slice(suffix);
        if series_key::parse(&key).is_none() {
            return Err(Malformed::Invalid("a key is not canonical"));
        }
        let bits = r.byte()?;
        if bits & !known_flags != 0
            || bits & (STATE | ONE_VALUE) == STATE | ONE_VALUE
            || bits & (ONE_VALUE | SUM_IS_MIN) == SUM_IS_MIN
        {
            return Err(Malformed::Invalid("unknown flags"));
        }
        let revision = u32::try_from(r.varint()?).map_err(|_| Malformed::Invalid("a revision is out of range"))?;
        let count = r.varint()?;
        let series = if is_rule { r.varint()? } else { 1 };
        if count == 0 || series == 0 {
            return Err(Malformed::Invalid("a result of no points"));
        }
        let min = r.value()?;
        let sum = if bits & SUM_IS_MIN != 0 { min } else { f64::from_le_bytes(r.array()?) };
        let max = if bits & ONE_VALUE != 0 { min } else { r.value()? };
        let quantiles = match bits & (ONE_VALUE | NO_QUANTILES) {
            0 => Some(Quantiles { p50: r.value()?, p95: r.value()?, p99: r.value()? }),
            ONE_VALUE => Some(Quantiles::all(min)),
            _ => None,
        };
        let ascending = |q: Quantiles| min <= q.p50 && q.p50 <= q.p95 && q.p95 <= q.p99 && q.p99 <= max;
        if sum.is_nan() || min > max || !quantiles.is_none_or(ascending) {
            return Err(Malformed::Invalid("results contradict each other"));
        }
        let state = if bits & STATE != 0 {
            let (state, length) = StateView::read(r.rest).ok_or(Malformed::Invalid("a state is malformed"))?;
            let no_sketch = bits & NO_QUANTILES != 0 && state.count() == 0;
            if state.count() != count && !no_sketch {
                return Err(Malformed::Invalid("a state is of other points"));
            }
            r.take(length)?;
            Some(state)
        } else {
            None
        };
        let avg = sum / count as f64;
        each(RecordView {
            key: &key,
            rule,
            window_s,
            start_ms,
            aggregates: Aggregates { count, sum, min, max, avg, quantiles },
            series,
            era,
            revision,
            flags: Flags {
                incomplete: bits & INCOMPLETE != 0,
                unchecked: bits & UNCHECKED != 0,
                damaged: bits & DAMAGED != 0,
            },
            state,
        });
    }
    if r.rest.is_empty() { Ok(()) } else { Err(Malformed::Invalid("bytes after the end")) }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }
    fn byte(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }
    fn version(&mut self) -> Result<(), Malformed> {
        self.version_up_to(VERSION).map(drop)
    }
    fn version_up_to(&mut self, newest: u8) -> Result<u8, Malformed> {
        match self.byte()? {
            0 => Err(Malformed::Invalid("version 0")),
            newer if newer > newest => Err(Malformed::Newer(newer)),
            version => Ok(version),
        }
    }
    /// The shortest form only, so that equal results are equal bytes.
    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                return Err(Malformed::Invalid("a number is not in its shortest form"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::Invalid("a number is too long"))
    }
    fn length(&mut self) -> Result<usize, Malformed> {
        match self.varint()? {
            n if n <= KEY_BYTES_MAX as u64 => Ok(n as usize),
            _ => Err(Malformed::Invalid("a key is out of range")),
        }
    }
    fn value(&mut self) -> Result<f64, Malformed> {
        let value = f64::from_le_bytes(self.array()?);
        if value.is_finite() { Ok(value) } else { Err(Malformed::Invalid("a value is not finite")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metricstream_shards::window::{
        state,
        summary::{Detail, Summary},
    };

    const Q: Detail = Detail::Quantiles;
    const PLAIN: Detail = Detail::Plain;

    fn aggregates(values: &[f64], detail: Detail) -> Aggregates {
        Aggregates::of(&mut values.to_vec(), detail).expect("not empty")
    }

    fn key(name: &str, tag: &str) -> Vec<u8> {
        let mut out = Vec::new();
        series_key::write(&mut out, b"10.0.0.1", name.as_bytes(), &[(b"host", tag.as_bytes())]);
        out
    }

    fn state_of(values: &[f64], detail: Detail) -> Vec<u8> {
        let mut summary = Summary::new(detail);
        values.iter().for_each(|&value| summary.add(value));
        let mut out = Vec::new();
        state::put(&summary, &mut out);
        out
    }

    fn sample(rule: Option<&str>) -> (Vec<u8>, Vec<WindowRecord>) {
        sample_with(rule, false)
    }

    fn sample_with(rule: Option<&str>, with_state: bool) -> (Vec<u8>, Vec<WindowRecord>) {
        let mut encoder = AggregatesEncoder::default();
        encoder.begin(rule, 10, -20_000, 3);
        let mut expected = Vec::new();
        let incomplete = Flags { incomplete: true, ..Flags::default() };
        let other = Flags { unchecked: true, damaged: true, incomplete: true };
        for (name, host, revision, flags, values, detail) in [
            ("cpu", "a", 0, Flags::default(), &[1.5][..], Q),
            ("cpu", "ab", 1, incomplete, &[2.5, 2.5], Q),
            ("cpu", "b", 300, other, &[1.0, 2.0, 1e300, -4.0], Q),
            ("cpu", "c", 0, Flags::default(), &[1.5], PLAIN),
            ("cpu", "d", 2, incomplete, &[2.5, 2.5], PLAIN),
            ("cpu", "e", 0, other, &[1.0, 2.0, 1e300, -4.0], PLAIN),
            ("mem", "a", u32::MAX, Flags::default(), &[f64::MAX, f64::MAX], Q),
        ] {
            let series = if rule.is_some() { 7 } else { 1 };
            let record = WindowRecord {
                key: key(name, host).into(),
                rule: rule.map(Into::into),
                window_s: 10,
                start_ms: -20_000,
                aggregates: aggregates(values, detail),
                series,
                era: 3,
                revision,
                flags,
            };
            let state = if with_state { state_of(values, detail) } else { Vec::new() };
            encoder.push(&record.key, revision, flags, series, &record.aggregates, &state);
            expected.push(record);
        }
        (encoder.bytes().to_vec(), expected)
    }

    fn decode(bytes: &[u8]) -> Result<Vec<WindowRecord>, Malformed> {
        let mut out = Vec::new();
        decode_aggregates(bytes, &mut |view| out.push(view.to_record())).map(|()| out)
    }

    #[test]
    fn results_survive_their_bytes() {
        for rule in [None, Some("p99 by region"), Some("")] {
            let (bytes, expected) = sample(rule);
            assert_eq!(decode(&bytes).expect("just written"), expected);
        }
    }

    #[test]
    fn a_result_carries_its_state_where_that_says_more_than_the_result() {
        for rule in [None, Some("r")] {
            let (bytes, expected) = sample_with(rule, true);
            assert_eq!(bytes[0], VERSION_WITH_STATE);
            assert_eq!(decode(&bytes).expect("just written"), expected);
            let mut states = Vec::new();
            decode_aggregates(&bytes, &mut |view| states.push(view.state.map(|state| state.count())))
                .expect("as above");
            assert_eq!(states, [None, None, Some(4), None, None, Some(0), None], "equal values need none");
        }
        for (detail, of) in [(Q, Q), (Q, PLAIN), (PLAIN, Q)] {
            let mut encoder = AggregatesEncoder::default();
            encoder.begin(None, 10, 0, 0);
            let result = aggregates(&[1.0, 2.0], detail);
            encoder.push(b"c\xFFn", 0, Flags::default(), 1, &result, &state_of(&[1.0, 2.0, 3.0], of));
            let other = decode(encoder.bytes());
            assert_eq!(other, Err(Malformed::Invalid("a state is of other points")), "{detail:?} {of:?}");
        }
    }

    #[test]
    fn the_layout_is_the_one_in_the_format_document() {
        let mut encoder = AggregatesEncoder::default();
        encoder.begin(Some("r"), 60, 120_000, 2);
        encoder.push(b"c\xFFn", 1, Flags { unchecked: true, ..Flags::default() }, 5, &aggregates(&[2.0, 2.0], Q), &[]);
        encoder.push(b"c\xFFo", 0, Flags::default(), 1, &aggregates(&[1.0, 3.0], PLAIN), &[]);
        let mut expected = vec![1, 1, 1, 0, 60, 0, 0, 0];
        expected.extend(120_000i64.to_le_bytes());
        expected.extend([2, 0, 0, 0, 2, 0, 0, 0, b'r', 0, 3, b'c', 0xFF, b'n', 2 | 8, 1, 2, 5]);
        expected.extend(2.0f64.to_le_bytes());
        expected.extend(4.0f64.to_le_bytes());
        expected.extend([2, 1, b'o', 32, 0, 2, 1]);
        [1.0f64, 4.0, 3.0].iter().for_each(|value| expected.extend(value.to_le_bytes()));
        assert_eq!(encoder.bytes(), expected);
        let mark = MarkRecord { era: 1, epoch: 2, m_ns: 3, floor_ns: -1 }.encode();
        let mut expected = vec![1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
        expected.extend([0xFF; 8]);
        assert_eq!(mark.to_vec(), expected);
    }

    #[test]
    fn marks_and_eras_survive_their_bytes() {
        let mark = MarkRecord { era: 9, epoch: u64::MAX, m_ns: 5, floor_ns: i64::MIN };
        assert_eq!(MarkRecord::decode(&mark.encode()), Ok(mark));
        let era = EraRecord { era: 1, epoch: 4, from_ns: 50, to_ns: -50 };
        assert_eq!(EraRecord::decode(&era.encode()), Ok(era));
        assert_eq!(MarkRecord::decode(&mark.encode()[..31]), Err(Malformed::Truncated));
        let above = MarkRecord { floor_ns: 6, ..mark };
        assert!(MarkRecord::decode(&above.encode()).is_err());
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let (mut bytes, _) = sample(None);
        bytes[0] = 3;
        assert_eq!(decode(&bytes), Err(Malformed::Newer(3)));
        let mark = MarkRecord { era: 1, epoch: 2, m_ns: 3, floor_ns: -1 }.encode();
        let mut newer = mark;
        newer[0] = 2;
        assert_eq!(MarkRecord::decode(&newer), Err(Malformed::Newer(2)));
    }

    #[test]
    fn no_mutation_of_the_bytes_panics_or_yields_half_a_record() {
        let mut seed = 1u64;
        let mut random = |n: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % n
        };
        for (rule, with_state) in [(None, false), (Some("rule"), false), (None, true)] {
            let (bytes, _) = sample_with(rule, with_state);
            for length in 0..bytes.len() {
                assert!(decode(&bytes[..length]).is_err(), "cut to {length}");
            }
            for _ in 0..50_000 {
                let mut mutated = bytes.clone();
                for _ in 0..=random(3) {
                    let at = random(mutated.len());
                    match random(4) {
                        0 => mutated[at] ^= 1 << random(8),
                        1 => mutated[at] = random(256) as u8,
                        2 => mutated[at..].fill(0),
                        _ => {
                            mutated.remove(at);
                        }
                    }
                }
                let mut seen = 0;
                let result = decode_aggregates(&mutated, &mut |view| {
                    seen += 1;
                    assert!(view.aggregates.count > 0 && view.aggregates.min <= view.aggregates.max);
                });
                assert!(result.is_ok() || seen == 0);
            }
        }
    }

    #[test]
    fn a_small_record_that_claims_long_keys_costs_little() {
        let mut bytes = vec![VERSION, 0, 0, 0, 10, 0, 0, 0];
        bytes.extend([0; 12]);
        bytes.extend(u32::MAX.to_le_bytes());
        bytes.extend([0, 0xFF, 0xFF, 0xFF, 0x7F]);
        assert_eq!(decode(&bytes), Err(Malformed::Invalid("a key is out of range")));
    }
}
