//! What is durable, for who folds it: blocks still in memory, and the spans of files to read the others from.

use super::super::PAGE_BYTES;
use super::super::aligned::AlignedBuf;
use super::{DurableBlock, FREE_BUFFERS_MAX, LogWriter, Position, ReadSpan};

impl LogWriter {
    /// The oldest durable block that is still in memory.
    pub fn take_durable(&mut self) -> Option<DurableBlock> {
        let block = self.durable.pop_front()?;
        self.durable_bytes -= block.buf.len();
        Some(block)
    }

    /// Gives a block's memory back for the next one.
    pub fn recycle(&mut self, block: DurableBlock) {
        self.reuse(block.buf);
    }

    pub(super) fn reuse(&mut self, mut buf: AlignedBuf) {
        if self.free.len() < FREE_BUFFERS_MAX && buf.capacity() <= 2 * self.config.block_bytes {
            buf.clear();
            self.free.push(buf);
        }
    }

    /// What to read from disk to have everything durable from `from` on.
    pub fn read_plan(&self, from: Position) -> Vec<ReadSpan> {
        let active = self.active.as_ref().map(|active| ReadSpan {
            segment_id: active.segment_id,
            path: active.path.clone(),
            from: PAGE_BYTES as u64,
            to: active.end,
        });
        let spans = self.history.iter().cloned().chain(active);
        spans
            .filter(|span| span.segment_id >= from.segment_id)
            .map(|mut span| {
                if span.segment_id == from.segment_id {
                    span.from = span.from.max(from.offset);
                }
                span
            })
            .filter(|span| span.from < span.to)
            .collect()
    }

    /// Retention removed these segments.
    pub fn forget_segments_below(&mut self, segment_id: u64) {
        while self.history.front().is_some_and(|span| span.segment_id < segment_id) {
            self.history.pop_front();
        }
    }

    pub(super) fn retire_active(&mut self) {
        if let Some(active) = self.active.take()
            && active.end > PAGE_BYTES as u64
        {
            self.history.push_back(ReadSpan {
                segment_id: active.segment_id,
                path: active.path,
                from: PAGE_BYTES as u64,
                to: active.end,
            });
        }
    }
}
