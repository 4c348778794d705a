//! Where closed windows go: what the reducer needs of the segment log, and a log in memory for tests.

/// The kinds of record in the aggregate log; the bytes of each are [`super::encode`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Aggregates,
    Mark,
    Era,
}

/// The log cannot take it now (full, failed, no segment). The caller keeps what it has and tries again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRefused;

pub trait AggregateLog {
    /// Appends one record. After `Ok` it is the log's to make durable, in order, if need be in a fresh segment.
    /// `results`: how many window results are in it.
    fn append(&mut self, kind: Kind, stamp_ns: i64, results: u32, bytes: &[u8]) -> Result<(), LogRefused>;

    /// `Ok` when everything appended before is durable. After an error it is asked again; what that takes (never a
    /// second flush of the same segment) is the log's matter.
    fn flush(&mut self) -> Result<(), LogRefused>;
}

/// A log in memory that can lose what was not flushed, refuse appends and fail flushes.
#[derive(Clone, Debug, Default)]
pub struct MemoryLog {
    pub records: Vec<(Kind, Vec<u8>)>,
    pub durable: usize,
    /// Appends that will be refused before the next one succeeds.
    pub refusals: u32,
    /// The same for flushes.
    pub flush_refusals: u32,
}

impl MemoryLog {
    /// A crash that keeps what was flushed and `more` of what was not.
    pub fn crash(&mut self, more: usize) {
        self.records.truncate(self.durable + more);
        self.durable = self.records.len();
        (self.refusals, self.flush_refusals) = (0, 0);
    }
}

impl AggregateLog for MemoryLog {
    fn append(&mut self, kind: Kind, _stamp_ns: i64, _results: u32, bytes: &[u8]) -> Result<(), LogRefused> {
        if self.refusals > 0 {
            self.refusals -= 1;
            return Err(LogRefused);
        }
        self.records.push((kind, bytes.to_vec()));
        Ok(())
    }

    fn flush(&mut self) -> Result<(), LogRefused> {
        if self.flush_refusals > 0 {
            self.flush_refusals -= 1;
            return Err(LogRefused);
        }
        self.durable = self.records.len();
        Ok(())
    }
}
