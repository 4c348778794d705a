//! The raw-span cache: (client, bytes as they came) -> series number. It may forget; it never lies.
//!
//! Two generations. Entries go into the young one; when it has half of the bytes, it becomes the old one and what was old is
//! dropped. A hit in the old one moves the entry to the young: what is used survives, at the cost of one copy a generation,
//! and nothing is ever searched for a victim.
//!
//! A generation is a flat table of 8-byte buckets (32 bits of hash, place in the arena), open addressing, at most half full,
//! and an arena of records, each with its bytes behind a header. So a hit reads two cache lines besides those of the bytes;
//! both are prefetched, the second one when the first has arrived (see [`Cache::prefetch`]).

use super::prefetch::prefetch;
use std::cell::Cell;

/// Places in an arena are counted in units of 8 bytes; 0 is no place.
const UNIT: usize = 8;
const CHUNK_BYTES: usize = 128 << 10;
const CHUNK_UNITS: usize = CHUNK_BYTES / UNIT;
/// series, incarnation, client, length: u32 each
const HEADER_BYTES: usize = 16;
/// A longer span is not worth its place: it is parsed each time.
const RAW_BYTES_MAX: usize = 4 << 10;
const BUCKETS_MIN: usize = 1 << 10;
/// How many lookups behind the newest `prefetch` the second step runs: by then the bucket has come.
const BEHIND: usize = 6;

pub struct Cache {
    young: Generation,
    old: Generation,
    generation_bytes_max: usize,
    /// Hashes whose bucket was asked for, not yet their record
    recent: [Cell<u64>; BEHIND],
    at: Cell<usize>,
}

#[derive(Default)]
struct Generation {
    /// A power of two, or empty
    buckets: Vec<Bucket>,
    used: usize,
    chunks: Vec<Box<[u8]>>,
    /// The chunk being filled; those behind it are left from before `clear`
    chunk: usize,
    /// Bytes used of it
    chunk_used: usize,
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    tag: u32,
    /// 0 = empty
    place: u32,
}

struct Record<'a> {
    series: u32,
    incarnation: u32,
    client: u32,
    raw: &'a [u8],
}

impl Cache {
    pub fn new(bytes_max: usize) -> Cache {
        Cache {
            young: Generation::default(),
            old: Generation::default(),
            generation_bytes_max: (bytes_max / 2).clamp(4 * CHUNK_BYTES, u32::MAX as usize),
            recent: Default::default(),
            at: Cell::new(0),
        }
    }

    /// Asks for the bucket of this hash, and for the record of one asked for a few calls ago, whose bucket has come by now.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        self.young.prefetch_bucket(fold(hash));
        let at = self.at.get();
        let older = self.recent[at].replace(hash);
        self.at.set(if at + 1 == BEHIND { 0 } else { at + 1 });
        self.young.prefetch_record(fold(older));
    }

    /// The series number of these bytes, if `fresh(series, incarnation)` says that the entry still means what it meant.
    #[inline]
    pub(super) fn get(&mut self, hash: u64, client: u32, raw: &[u8], fresh: impl Fn(u32, u32) -> bool) -> Option<u32> {
        let tag = fold(hash);
        if let Some((_, record)) = self.young.find(tag, client, raw) {
            return fresh(record.series, record.incarnation).then_some(record.series);
        }
        let (_, record) = self.old.find(tag, client, raw)?;
        let (series, incarnation) = (record.series, record.incarnation);
        if !fresh(series, incarnation) {
            return None;
        }
        self.insert(hash, client, raw, series, incarnation);
        Some(series)
    }

    /// Remembers; answers the bytes it took.
    pub(super) fn insert(&mut self, hash: u64, client: u32, raw: &[u8], series: u32, incarnation: u32) -> usize {
        if raw.len() > RAW_BYTES_MAX {
            return 0;
        }
        let tag = fold(hash);
        if let Some((place, _)) = self.young.find(tag, client, raw) {
            self.young.overwrite(place, series, incarnation);
            return 0;
        }
        if self.young.is_full(self.generation_bytes_max, raw.len()) {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.push(tag, &Record { series, incarnation, client, raw })
    }

    pub(super) fn clear(&mut self) {
        self.young = Generation::default();
        self.old = Generation::default();
    }

    pub(super) fn bytes(&self) -> usize {
        self.young.bytes() + self.old.bytes()
    }
}

/// The table's place comes from the low bits, and all 32 are compared.
#[inline]
fn fold(hash: u64) -> u32 {
    (hash ^ (hash >> 32)) as u32
}

impl Generation {
    fn bytes(&self) -> usize {
        self.buckets.len() * size_of::<Bucket>() + self.chunks.len() * CHUNK_BYTES
    }

    /// Half of the bytes for buckets, half for records: each can be used up however large the other has become, so a
    /// generation that was just cleared always has room.
    fn is_full(&self, bytes_max: usize, raw_len: usize) -> bool {
        let buckets_full =
            self.used * 2 >= self.buckets.len() && 2 * self.buckets.len() * size_of::<Bucket>() > bytes_max / 2;
        let chunk_full = self.chunk_used + (HEADER_BYTES + raw_len).next_multiple_of(UNIT) > CHUNK_BYTES;
        buckets_full || chunk_full && (self.chunk + 2) * CHUNK_BYTES > bytes_max / 2
    }

    fn clear(&mut self) {
        self.buckets.fill(Bucket::default());
        self.used = 0;
        self.chunk = 0;
        self.chunk_used = UNIT;
    }

    #[inline]
    fn prefetch_bucket(&self, tag: u32) {
        if let Some(bucket) = self.buckets.get(tag as usize & self.buckets.len().wrapping_sub(1)) {
            prefetch(bucket);
        }
    }

    #[inline]
    fn prefetch_record(&self, tag: u32) {
        if let Some(bucket) = self.buckets.get(tag as usize & self.buckets.len().wrapping_sub(1)) {
            let place = bucket.place as usize;
            if let Some(chunk) = self.chunks.get(place / CHUNK_UNITS)
                && let Some(byte) = chunk.get(place % CHUNK_UNITS * UNIT)
            {
                prefetch(byte);
                if let Some(next) = chunk.get(place % CHUNK_UNITS * UNIT + 64) {
                    prefetch(next);
                }
            }
        }
    }

    #[inline]
    fn find(&self, tag: u32, client: u32, raw: &[u8]) -> Option<(u32, Record<'_>)> {
        let mask = self.buckets.len().wrapping_sub(1);
        let mut n = tag as usize & mask;
        loop {
            let bucket = self.buckets.get(n)?;
            if bucket.place == 0 {
                return None;
            }
            if bucket.tag == tag {
                let record = self.record(bucket.place);
                if record.client == client && record.raw == raw {
                    return Some((bucket.place, record));
                }
            }
            n = (n + 1) & mask;
        }
    }

    #[inline]
    fn record(&self, place: u32) -> Record<'_> {
        let place = place as usize;
        let bytes = &self.chunks[place / CHUNK_UNITS][place % CHUNK_UNITS * UNIT..];
        let (header, rest) = bytes.split_at(HEADER_BYTES);
        let word = |n: usize| u32::from_le_bytes([header[n], header[n + 1], header[n + 2], header[n + 3]]);
        Record { series: word(0), incarnation: word(4), client: word(8), raw: &rest[..word(12) as usize] }
    }

    fn overwrite(&mut self, place: u32, series: u32, incarnation: u32) {
        let place = place as usize;
        let at = place % CHUNK_UNITS * UNIT;
        let chunk = &mut self.chunks[place / CHUNK_UNITS];
        chunk[at..at + 4].copy_from_slice(&series.to_le_bytes());
        chunk[at + 4..at + 8].copy_from_slice(&incarnation.to_le_bytes());
    }

    fn push(&mut self, tag: u32, record: &Record) -> usize {
        if self.used * 2 >= self.buckets.len() {
            self.grow();
        }
        let bytes = (HEADER_BYTES + record.raw.len()).next_multiple_of(UNIT);
        if self.chunks.is_empty() {
            self.chunk_used = UNIT; // so that no place is 0
        } else if self.chunk_used + bytes > CHUNK_BYTES {
            (self.chunk, self.chunk_used) = (self.chunk + 1, 0);
        }
        let n = self.chunk;
        if n == self.chunks.len() {
            self.chunks.push(vec![0; CHUNK_BYTES].into_boxed_slice());
        }
        let at = self.chunk_used;
        let slot = &mut self.chunks[n][at..at + bytes];
        slot[0..4].copy_from_slice(&record.series.to_le_bytes());
        slot[4..8].copy_from_slice(&record.incarnation.to_le_bytes());
        slot[8..12].copy_from_slice(&record.client.to_le_bytes());
        slot[12..16].copy_from_slice(&(record.raw.len() as u32).to_le_bytes());
        slot[16..16 + record.raw.len()].copy_from_slice(record.raw);
        self.chunk_used += bytes;
        self.used += 1;
        place(&mut self.buckets, Bucket { tag, place: (n * CHUNK_UNITS + at / UNIT) as u32 });
        bytes + 2 * size_of::<Bucket>()
    }

    /// Doubles the buckets: needs only the tags, so it reads them in order and nothing else.
    fn grow(&mut self) {
        let mut larger = vec![Bucket::default(); (self.buckets.len() * 2).max(BUCKETS_MIN)];
        for &bucket in self.buckets.iter().filter(|bucket| bucket.place != 0) {
            place(&mut larger, bucket);
        }
        self.buckets = larger;
    }
}

/// There is always an empty bucket: at most half are used.
fn place(buckets: &mut [Bucket], bucket: Bucket) {
    let mask = buckets.len() - 1;
    let mut n = bucket.tag as usize & mask;
    while buckets[n].place != 0 {
        n = (n + 1) & mask;
    }
    buckets[n] = bucket;
}
