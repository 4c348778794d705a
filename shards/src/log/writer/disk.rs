//! Driving the disk: one operation at a time, block by block, each written and then flushed.

use super::super::PAGE_BYTES;
use super::super::block::{BLOCK_HEADER_BYTES, BlockHeader};
use super::super::mark::Mark;
use super::super::prepare::PreparedSegment;
use super::super::segment::SegmentHeader;
use super::{
    Active, DurableBlock, Flight, LogEvent, LogOp, LogState, LogWriter, Names, OpKind, Position, PreviousEnd, WriteMode,
};
use std::fs::File;

impl LogWriter {
    /// What the disk is to do next; `None`: nothing, or wait for a completion or a segment.
    pub fn next_op(&mut self, names: &impl Names) -> Option<LogOp> {
        if self.state == LogState::Failed {
            if self.spares.is_empty() {
                return None;
            }
            self.plan_again(names);
            self.state = LogState::Probing;
        }
        match self.flight {
            Flight::Idle => {
                if self.sealed.is_empty() {
                    self.seal();
                }
                let first = self.sealed.front()?;
                let generation = first.generation;
                if self.active.as_ref().is_some_and(|active| active.generation == generation) {
                    return Some(self.write_block());
                }
                let Some(spare) = self.spares.pop_front() else {
                    self.state = LogState::WaitingForSegment;
                    return None;
                };
                Some(self.begin_segment(spare, generation))
            }
            Flight::HeaderWritten => Some(self.write_block()),
            Flight::BlockWritten => {
                let op = self.op(OpKind::Flush);
                self.flight = Flight::Flush(op.id);
                Some(op)
            }
            Flight::Header(_) | Flight::Block(_) | Flight::Flush(_) => None,
        }
    }

    /// The header page is the writer's to write, not the preparer's: only now is it known where the segment before
    /// ended. It needs no flush of its own: the flush of the first block covers it, and without that block it is
    /// not missed.
    fn begin_segment(&mut self, spare: PreparedSegment, generation: u32) -> LogOp {
        self.retire_active();
        let first = self.sealed.front().expect("a segment begins with a block");
        let header = SegmentHeader {
            log_id: self.config.log_id,
            node_id: self.config.node_id,
            segment_id: spare.segment_id,
            epoch: self.epoch,
            created_stamp_ns: first.first_stamp_ns,
            salt: self.config.salt,
            previous_segment: self.previous.segment_id,
            previous_end: self.previous.end,
            previous_crc: self.previous.crc,
            first_block: self.next_block,
            first_point: first.first_point,
            durable_upto: self.durable_block,
            segment_bytes: spare.bytes,
        };
        self.header_page.set_len(PAGE_BYTES);
        header.write(&mut self.header_page);
        self.active = Some(Active {
            file: spare.file,
            segment_id: spare.segment_id,
            path: spare.path,
            bytes: spare.bytes,
            generation,
            end: PAGE_BYTES as u64,
        });
        if self.state == LogState::WaitingForSegment {
            self.state = LogState::Serving;
        }
        let (ptr, dsync) = (self.header_page.as_ptr(), self.config.mode == WriteMode::Dsync);
        let op = self.op(OpKind::Write { offset: 0, ptr, len: PAGE_BYTES as u32, dsync });
        self.flight = Flight::Header(op.id);
        op
    }

    fn write_block(&mut self) -> LogOp {
        let active = self.active.as_ref().expect("a block is written to a segment");
        let block = self.sealed.front_mut().expect("a block to write");
        let payload_bytes = block.payload_bytes();
        let header = BlockHeader {
            log_id: self.config.log_id,
            segment_id: active.segment_id,
            epoch: self.epoch,
            block_seq: self.next_block,
            first_point: block.first_point,
            points: block.points,
            payload_bytes: payload_bytes as u32,
            durable_upto: self.durable_block,
            first_stamp_ns: block.first_stamp_ns,
            last_stamp_ns: block.last_stamp_ns,
            payload_crc: crc32c::crc32c(&block.buf[BLOCK_HEADER_BYTES..]),
            previous_crc: self.previous.crc,
            records: block.records,
            offset: active.end,
            salt: self.config.salt,
        };
        header.write(&mut block.buf);
        block.buf.pad_to(PAGE_BYTES);
        assert!(active.end + block.buf.len() as u64 <= active.bytes, "blocks are planned to fit their segment");
        self.next_block += 1;
        let (offset, ptr, len) = (active.end, block.buf.as_ptr(), block.buf.len() as u32);
        let op = self.op(OpKind::Write { offset, ptr, len, dsync: self.config.mode == WriteMode::Dsync });
        self.flight = Flight::Block(op.id);
        op
    }

    fn op(&mut self, kind: OpKind) -> LogOp {
        use std::os::fd::AsRawFd;
        let active = self.active.as_ref().expect("operations have a segment");
        self.next_op += 1;
        LogOp { id: self.next_op, segment_id: active.segment_id, fd: active.file.as_raw_fd(), kind }
    }

    /// `result`: bytes written (0 for a flush), or a negative errno. Completions of operations that were given up
    /// as hung, and unknown ids, do nothing.
    pub fn complete(&mut self, op: u64, result: i32) -> LogEvent {
        if let Some(at) = self.quarantine.iter().position(|(id, ..)| *id == op) {
            self.quarantine.swap_remove(at);
            return LogEvent::Nothing;
        }
        match self.flight {
            Flight::Header(id) if id == op => {
                if result != PAGE_BYTES as i32 {
                    return self.fail(result);
                }
                self.flight = Flight::HeaderWritten;
                LogEvent::Nothing
            }
            Flight::Block(id) if id == op => {
                let block = self.sealed.front().expect("the block in flight");
                if result < 0 || result as usize != block.buf.len() {
                    return self.fail(result);
                }
                match self.config.mode {
                    WriteMode::Dsync => self.committed(),
                    WriteMode::WriteThenFlush => {
                        self.flight = Flight::BlockWritten;
                        LogEvent::Nothing
                    }
                }
            }
            Flight::Flush(id) if id == op => {
                if result != 0 {
                    return self.fail(result);
                }
                self.committed()
            }
            _ => LogEvent::Nothing,
        }
    }

    fn committed(&mut self) -> LogEvent {
        self.flight = Flight::Idle;
        let block = self.sealed.pop_front().expect("the block in flight");
        let active = self.active.as_mut().expect("it was written to a segment");
        let (header, crc) = BlockHeader::parse(&block.buf).expect("written in `write_block`");
        let position = Position { segment_id: active.segment_id, offset: active.end };
        active.end += block.buf.len() as u64;
        self.previous = PreviousEnd { segment_id: active.segment_id, end: active.end, crc };
        self.mark.publish(Mark {
            end: self.durable_end(),
            next_point: header.end_point(),
            last_stamp_ns: header.last_stamp_ns,
        });
        self.durable_block = header.block_seq;
        self.undurable_bytes -= BLOCK_HEADER_BYTES + header.payload_bytes as usize;
        let Some(commit) = block.commit else {
            self.reuse(block.buf);
            return LogEvent::Nothing;
        };
        self.state = LogState::Serving;
        self.durable_commit = commit;
        if self.durable_bytes + block.buf.len() <= self.config.durable_bytes_max {
            self.durable_bytes += block.buf.len();
            self.durable.push_back(DurableBlock { buf: block.buf, header, commit, position });
        } else {
            self.reuse(block.buf);
        }
        LogEvent::Durable { upto: commit }
    }

    /// For drivers that make calls instead of passing addresses: the bytes and the file of the operation in flight.
    pub fn op_bytes(&self, op: u64) -> Option<(&File, &[u8])> {
        let file = &*self.active.as_ref()?.file;
        match self.flight {
            Flight::Header(id) if id == op => Some((file, &self.header_page)),
            Flight::Block(id) if id == op => Some((file, &self.sealed.front()?.buf)),
            Flight::Flush(id) if id == op => Some((file, &[])),
            _ => None,
        }
    }
}
