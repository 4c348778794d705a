//! The bytes of FORMAT.md.

use super::NoAnswer;
use crate::workload::Batch;

pub const MAGIC: [u8; 8] = *b"MSLEDGER";
pub const VERSION: u32 = 1;
/// Magic, version, length of the plan
pub const HEADER_BYTES: usize = 16;
pub const CRC_BYTES: usize = 4;
/// Plans are some hundred bytes; a longer one is none.
pub const PLAN_BYTES_MAX: u32 = 1 << 20;
/// The time is noted again when this has passed, so what follows the last note of it is no later than this after it.
pub const CLOCK_EVERY_NS: i64 = 100_000_000;

/// One note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A batch came into being.
    Batch(Batch),
    /// A request is about to leave with `count` batches of the client, from `first` on.
    Sent {
        request: u64,
        client: u32,
        first: u64,
        count: u32,
    },
    Acknowledged {
        request: u64,
        status: u16,
    },
    Refused {
        request: u64,
        status: u16,
    },
    Unknown {
        request: u64,
        cause: NoAnswer,
    },
    /// All notes before this one were made by this time.
    Clock {
        unix_ns: i64,
    },
}

/// Of a record of this kind, between the kind and the CRC.
pub const fn payload_bytes(kind: u8) -> Option<usize> {
    match kind {
        1 => Some(20),
        2 => Some(24),
        3 | 4 => Some(10),
        5 => Some(9),
        6 => Some(8),
        _ => None,
    }
}

pub const RECORD_BYTES_MAX: usize = 1 + 24 + CRC_BYTES;

/// Appends the record; `chain` is the CRC of what stands before it, and becomes its own.
pub fn append(out: &mut Vec<u8>, chain: &mut u32, event: Event) {
    let start = out.len();
    match event {
        Event::Batch(batch) => {
            out.push(1);
            out.extend_from_slice(&batch.client.to_le_bytes());
            out.extend_from_slice(&batch.number.to_le_bytes());
            out.extend_from_slice(&batch.stamp_ns.to_le_bytes());
        }
        Event::Sent { request, client, first, count } => {
            out.push(2);
            out.extend_from_slice(&request.to_le_bytes());
            out.extend_from_slice(&client.to_le_bytes());
            out.extend_from_slice(&first.to_le_bytes());
            out.extend_from_slice(&count.to_le_bytes());
        }
        Event::Acknowledged { request, status } | Event::Refused { request, status } => {
            out.push(if matches!(event, Event::Acknowledged { .. }) { 3 } else { 4 });
            out.extend_from_slice(&request.to_le_bytes());
            out.extend_from_slice(&status.to_le_bytes());
        }
        Event::Unknown { request, cause } => {
            out.push(5);
            out.extend_from_slice(&request.to_le_bytes());
            out.push(cause as u8);
        }
        Event::Clock { unix_ns } => {
            out.push(6);
            out.extend_from_slice(&unix_ns.to_le_bytes());
        }
    }
    *chain = crc32c::crc32c_append(*chain, &out[start..]);
    out.extend_from_slice(&chain.to_le_bytes());
}

/// Of a payload of the right length; `None` when a field has no meaning.
pub fn parse(kind: u8, payload: &[u8]) -> Option<Event> {
    let u16_at = |at: usize| payload.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes);
    let u32_at = |at: usize| payload.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let u64_at = |at: usize| payload.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    Some(match kind {
        1 => Event::Batch(Batch { client: u32_at(0)?, number: u64_at(4)?, stamp_ns: u64_at(12)? as i64 }),
        2 => Event::Sent { request: u64_at(0)?, client: u32_at(8)?, first: u64_at(12)?, count: u32_at(20)? },
        3 => Event::Acknowledged { request: u64_at(0)?, status: u16_at(8)? },
        4 => Event::Refused { request: u64_at(0)?, status: u16_at(8)? },
        5 => {
            let cause = match payload.get(8)? {
                1 => NoAnswer::Timeout,
                2 => NoAnswer::Reset,
                3 => NoAnswer::RefusedConnection,
                4 => NoAnswer::Closed,
                5 => NoAnswer::BadAnswer,
                _ => return None,
            };
            Event::Unknown { request: u64_at(0)?, cause }
        }
        6 => Event::Clock { unix_ns: u64_at(0)? as i64 },
        _ => return None,
    })
}
