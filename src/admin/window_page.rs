//! One page of closed windows, read back from the aggregate log by direct I/O.
//!
//! What a page has passed is not read again, nor what lies behind it: see [`crate::reducer::zones`]. What cannot be read
//! (retention was faster, a damaged block) is passed over; damage is reported by `log verify` and at the next start.

use std::cell::RefCell;

use metricstream_shards::log::{
    BLOCK_HEADER_BYTES, BlockHeader, PAGE_BYTES, Position, ReadSpan, RecordKind, Records, parse_block,
};

use crate::backplane::executor;
use crate::reducer::encode::decode_aggregates;
use crate::reducer::query::{Page, WindowQuery};
use crate::reducer::zones::{Learning, Zones};

const CHUNK_BYTES: usize = 1 << 20;

/// The page, and how many bytes of the log were read for it. `spans`: with the last stamp of each.
pub async fn read(spans: &[(ReadSpan, i64)], mut query: WindowQuery, zones: &RefCell<Zones>) -> (Page, u64) {
    // A window is appended after it has ended: segments that were closed before hold nothing wanted.
    let from_ns = query.from_ms().saturating_mul(1_000_000);
    let all: Vec<ReadSpan> = spans.iter().map(|(span, _)| span.clone()).collect();
    let parts = zones.borrow_mut().plan(&all, &query);
    let mut file = File::default();
    let mut read_bytes = 0;
    for part in parts.iter().filter(|part| spans[part.span].1 >= from_ns) {
        if part.first.is_some_and(|(start_ms, window_s)| query.ends_before(start_ms, window_s)) {
            break;
        }
        let span = ReadSpan { from: part.from, to: part.to, ..spans[part.span].0.clone() };
        read_bytes += read_part(&span, &mut file, &mut query, zones).await;
    }
    file.close().await;
    (query.finish(), read_bytes)
}

/// The segment read last: parts of the same one follow each other.
#[derive(Default)]
struct File {
    open: Option<(u64, Option<executor::Reader>)>,
}

impl File {
    /// `None`: it cannot be opened.
    async fn of(&mut self, span: &ReadSpan) -> Option<&executor::Reader> {
        if self.open.as_ref().is_none_or(|(id, _)| *id != span.segment_id) {
            self.close().await;
            let reader = match executor::Reader::open(&span.path).await {
                Ok(reader) => Some(reader),
                Err(error) => {
                    tracing::warn!(cause = "read_windows", path = %span.path.display(), %error, "a segment of closed windows cannot be opened");
                    None
                }
            };
            self.open = Some((span.segment_id, reader));
        }
        self.open.as_ref().and_then(|(_, reader)| reader.as_ref())
    }

    async fn close(&mut self) {
        if let Some((_, Some(reader))) = self.open.take() {
            reader.close().await;
        }
    }
}

/// Offers everything in one part, and learns what is in it. Answers how many bytes it read.
async fn read_part(span: &ReadSpan, file: &mut File, query: &mut WindowQuery, zones: &RefCell<Zones>) -> u64 {
    let Some(reader) = file.of(span).await else { return 0 };
    let mut learning = Learning::new(span.segment_id, span.from);
    let (mut at, mut want, mut read_bytes) = (span.from, CHUNK_BYTES, 0);
    'part: while at < span.to {
        let len = want.min((span.to - at) as usize);
        let bytes = match reader.read_at(at, len).await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(cause = "read_windows", path = %span.path.display(), %error, "a segment of closed windows cannot be read");
                break;
            }
        };
        if bytes.is_empty() {
            break;
        }
        read_bytes += bytes.len() as u64;
        want = CHUNK_BYTES;
        let mut done = 0;
        while done + PAGE_BYTES <= bytes.len() {
            let here = Position { segment_id: span.segment_id, offset: at + done as u64 };
            match parse_block(&bytes[done..]) {
                Ok((header, _, payload)) if header.segment_id == span.segment_id => {
                    done += header.block_bytes();
                    learning.block(at + done as u64, &mut zones.borrow_mut(), |starts| {
                        for record in Records::new(payload).filter(|record| record.kind == RecordKind::Aggregates) {
                            let _ = decode_aggregates(record.bytes, &mut |view| {
                                starts.add(view.window_s, view.start_ms);
                                query.offer(here, &view);
                            });
                        }
                    });
                }
                // The file has become another segment.
                Ok(_) => break 'part,
                Err(_) => {
                    match BlockHeader::parse(&bytes[done..]) {
                        Ok((header, _))
                            if done + header.block_bytes() > bytes.len() && at + (bytes.len() as u64) < span.to =>
                        {
                            want = CHUNK_BYTES.max(header.block_bytes());
                            break;
                        }
                        Ok((header, _)) => done += header.block_bytes().max(BLOCK_HEADER_BYTES),
                        Err(_) => done += PAGE_BYTES,
                    }
                    learning.close(&mut zones.borrow_mut(), at + done as u64);
                }
            }
        }
        if done == 0 && want == CHUNK_BYTES {
            break;
        }
        at += done as u64;
        executor::yield_now().await;
    }
    learning.close(&mut zones.borrow_mut(), at);
    read_bytes
}
