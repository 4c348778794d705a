//! Reads a ledger back, however its writer ended.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::format::{self, Event};
use crate::plan::Plan;

/// Why a ledger cannot be read, as one sentence.
#[derive(Debug, thiserror::Error)]
#[error("the ledger {path} {what}")]
pub struct Problem {
    path: String,
    what: String,
}

/// Gives the notes in the order they were made. A last record that is cut off, as a kill or a full disk leaves it, ends
/// the ledger and is counted in [`Reader::dropped_bytes`]; damage before that is an error.
pub struct Reader {
    input: BufReader<File>,
    path: PathBuf,
    plan: Plan,
    /// Of the next record
    offset: u64,
    chain: u32,
    dropped_bytes: u64,
    ended: bool,
}

impl Reader {
    pub fn open(path: &Path) -> Result<Reader, Problem> {
        let wrong = |what: String| Problem { path: path.display().to_string(), what };
        let file = File::open(path).map_err(|error| wrong(format!("cannot be opened: {error}")))?;
        let mut input = BufReader::with_capacity(1 << 18, file);
        let mut head = [0; format::HEADER_BYTES];
        let got = read_full(&mut input, &mut head).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        if !head[..got].starts_with(&format::MAGIC) {
            return Err(wrong("is no ledger: it does not begin with MSLEDGER".to_string()));
        }
        let cut = || wrong("ends within its header: the run never began, and there is nothing to compare".to_string());
        if got < head.len() {
            return Err(cut());
        }
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (version, plan_bytes) = (word(8), word(12));
        if version != format::VERSION {
            let known = format::VERSION;
            return Err(wrong(format!(
                "has version {version} and this program reads version {known}; use the program that wrote it"
            )));
        }
        if plan_bytes > format::PLAN_BYTES_MAX {
            return Err(wrong(format!("is damaged at byte 12: a plan of {plan_bytes} bytes")));
        }
        let mut rest = vec![0; plan_bytes as usize + format::CRC_BYTES];
        let got = read_full(&mut input, &mut rest).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        if got < rest.len() {
            return Err(cut());
        }
        let (json, crc) = rest.split_at(plan_bytes as usize);
        let chain = crc32c::crc32c_append(crc32c::crc32c(&head), json);
        if crc != chain.to_le_bytes() {
            return Err(wrong("is damaged in its header (bytes 0 on): the checksum differs".to_string()));
        }
        let plan = serde_json::from_slice(json)
            .map_err(|error| wrong(format!("holds a plan that this program does not understand: {error}")))?;
        let offset = (format::HEADER_BYTES + rest.len()) as u64;
        Ok(Reader { input, path: path.to_path_buf(), plan, offset, chain, dropped_bytes: 0, ended: false })
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How much of a torn end was left out; known once [`Reader::event`] has answered `None`.
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    /// The next note; `None` at the end.
    pub fn event(&mut self) -> Result<Option<Event>, Problem> {
        if self.ended {
            return Ok(None);
        }
        let mut record = [0; format::RECORD_BYTES_MAX];
        if self.read(&mut record[..1])? == 0 {
            self.ended = true;
            return Ok(None);
        }
        let Some(payload) = format::payload_bytes(record[0]) else {
            return self.bad_record(&record[..1], "a record of no known kind");
        };
        let whole = 1 + payload + format::CRC_BYTES;
        let got = 1 + self.read(&mut record[1..whole])?;
        if got < whole {
            self.ended = true;
            self.dropped_bytes = got as u64;
            return Ok(None);
        }
        let (body, crc) = record[..whole].split_at(1 + payload);
        let chain = crc32c::crc32c_append(self.chain, body);
        if crc != chain.to_le_bytes() {
            return self.bad_record(&record[..whole], "the checksum differs");
        }
        let Some(event) = format::parse(body[0], &body[1..]) else {
            return self.bad_record(&record[..whole], "a field has no meaning");
        };
        self.chain = chain;
        self.offset += whole as u64;
        Ok(Some(event))
    }

    /// Zeros to the end are what a power cut leaves of a file that was growing: a torn end. All else is damage.
    fn bad_record(&mut self, seen: &[u8], what: &str) -> Result<Option<Event>, Problem> {
        let mut zeros = seen.iter().all(|&byte| byte == 0);
        let mut bytes = seen.len() as u64;
        let mut chunk = [0; 4096];
        while zeros {
            let got = self.read(&mut chunk)?;
            if got == 0 {
                self.ended = true;
                self.dropped_bytes = bytes;
                return Ok(None);
            }
            bytes += got as u64;
            zeros = chunk[..got].iter().all(|&byte| byte == 0);
        }
        self.ended = true;
        let offset = self.offset;
        Err(self.problem(format!("is damaged at byte {offset}: {what}; what comes after cannot be trusted")))
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, Problem> {
        read_full(&mut self.input, into).map_err(|error| self.problem(format!("cannot be read: {error}")))
    }

    fn problem(&self, what: String) -> Problem {
        Problem { path: self.path.display().to_string(), what }
    }
}

/// Less only at the end of the file.
fn read_full(input: &mut impl Read, into: &mut [u8]) -> std::io::Result<usize> {
    let mut got = 0;
    while got < into.len() {
        match input.read(&mut into[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}
