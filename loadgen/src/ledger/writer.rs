//! Writes a ledger.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::NoAnswer;
use super::format::{self, Event};
use crate::plan::Plan;
use crate::workload::Batch;

pub struct Writer {
    file: File,
    path: PathBuf,
    /// Notes that the kernel does not have yet
    notes: Vec<u8>,
    chain: u32,
    clock_ns: i64,
}

impl Writer {
    /// A new file; refuses one that exists.
    pub fn create(path: &Path, plan: &Plan) -> io::Result<Writer> {
        let told = |error: io::Error| {
            let why = match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    "it exists and may be the only record of a run; name another file, or remove it".to_string()
                }
                _ => error.to_string(),
            };
            io::Error::new(error.kind(), format!("the ledger {} cannot be made: {why}", path.display()))
        };
        let file = OpenOptions::new().append(true).create_new(true).open(path).map_err(told)?;
        let mut writer = Writer::at(file, path, plan);
        writer.flush()?;
        Ok(writer)
    }

    /// With the header noted.
    pub(super) fn at(file: File, path: &Path, plan: &Plan) -> Writer {
        let plan = serde_json::to_vec(plan).expect("a plan has nothing that JSON lacks");
        let mut notes = Vec::with_capacity(1 << 20);
        notes.extend_from_slice(&format::MAGIC);
        notes.extend_from_slice(&format::VERSION.to_le_bytes());
        notes.extend_from_slice(&(plan.len() as u32).to_le_bytes());
        notes.extend_from_slice(&plan);
        let chain = crc32c::crc32c(&notes);
        notes.extend_from_slice(&chain.to_le_bytes());
        Writer { file, path: path.to_path_buf(), notes, chain, clock_ns: i64::MIN }
    }

    #[inline]
    fn note(&mut self, event: Event) {
        format::append(&mut self.notes, &mut self.chain, event);
    }

    /// A batch came into being.
    pub fn batch(&mut self, batch: Batch) {
        self.note(Event::Batch(batch));
    }

    /// `request` (unique in the run) is about to leave with `count` batches of the client, from `first` on.
    pub fn sent(&mut self, request: u64, client: u32, first: u64, count: u32) {
        self.note(Event::Sent { request, client, first, count });
    }

    pub fn acknowledged(&mut self, request: u64, status: u16) {
        self.note(Event::Acknowledged { request, status });
    }

    pub fn refused(&mut self, request: u64, status: u16) {
        self.note(Event::Refused { request, status });
    }

    pub fn unknown(&mut self, request: u64, cause: NoAnswer) {
        self.note(Event::Unknown { request, cause });
    }

    /// Hands what was noted to the kernel, so that it survives a kill of this process. Called before the sends it tells
    /// of are submitted. After an error nothing more may be sent.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.notes.is_empty() {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64);
        if now.saturating_sub(self.clock_ns) >= format::CLOCK_EVERY_NS {
            self.clock_ns = now;
            self.note(Event::Clock { unix_ns: now });
        }
        let mut written = 0;
        let outcome = loop {
            match self.file.write(&self.notes[written..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
            if written == self.notes.len() {
                break Ok(());
            }
        };
        // What was taken is not written again by a later attempt.
        self.notes.drain(..written);
        outcome.map_err(|error| {
            let path = self.path.display();
            io::Error::new(error.kind(), format!("the ledger {path} cannot be written: {error}; the run ends here"))
        })
    }
}
