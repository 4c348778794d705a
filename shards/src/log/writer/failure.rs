//! When the disk fails or hangs: the segment is given up, and what was not durable is planned anew for the next ones.

use super::super::aligned::AlignedBuf;
use super::super::block::{BLOCK_HEADER_BYTES, BlockHeader, FLAG_SECOND_COPY, RecordKind, Records};
use super::super::names::put_name;
use super::super::record::BatchDecoder;
use super::super::{PAGE_BYTES, pages};
use super::pending::Pending;
use super::{Flight, LogEvent, LogState, LogWriter, Names};
use crate::point::INLINE_BIT;

impl LogWriter {
    /// The operation did not come back in time. Its memory is set aside until it does; the segment is given up.
    pub fn abort_hung(&mut self, op: u64) -> LogEvent {
        let hung = match self.flight {
            Flight::Header(id) if id == op => {
                std::mem::replace(&mut self.header_page, AlignedBuf::with_capacity(PAGE_BYTES))
            }
            Flight::Block(id) if id == op => {
                let block = self.sealed.front_mut().expect("the block in flight");
                let mut copy = AlignedBuf::with_capacity(block.buf.len());
                copy.extend_from_slice(&block.buf);
                std::mem::replace(&mut block.buf, copy)
            }
            Flight::Flush(id) if id == op => AlignedBuf::with_capacity(1),
            _ => return LogEvent::Nothing,
        };
        let file = self.active.as_ref().map(|active| active.file.clone());
        self.quarantine.push((op, hung, file));
        self.fail(0)
    }

    pub(super) fn fail(&mut self, result: i32) -> LogEvent {
        // The block may have been closed with its padding; its payload length tells what to take off again.
        if let Some(block) = self.sealed.front_mut()
            && matches!(self.flight, Flight::Block(_) | Flight::BlockWritten | Flight::Flush(_))
        {
            let (header, _) = BlockHeader::parse(&block.buf).expect("written in `write_block`");
            block.buf.set_len(BLOCK_HEADER_BYTES + header.payload_bytes as usize);
        }
        self.flight = Flight::Idle;
        self.state = LogState::Failed;
        let (segment_id, path) = self.active.as_ref().map(|a| (a.segment_id, a.path.clone())).unwrap_or_default();
        self.retire_active();
        LogEvent::Failed { segment_id, path, errno: if result < 0 { -result } else { 0 } }
    }

    /// Plans everything that is not durable for new segments: the same records in the same blocks, each behind blocks
    /// that name its series (twice, as always).
    pub(super) fn plan_again(&mut self, names: &impl Names) {
        self.seal();
        self.plan_next_segment();
        let blocks: Vec<Pending> = self.sealed.drain(..).collect();
        let mut decoder = BatchDecoder::default();
        for mut block in blocks {
            if block.commit.is_none() {
                self.undurable_bytes -= block.buf.len();
                self.reuse(block.buf);
                continue;
            }
            let mut carriers = self.name_carriers(&block, &mut decoder, names);
            let bytes = |carriers: &[Pending]| {
                (carriers.iter().map(|c| pages(c.buf.len())).sum::<usize>() + pages(block.buf.len())) as u64
            };
            if self.planned_end + bytes(&carriers) > self.config.segment_bytes && self.planned_end > PAGE_BYTES as u64 {
                self.plan_next_segment();
                carriers = self.name_carriers(&block, &mut decoder, names);
            }
            if self.planned_end + bytes(&carriers) > self.config.segment_bytes {
                // Names too many for one segment with their second copies: the first copies must do.
                carriers.truncate(carriers.len() / 2);
            }
            self.planned_end += bytes(&carriers);
            for carrier in carriers {
                self.undurable_bytes += carrier.buf.len();
                self.sealed.push_back(carrier);
            }
            block.generation = self.generation;
            self.sealed.push_back(block);
        }
    }

    /// Blocks with the names that `block` needs and its segment does not have; the second half repeats the first.
    fn name_carriers(&mut self, block: &Pending, decoder: &mut BatchDecoder, names: &impl Names) -> Vec<Pending> {
        let mut chunks: Vec<Vec<u8>> = Vec::new();
        for record in Records::new(&block.buf[BLOCK_HEADER_BYTES..]).filter(|r| r.kind == RecordKind::Batch) {
            let (_, batch) = decoder.decode(record.bytes).expect("encoded by this writer");
            for &series in batch.series.iter().filter(|&&s| s & INLINE_BIT == 0) {
                if self.named[series as usize] != self.generation {
                    self.named[series as usize] = self.generation;
                    if chunks.last().is_none_or(|chunk| chunk.len() > self.config.block_bytes) {
                        chunks.push(Vec::new());
                    }
                    put_name(chunks.last_mut().expect("pushed above"), series, names.key(series));
                }
            }
        }
        let carrier = |chunk: &Vec<u8>, flags| {
            let buf = AlignedBuf::with_capacity(BLOCK_HEADER_BYTES + chunk.len() + 16);
            let mut carrier = Pending::begin(buf, None, self.generation, block.first_point, block.first_stamp_ns);
            carrier.appended_in = block.appended_in;
            carrier.put_record(RecordKind::Names, flags, |buf| buf.extend_from_slice(chunk));
            carrier
        };
        let first = chunks.iter().map(|chunk| carrier(chunk, 0));
        first.chain(chunks.iter().map(|chunk| carrier(chunk, FLAG_SECOND_COPY))).collect()
    }
}
