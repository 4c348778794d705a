//! One batch as a record: an rkyv envelope (who sent it, how, when) around byte columns.
//!
//! Decoding meets any bytes: the archive is validated (rkyv's bytecheck) before it is looked at, columns must have
//! exactly the length their point count asks for, and what points at an inline key or a string must find it. Layout in
//! FORMAT.md, "Batch record".

use super::aligned::AlignedBuf;
use super::{RECORD_POINTS_MAX, column};
use crate::point::{Batch, INLINE_BIT, Kind, Protocol};
use rkyv::rancor::Failure;
use rkyv::ser::allocator::SubAllocator;
use rkyv::with::InlineAsBox;
use rkyv::{Archive, Serialize};

/// What is kept of a request besides its points.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// Client id as it stands in the series keys
    pub client: &'a str,
    pub protocol: Protocol,
    /// Listener and route, as the shard numbers them
    pub route: u8,
    pub request_id: &'a str,
    pub traceparent: &'a str,
    pub idempotency_key: &'a [u8],
    /// The points have no identity: equal series and timestamps are different events
    pub same_timestamp_all: bool,
}

impl<'a> Envelope<'a> {
    /// A request of which no more is known.
    pub fn of(client: &'a str, protocol: Protocol) -> Envelope<'a> {
        Envelope {
            client,
            protocol,
            route: 0,
            request_id: "",
            traceparent: "",
            idempotency_key: &[],
            same_timestamp_all: false,
        }
    }
}

/// An [`Envelope`] read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnvelopeView<'a> {
    pub client: &'a str,
    pub protocol: Protocol,
    pub route: u8,
    pub stamp_ns: i64,
    pub request_id: &'a str,
    pub traceparent: &'a str,
    pub idempotency_key: &'a [u8],
    pub same_timestamp_all: bool,
    pub points: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("the record is no valid archive")]
    Archive,
    #[error("the record's protocol {0} is not known")]
    Protocol(u8),
    #[error("the record holds more points than a record may")]
    TooManyPoints,
    #[error("a column does not fit its points")]
    Column,
    #[error("the record has columns of a newer writer")]
    Newer,
}

/// The stored form. Field order is the format: new fields mean a new record kind.
#[derive(Archive, Serialize)]
struct StoredBatch<'a> {
    points: u32,
    stamp_ns: i64,
    protocol: u8,
    route: u8,
    /// Bit 0: `same_timestamp_all`
    flags: u8,
    #[rkyv(with = InlineAsBox)]
    client: &'a str,
    #[rkyv(with = InlineAsBox)]
    request_id: &'a str,
    #[rkyv(with = InlineAsBox)]
    traceparent: &'a str,
    #[rkyv(with = InlineAsBox)]
    idempotency_key: &'a [u8],
    #[rkyv(with = InlineAsBox)]
    series: &'a [u8],
    #[rkyv(with = InlineAsBox)]
    timestamps: &'a [u8],
    #[rkyv(with = InlineAsBox)]
    kinds: &'a [u8],
    #[rkyv(with = InlineAsBox)]
    values: &'a [u8],
    /// Sample weights: empty, until a protocol brings them
    #[rkyv(with = InlineAsBox)]
    weights: &'a [u8],
    /// Delta or cumulative: empty, until a protocol brings it
    #[rkyv(with = InlineAsBox)]
    temporality: &'a [u8],
    #[rkyv(with = InlineAsBox)]
    inline_keys: &'a [u8],
    #[rkyv(with = InlineAsBox)]
    strings: &'a [u8],
}

const FLAG_SAME_TIMESTAMP_ALL: u8 = 1;

/// Encodes batches; keeps the columns' scratch space.
#[derive(Debug, Default)]
pub struct BatchEncoder {
    series: Vec<u8>,
    timestamps: Vec<u8>,
    kinds: Vec<u8>,
    values: Vec<u8>,
    inline_keys: Vec<u8>,
    strings: Vec<u8>,
    mantissas: Vec<i64>,
}

impl BatchEncoder {
    /// Most bytes that [`BatchEncoder::encode`] will append.
    pub fn bound(envelope: &Envelope, batch: &Batch) -> usize {
        let blobs = |blobs: &[Box<[u8]>]| 4 + blobs.iter().map(|b| b.len() + 4).sum::<usize>();
        size_of::<ArchivedStoredBatch>()
            + envelope.client.len()
            + envelope.request_id.len()
            + envelope.traceparent.len()
            + envelope.idempotency_key.len()
            + column::columns_bound(batch.len())
            + blobs(&batch.inline_keys)
            + blobs(&batch.strings)
    }

    /// Appends the record's bytes to `out`. At most [`RECORD_POINTS_MAX`] points.
    pub fn encode(&mut self, envelope: &Envelope, stamp_ns: i64, batch: &Batch, out: &mut AlignedBuf) {
        assert!(batch.len() <= RECORD_POINTS_MAX, "the writer splits larger batches");
        let columns = [
            &mut self.series,
            &mut self.timestamps,
            &mut self.kinds,
            &mut self.values,
            &mut self.inline_keys,
            &mut self.strings,
        ];
        columns.into_iter().for_each(Vec::clear);
        column::put_series(&batch.series, &mut self.series);
        column::put_timestamps(&batch.timestamps_ns, &mut self.timestamps);
        column::put_kinds(&batch.kinds, &mut self.kinds);
        column::put_values(&batch.bits, self.kinds.is_empty(), &mut self.mantissas, &mut self.values);
        column::put_blobs(&batch.inline_keys, &mut self.inline_keys);
        column::put_blobs(&batch.strings, &mut self.strings);
        let stored = StoredBatch {
            points: batch.len() as u32,
            stamp_ns,
            protocol: envelope.protocol as u8,
            route: envelope.route,
            flags: if envelope.same_timestamp_all { FLAG_SAME_TIMESTAMP_ALL } else { 0 },
            client: envelope.client,
            request_id: envelope.request_id,
            traceparent: envelope.traceparent,
            idempotency_key: envelope.idempotency_key,
            series: &self.series,
            timestamps: &self.timestamps,
            kinds: &self.kinds,
            values: &self.values,
            weights: &[],
            temporality: &[],
            inline_keys: &self.inline_keys,
            strings: &self.strings,
        };
        // Byte slices need no scratch space of the serializer's.
        rkyv::api::low::to_bytes_in_with_alloc::<_, _, Failure>(&stored, out, SubAllocator::new(&mut []))
            .expect("appending to a buffer cannot fail");
    }
}

/// Reads batch records into a [`Batch`] that is used again.
#[derive(Debug, Default)]
pub struct BatchDecoder {
    batch: Batch,
}

impl BatchDecoder {
    /// The record's points replace those of the call before. On an error the batch is empty.
    pub fn decode<'a, 'b>(&'a mut self, bytes: &'b [u8]) -> Result<(EnvelopeView<'b>, &'a mut Batch), RecordError> {
        self.batch.clear();
        match decode_into(bytes, &mut self.batch) {
            Ok(view) => Ok((view, &mut self.batch)),
            Err(error) => {
                self.batch.clear();
                Err(error)
            }
        }
    }

    /// The envelope alone.
    pub fn envelope(bytes: &[u8]) -> Result<EnvelopeView<'_>, RecordError> {
        view(access(bytes)?)
    }
}

fn decode_into<'b>(bytes: &'b [u8], batch: &mut Batch) -> Result<EnvelopeView<'b>, RecordError> {
    let stored = access(bytes)?;
    let view = view(stored)?;
    if !stored.weights.is_empty() || !stored.temporality.is_empty() {
        return Err(RecordError::Newer);
    }
    let points = view.points;
    let columns = column::take_series(&stored.series, points, &mut batch.series).is_some()
        && column::take_timestamps(&stored.timestamps, points, &mut batch.timestamps_ns).is_some()
        && column::take_kinds(&stored.kinds, points, &mut batch.kinds).is_some()
        && column::take_values(&stored.values, points, &mut batch.bits).is_some()
        && column::take_blobs(&stored.inline_keys, &mut batch.inline_keys).is_some()
        && column::take_blobs(&stored.strings, &mut batch.strings).is_some();
    if !columns || !refers_to_what_is_there(batch) {
        return Err(RecordError::Column);
    }
    Ok(view)
}

fn access(bytes: &[u8]) -> Result<&ArchivedStoredBatch<'_>, RecordError> {
    rkyv::api::low::access::<ArchivedStoredBatch, Failure>(bytes).map_err(|_| RecordError::Archive)
}

fn view<'b>(stored: &'b ArchivedStoredBatch<'_>) -> Result<EnvelopeView<'b>, RecordError> {
    let points = stored.points.to_native() as usize;
    if points > RECORD_POINTS_MAX {
        return Err(RecordError::TooManyPoints);
    }
    Ok(EnvelopeView {
        client: &stored.client,
        protocol: Protocol::from_u8(stored.protocol).ok_or(RecordError::Protocol(stored.protocol))?,
        route: stored.route,
        stamp_ns: stored.stamp_ns.to_native(),
        request_id: &stored.request_id,
        traceparent: &stored.traceparent,
        idempotency_key: &stored.idempotency_key,
        same_timestamp_all: stored.flags & FLAG_SAME_TIMESTAMP_ALL != 0,
        points,
    })
}

fn refers_to_what_is_there(batch: &Batch) -> bool {
    let kinds = batch.kinds.iter().all(|&k| k <= Kind::Text as u8);
    let inline = batch.inline_keys.len();
    let keys = batch.series.iter().all(|&s| s & INLINE_BIT == 0 || ((s & !INLINE_BIT) as usize) < inline);
    let strings = batch.strings.len() as u64;
    let texts = batch.kinds.iter().zip(&batch.bits).all(|(&k, &b)| k != Kind::Text as u8 || b < strings);
    kinds && keys && texts
}

/// Points `range` of `batch`, with only the inline keys and strings they refer to, renumbered.
pub fn slice(batch: &Batch, range: std::ops::Range<usize>) -> Batch {
    let mut part = Batch {
        series: batch.series[range.clone()].to_vec(),
        timestamps_ns: batch.timestamps_ns[range.clone()].to_vec(),
        kinds: batch.kinds[range.clone()].to_vec(),
        bits: batch.bits[range].to_vec(),
        ..Batch::default()
    };
    let mut keys = hashbrown::HashMap::new();
    for series in part.series.iter_mut().filter(|s| **s & INLINE_BIT != 0) {
        let old = (*series & !INLINE_BIT) as usize;
        let new = *keys.entry(old).or_insert_with(|| {
            part.inline_keys.push(batch.inline_keys[old].clone());
            part.inline_keys.len() as u32 - 1
        });
        *series = new | INLINE_BIT;
    }
    let mut texts = hashbrown::HashMap::new();
    for (bits, _) in part.bits.iter_mut().zip(&part.kinds).filter(|(_, k)| **k == Kind::Text as u8) {
        let old = *bits as usize;
        *bits = *texts.entry(old).or_insert_with(|| {
            part.strings.push(batch.strings[old].clone());
            part.strings.len() as u64 - 1
        });
    }
    part
}
