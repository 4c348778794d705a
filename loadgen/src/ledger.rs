//! What was sent and what became of it, in an append-only file.

use std::io;
use std::path::Path;

use crate::plan::Plan;
use crate::workload::Batch;

pub struct Writer {}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    Timeout,
    Reset,
    RefusedConnection,
    Closed,
    BadAnswer,
}

impl Writer {
    /// A new file; refuses one that exists.
    pub fn create(_path: &Path, _plan: &Plan) -> io::Result<Writer> {
        unimplemented!()
    }

    /// A batch came into being.
    pub fn batch(&mut self, _batch: Batch) {
        unimplemented!()
    }

    /// `request` (unique in the run) is about to leave with `count` batches of the client, from `first` on.
    pub fn sent(&mut self, _request: u64, _client: u32, _first: u64, _count: u32) {
        unimplemented!()
    }

    pub fn acknowledged(&mut self, _request: u64, _status: u16) {
        unimplemented!()
    }

    pub fn refused(&mut self, _request: u64, _status: u16) {
        unimplemented!()
    }

    pub fn unknown(&mut self, _request: u64, _cause: NoAnswer) {
        unimplemented!()
    }

    /// Hands what was noted to the kernel, so that it survives a kill of this process. Called before the sends it tells
    /// of are submitted. After an error nothing more may be sent.
    pub fn flush(&mut self) -> io::Result<()> {
        unimplemented!()
    }
}
