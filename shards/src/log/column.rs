//! Columns of numbers as bytes: the difference to the least (frame of reference) in 0, 1, 2, 4 or 8 bytes a value,
//! little-endian. Loops are plain so that the compiler turns them into vector code.
//!
//! Decoding meets any bytes: every column says how long it must be for the number of points, and must be exactly that
//! long. A decoder that answers `None` may have left values behind; the caller clears.

use crate::point::NO_TIMESTAMP;

const FOR: u8 = 0;
const DELTA: u8 = 1;

const ALL_ABSENT: u8 = 0;
const ALL_PRESENT: u8 = 1;
const SOME_PRESENT: u8 = 2;

const RAW: u8 = 0;
const INTEGERS: u8 = 1;
const DECIMALS: u8 = 2;

const ONE_KIND: u8 = 0;
const KINDS: u8 = 1;

/// Nanoseconds of the units a timestamp column may count in.
const UNITS_NS: [i64; 4] = [1, 1_000, 1_000_000, 1_000_000_000];

/// 10^k is exact in a double up to 10^22; readings with more than nine decimals are rarely short decimals.
const DECIMALS_MAX: usize = 9;
const POWERS: [f64; DECIMALS_MAX + 1] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Integers up to here are exact in a double, with room for the rounding trick of [`mantissa`].
const MANTISSA_MAX: f64 = (1u64 << 51) as f64;

/// Most bytes the four point columns take for `points` points.
pub const fn columns_bound(points: usize) -> usize {
    points * (4 + 8 + 1 + 8) + points / 8 + 64
}

pub fn put_series(series: &[u32], out: &mut Vec<u8>) {
    let Some(&first) = series.first() else { return };
    let (least, most) = series.iter().fold((first, first), |(l, m), &s| (l.min(s), m.max(s)));
    let width = width_of(u64::from(most - least));
    if width > 0 && series.len() >= 16 {
        // An agent sends its series in one order: the steps between numbers then fit fewer bytes than the numbers.
        let mut step_least = i64::MAX;
        let mut step_most = i64::MIN;
        for pair in series.windows(2) {
            let step = i64::from(pair[1]) - i64::from(pair[0]);
            step_least = step_least.min(step);
            step_most = step_most.max(step);
        }
        let step_width = width_of((step_most - step_least) as u64);
        if step_width < width {
            out.extend_from_slice(&[DELTA, step_width]);
            out.extend_from_slice(&first.to_le_bytes());
            out.extend_from_slice(&step_least.to_le_bytes());
            let steps = series.windows(2).map(|pair| (i64::from(pair[1]) - i64::from(pair[0]) - step_least) as u64);
            pack(steps, series.len() - 1, step_width, out);
            return;
        }
    }
    out.extend_from_slice(&[FOR, width]);
    out.extend_from_slice(&least.to_le_bytes());
    pack(series.iter().map(|&s| u64::from(s - least)), series.len(), width, out);
}

pub fn take_series(bytes: &[u8], points: usize, out: &mut Vec<u32>) -> Option<()> {
    let mut from = Reader(bytes);
    if points == 0 {
        return from.end();
    }
    let (encoding, width) = (from.u8()?, from.u8()?);
    let base = from.u32()?;
    match encoding {
        FOR if width <= 4 => {
            let data = from.take(points.checked_mul(usize::from(width))?)?;
            from.end()?;
            unpack(data, points, width, |n| out.push(base.wrapping_add(n as u32)))?;
            // A sum that wrapped would be another series.
            out.iter().all(|&s| s >= base).then_some(())
        }
        DELTA => {
            let step_least = i64::from_le_bytes(from.array()?);
            let data = from.take((points - 1).checked_mul(usize::from(width))?)?;
            from.end()?;
            let mut at = i64::from(base);
            let mut sound = true;
            out.push(base);
            unpack(data, points - 1, width, |n| {
                at = at.wrapping_add(step_least).wrapping_add(n as i64);
                sound &= (0..=i64::from(u32::MAX)).contains(&at);
                out.push(at as u32);
            })?;
            sound.then_some(())
        }
        _ => None,
    }
}

pub fn put_timestamps(timestamps_ns: &[i64], out: &mut Vec<u8>) {
    let Some(&first) = timestamps_ns.iter().find(|&&t| t != NO_TIMESTAMP) else {
        if !timestamps_ns.is_empty() {
            out.push(ALL_ABSENT);
        }
        return;
    };
    let mut absent = 0usize;
    let (mut least, mut most) = (first, first);
    for &t in timestamps_ns {
        let here = t != NO_TIMESTAMP;
        absent += usize::from(!here);
        least = if here { least.min(t) } else { least };
        most = most.max(t); // NO_TIMESTAMP is the least i64
    }
    let mode = if absent == 0 { ALL_PRESENT } else { SOME_PRESENT };
    let offset = |t: i64| if t == NO_TIMESTAMP { 0 } else { t.wrapping_sub(least) as u64 };
    let mut unit = 0;
    if most != least {
        unit = UNITS_NS.len() - 1;
        for &t in timestamps_ns {
            while !offset(t).is_multiple_of(UNITS_NS[unit] as u64) {
                unit -= 1;
            }
            if unit == 0 {
                break;
            }
        }
    }
    let range = most.wrapping_sub(least) as u64;
    // A constant divisor each: the compiler divides by multiplying.
    match unit {
        0 => put_times(mode, 0, range, least, timestamps_ns, offset, out),
        1 => put_times(mode, 1, range / 1_000, least, timestamps_ns, |t| offset(t) / 1_000, out),
        2 => put_times(mode, 2, range / 1_000_000, least, timestamps_ns, |t| offset(t) / 1_000_000, out),
        _ => put_times(mode, 3, range / 1_000_000_000, least, timestamps_ns, |t| offset(t) / 1_000_000_000, out),
    }
}

fn put_times(
    mode: u8,
    unit: u8,
    range: u64,
    least: i64,
    timestamps_ns: &[i64],
    scaled: impl Fn(i64) -> u64,
    out: &mut Vec<u8>,
) {
    let width = width_of(range);
    out.extend_from_slice(&[mode, unit, width]);
    out.extend_from_slice(&least.to_le_bytes());
    if mode == SOME_PRESENT {
        out.extend(timestamps_ns.chunks(8).map(|eight| {
            eight.iter().enumerate().fold(0, |byte, (bit, &t)| byte | (u8::from(t != NO_TIMESTAMP) << bit))
        }));
    }
    pack(timestamps_ns.iter().map(|&t| scaled(t)), timestamps_ns.len(), width, out);
}

pub fn take_timestamps(bytes: &[u8], points: usize, out: &mut Vec<i64>) -> Option<()> {
    let mut from = Reader(bytes);
    if points == 0 {
        return from.end();
    }
    let mode = from.u8()?;
    if mode == ALL_ABSENT {
        from.end()?;
        out.resize(out.len() + points, NO_TIMESTAMP);
        return Some(());
    }
    let unit = *UNITS_NS.get(usize::from(from.u8()?))?;
    let width = from.u8()?;
    let least = i64::from_le_bytes(from.array()?);
    let present = match mode {
        ALL_PRESENT => None,
        SOME_PRESENT => Some(from.take(points.div_ceil(8))?),
        _ => return None,
    };
    let data = from.take(points.checked_mul(usize::from(width))?)?;
    from.end()?;
    let start = out.len();
    unpack(data, points, width, |n| out.push(least.wrapping_add((n as i64).wrapping_mul(unit))))?;
    if let Some(present) = present {
        for (n, t) in out[start..].iter_mut().enumerate() {
            if present[n / 8] >> (n % 8) & 1 == 0 {
                *t = NO_TIMESTAMP;
            }
        }
    }
    Some(())
}

/// Nothing when all are `Kind::Float` (0).
pub fn put_kinds(kinds: &[u8], out: &mut Vec<u8>) {
    let Some(&first) = kinds.first() else { return };
    if kinds.iter().all(|&k| k == first) {
        if first != 0 {
            out.extend_from_slice(&[ONE_KIND, first]);
        }
    } else {
        out.push(KINDS);
        out.extend_from_slice(kinds);
    }
}

pub fn take_kinds(bytes: &[u8], points: usize, out: &mut Vec<u8>) -> Option<()> {
    let one = match bytes {
        [] => 0,
        [ONE_KIND, kind] => *kind,
        [KINDS, kinds @ ..] if kinds.len() == points => {
            out.extend_from_slice(kinds);
            return Some(());
        }
        _ => return None,
    };
    out.resize(out.len() + points, one);
    Some(())
}

/// `floats`: every kind is `Kind::Float`. `mantissas` is scratch.
pub fn put_values(bits: &[u64], floats: bool, mantissas: &mut Vec<i64>, out: &mut Vec<u8>) {
    // Below four values the parameters cost more than they save.
    if bits.len() >= 4 {
        let Some(&first) = bits.first() else { return };
        if !floats || bits.iter().all(|&b| b == first) {
            let least = bits.iter().fold(first as i64, |l, &b| l.min(b as i64));
            let most = bits.iter().fold(first as i64, |m, &b| m.max(b as i64));
            let width = width_of(most.wrapping_sub(least) as u64);
            if width < 8 {
                out.extend_from_slice(&[INTEGERS, width]);
                out.extend_from_slice(&least.to_le_bytes());
                pack(bits.iter().map(|&b| (b as i64).wrapping_sub(least) as u64), bits.len(), width, out);
                return;
            }
        } else if let Some(decimals) = as_decimals(bits, mantissas) {
            let least = mantissas.iter().fold(i64::MAX, |l, &m| l.min(m));
            let most = mantissas.iter().fold(i64::MIN, |h, &m| h.max(m));
            let width = width_of((most - least) as u64);
            if width < 8 {
                out.extend_from_slice(&[DECIMALS, decimals as u8, width]);
                out.extend_from_slice(&least.to_le_bytes());
                pack(mantissas.iter().map(|&m| (m - least) as u64), bits.len(), width, out);
                return;
            }
        }
    }
    out.push(RAW);
    pack(bits.iter().copied(), bits.len(), 8, out);
}

pub fn take_values(bytes: &[u8], points: usize, out: &mut Vec<u64>) -> Option<()> {
    let mut from = Reader(bytes);
    match from.u8()? {
        RAW => {
            let data = from.take(points.checked_mul(8)?)?;
            from.end()?;
            unpack(data, points, 8, |n| out.push(n))
        }
        INTEGERS => {
            let width = from.u8()?;
            let least = i64::from_le_bytes(from.array()?);
            let data = from.take(points.checked_mul(usize::from(width))?)?;
            from.end()?;
            unpack(data, points, width, |n| out.push(least.wrapping_add(n as i64) as u64))
        }
        DECIMALS => {
            let power = *POWERS.get(usize::from(from.u8()?))?;
            let width = from.u8()?;
            let least = i64::from_le_bytes(from.array()?);
            let data = from.take(points.checked_mul(usize::from(width))?)?;
            from.end()?;
            unpack(data, points, width, |n| out.push((least.wrapping_add(n as i64) as f64 / power).to_bits()))
        }
        _ => None,
    }
}

/// The fewest decimals k with which *every* value is the double nearest to m / 10^k, m in `mantissas`.
///
/// m and 10^k are exact doubles and IEEE division rounds correctly, so the reader's `m / 10^k` gives the same bits;
/// it is tried here on each value, so -0.0, NaN and numbers with more digits simply leave the column raw. A sample is
/// looked at first: a column of measured doubles costs a few divisions, not one a value.
fn as_decimals(bits: &[u64], mantissas: &mut Vec<i64>) -> Option<usize> {
    let mut decimals = 0;
    let needed = |value: u64, from: usize| (from..=DECIMALS_MAX).find(|&k| mantissa(value, POWERS[k]).is_some());
    for &value in bits.iter().step_by(bits.len().div_ceil(16)) {
        decimals = needed(value, decimals)?;
    }
    // A later value may need more decimals than the sample; a few new starts are worth it.
    'again: for _ in 0..3 {
        mantissas.clear();
        for &value in bits {
            match mantissa(value, POWERS[decimals]) {
                Some(m) => mantissas.push(m),
                None => {
                    decimals = needed(value, decimals + 1)?;
                    continue 'again;
                }
            }
        }
        return Some(decimals);
    }
    None
}

#[inline]
fn mantissa(bits: u64, power: f64) -> Option<i64> {
    // Adding and taking away 1.5 * 2^52 rounds to the nearest integer without a library call.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let scaled = f64::from_bits(bits) * power;
    let m = (scaled + ROUND) - ROUND;
    // The division decides, on the integer the reader will have: -0.0 differs from 0 / p, NaN from everything.
    (m.abs() < MANTISSA_MAX && ((m as i64) as f64 / power).to_bits() == bits).then_some(m as i64)
}

/// Byte strings: how many, then each with its length. Nothing when there are none.
pub fn put_blobs(blobs: &[Box<[u8]>], out: &mut Vec<u8>) {
    if blobs.is_empty() {
        return;
    }
    out.extend_from_slice(&(blobs.len() as u32).to_le_bytes());
    for blob in blobs {
        out.extend_from_slice(&(blob.len() as u32).to_le_bytes());
        out.extend_from_slice(blob);
    }
}

pub fn take_blobs(bytes: &[u8], out: &mut Vec<Box<[u8]>>) -> Option<()> {
    if bytes.is_empty() {
        return Some(());
    }
    let mut from = Reader(bytes);
    let count = from.u32()?;
    for _ in 0..count {
        let len = from.u32()?;
        out.push(from.take(len as usize)?.into());
    }
    from.end()
}

const fn width_of(range: u64) -> u8 {
    match range {
        0 => 0,
        1..=0xFF => 1,
        0x100..=0xFFFF => 2,
        0x1_0000..=0xFFFF_FFFF => 4,
        _ => 8,
    }
}

#[inline]
fn pack(values: impl Iterator<Item = u64>, count: usize, width: u8, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + count * usize::from(width), 0);
    let to = &mut out[start..];
    match width {
        0 => {}
        1 => to.iter_mut().zip(values).for_each(|(to, v)| *to = v as u8),
        2 => to.chunks_exact_mut(2).zip(values).for_each(|(to, v)| to.copy_from_slice(&(v as u16).to_le_bytes())),
        4 => to.chunks_exact_mut(4).zip(values).for_each(|(to, v)| to.copy_from_slice(&(v as u32).to_le_bytes())),
        _ => to.chunks_exact_mut(8).zip(values).for_each(|(to, v)| to.copy_from_slice(&v.to_le_bytes())),
    }
}

#[inline]
fn unpack(data: &[u8], count: usize, width: u8, mut each: impl FnMut(u64)) -> Option<()> {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
    match width {
        0 => (0..count).for_each(|_| each(0)),
        1 => data.iter().for_each(|&b| each(u64::from(b))),
        2 => data.chunks_exact(2).for_each(|b| each(word(b))),
        4 => data.chunks_exact(4).for_each(|b| each(word(b))),
        8 => data.chunks_exact(8).for_each(|b| each(word(b))),
        _ => return None,
    }
    Some(())
}

/// Takes a slice apart from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}
