//! Dead letters: what a sink refused for good, kept with its reason until an operator has looked at it.
//!
//! A directory a sink, of NDJSON files `<n>.ndjson`, appended to and rotated. Promises:
//! - An entry is on stable storage when `append` has returned. Only then may the sink's cursor move past it.
//! - Disk is bounded: beyond the bound the oldest file goes, and its entries are counted and named in a warning.
//! - After a crash a torn last line is cut off: its point lies behind the cursor and comes again.
//! - A crash between append and cursor repeats entries; equal ids are the same entry, and reading gives them once.
//! - Server and command line work on the same directory at once: every change holds the lock file.
//!
//! `retry` takes the files aside ([`taken`]), so that what is refused again, or meanwhile, lands in new ones; how far they
//! are sent is durable too, and a retry that was killed is gone on with.

mod taken;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub use taken::Taken;

/// One record that a sink refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Of the point: the same however often it is sent
    pub id: String,
    /// When it was refused, Unix ms
    pub time_ms: i64,
    /// Name of the sink
    pub sink: String,
    /// Where it should have gone, in the sink's own words: database and retention policy, bucket, topic
    pub target: String,
    /// The sink's reason, or ours
    pub reason: String,
    /// Key of a Kafka record
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Headers of a Kafka record besides its id
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// What was sent: a line of line protocol, a JSON document
    pub body: String,
}

/// What became of a letter that was sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The sink has it
    Taken,
    /// .. or refuses it again, for this reason
    Refused(String),
}

#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// A new file begins at this size
    pub file_bytes_max: u64,
    /// All files together
    pub bytes_max: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { file_bytes_max: 8 << 20, bytes_max: 256 << 20 }
    }
}

/// Longest line that is read back; no sink takes records this large.
const LINE_BYTES_MAX: u64 = 32 << 20;

#[derive(Debug)]
pub struct DeadLetters {
    dir: PathBuf,
    bounds: Bounds,
    /// Entries that went because of the bound
    dropped: u64,
}

/// What is in a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stock {
    pub files: u64,
    pub bytes: u64,
}

impl DeadLetters {
    /// Makes the directory if it is missing, and mends the tail of its newest file.
    pub fn open(dir: &Path, bounds: Bounds) -> io::Result<DeadLetters> {
        fs::create_dir_all(dir)?;
        OpenOptions::new().create(true).append(true).open(dir.join("lock"))?;
        for parent in dir.ancestors().take(2) {
            File::open(parent)?.sync_all()?;
        }
        let letters = DeadLetters { dir: dir.to_owned(), bounds, dropped: 0 };
        let held = hold(dir)?;
        if let Some((_, newest)) = files(&letters.dir)?.pop() {
            cut_torn_line(&newest)?;
        }
        drop(held);
        Ok(letters)
    }

    /// Appends and makes durable.
    pub fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut text = Vec::new();
        for entry in entries {
            serde_json::to_writer(&mut text, entry)?;
            text.push(b'\n');
        }
        let held = hold(&self.dir)?;
        let mut there = files(&self.dir)?;
        let newest = there.last().cloned();
        if let Some((_, path)) = &newest {
            // Another process may have been killed while it wrote: half a line, of which it has told nobody.
            cut_torn_line(path)?;
        }
        let size = |path: &Path| fs::metadata(path).map(|m| m.len());
        let (path, is_new) = match newest {
            Some((_, path)) if size(&path)? + text.len() as u64 <= self.bounds.file_bytes_max => (path, false),
            Some((number, _)) => (self.dir.join(format!("{:08}.ndjson", number + 1)), true),
            None => (self.dir.join(format!("{:08}.ndjson", 1)), true),
        };
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        let before = file.metadata()?.len();
        if let Err(error) = file.write_all(&text).and_then(|()| file.sync_data()) {
            // Whole lines only: the next append goes on where this one began.
            let _ = file.set_len(before);
            return Err(error);
        }
        if is_new {
            File::open(&self.dir)?.sync_all()?;
        }
        // What was just written stays, whatever the bound.
        let mut bytes = size(&path)?;
        there.retain(|(_, other)| *other != path);
        for (_, old) in there.iter().rev() {
            bytes += size(old)?;
            if bytes > self.bounds.bytes_max {
                let lines = count_lines(old)?;
                bytes -= size(old)?;
                fs::remove_file(old)?;
                self.dropped += lines;
                tracing::warn!(
                    entries = lines,
                    path = %old.display(),
                    "the dead letters have reached their bound on disk: the oldest were removed"
                );
            }
        }
        drop(held);
        Ok(())
    }

    /// Entries removed because of the bound, since the start.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    pub fn stock(&self) -> io::Result<Stock> {
        let mut stock = Stock::default();
        for path in files(&self.dir)?.into_iter().map(|(_, path)| path).chain(taken::taken_files(&self.dir)?) {
            match fs::metadata(path) {
                Ok(file) => {
                    stock.files += 1;
                    stock.bytes += file.len();
                }
                // A retry has it, or is done with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(stock)
    }

    /// Every entry, the oldest first, equal ids once (their newest reason). `unreadable` counts lines that are none.
    pub fn list(&self) -> io::Result<(Vec<Entry>, u64)> {
        let _held = hold(&self.dir)?;
        let taken = taken::taken_files(&self.dir)?.into_iter().map(|path| Ok((taken::settled_bytes(&path)?, path)));
        let whole = files(&self.dir)?.into_iter().map(|(_, path)| Ok((0, path)));
        let from = taken.chain(whole).map(|file| file.map(|(from, path)| (path, from)));
        let from = from.collect::<io::Result<Vec<_>>>()?;
        let (letters, unreadable) = taken::read(&from)?;
        let unreadable = unreadable + taken::unreadable_before(&from)?;
        Ok((letters.into_iter().map(|letter| letter.entry).collect(), unreadable))
    }

    /// Takes everything aside to be sent again, behind what an earlier retry has left.
    pub fn take(&self) -> io::Result<Taken> {
        let _held = hold(&self.dir)?;
        let mut number = taken::newest_number(&self.dir)?;
        for (_, path) in files(&self.dir)? {
            cut_torn_line(&path)?;
            number += 1;
            fs::rename(&path, self.dir.join(format!("taken-{number:08}.ndjson")))?;
        }
        File::open(&self.dir)?.sync_all()?;
        Taken::open(&self.dir)
    }

    /// Held while letters are sent again: a second retry would send the same ones beside it. `None`: somebody has it.
    pub fn hold_retry(&self) -> io::Result<Option<RetryHeld>> {
        let file = OpenOptions::new().create(true).append(true).open(self.dir.join("retry-lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(RetryHeld { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

fn hold(dir: &Path) -> io::Result<Held> {
    // A lock of its own descriptor: two threads of one process exclude each other as two processes do.
    let file = OpenOptions::new().append(true).open(dir.join("lock"))?;
    file.lock()?;
    Ok(Held { _file: file })
}

struct Held {
    _file: File,
}

/// The one retry of a sink's letters; the kernel lets it go when the process ends.
#[derive(Debug)]
pub struct RetryHeld {
    _file: File,
}

/// Numbered files, ascending.
fn files(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "ndjson")
            && let Some(number) = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok())
        {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

fn count_lines(path: &Path) -> io::Result<u64> {
    let mut lines = 0;
    let mut reader = BufReader::new(File::open(path)?);
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(lines);
        }
        lines += buffer.iter().filter(|&&b| b == b'\n').count() as u64;
        let used = buffer.len();
        reader.consume(used);
    }
}

/// A crash may have left half a line, or zeros.
fn cut_torn_line(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let mut end = length;
    let mut last = [0];
    if length > 0 && file.read_exact_at(&mut last, length - 1).is_ok() && last == *b"\n" {
        return Ok(());
    }
    let mut piece = vec![0; 64 << 10];
    while end > 0 {
        let start = end.saturating_sub(piece.len() as u64);
        let bytes = &mut piece[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(bytes)?;
        if let Some(at) = bytes.iter().rposition(|&b| b == b'\n') {
            end = start + at as u64 + 1;
            break;
        }
        end = start;
    }
    if end != length {
        file.set_len(end)?;
        file.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn entry(id: u32, reason: &str) -> Entry {
        Entry {
            id: format!("p{id}"),
            time_ms: 1_769_860_800_000,
            sink: "influx".into(),
            target: "db=metrics rp=raw".into(),
            reason: reason.into(),
            key: None,
            headers: BTreeMap::new(),
            body: format!("cpu,host=a value=\"{id}\nsecond line\" 1"),
        }
    }
    pub fn open(dir: &Path) -> DeadLetters {
        DeadLetters::open(dir, Bounds { file_bytes_max: 1000, bytes_max: 3000 }).expect("opens")
    }
    pub fn ids(letters: &DeadLetters) -> Vec<String> {
        letters.list().expect("lists").0.into_iter().map(|e| e.id).collect()
    }

    #[test]
    fn one_retry_at_a_time() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let letters = open(dir.path());
        let first = letters.hold_retry().expect("lockable");
        assert!(first.is_some() && open(dir.path()).hold_retry().expect("lockable").is_none());
        drop(first);
        assert!(letters.hold_retry().expect("lockable").is_some());
        assert_eq!(letters.stock().expect("counted"), Stock::default(), "a lock is no letter");
    }

    #[test]
    fn entries_come_back_as_they_were_in_their_order_and_equal_ids_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut letters = open(&dir.path().join("deep/influx"));
        letters.append(&[entry(1, "first"), entry(2, "x")]).expect("appends");
        letters.append(&[entry(1, "second")]).expect("appends");
        letters.append(&[]).expect("appends nothing");
        assert_eq!(letters.list().expect("lists"), (vec![entry(2, "x"), entry(1, "second")], 0));
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_the_file_goes_on() {
        let dir = tempfile::tempdir().expect("a directory");
        for torn in [&b"{\"id\":\"p9"[..], &[0; 70_000], b"x"] {
            let path = dir.path().join(format!("{}", torn.len()));
            let mut letters = open(&path);
            letters.append(&[entry(1, "x")]).expect("appends");
            let file = path.join("00000001.ndjson");
            let sound = fs::read(&file).expect("reads");
            fs::write(&file, [&sound[..], torn].concat()).expect("writes");
            let mut letters = open(&path);
            assert_eq!(fs::read(&file).expect("reads"), sound);
            letters.append(&[entry(2, "x")]).expect("appends");
            assert_eq!(letters.list().expect("lists"), (vec![entry(1, "x"), entry(2, "x")], 0));
            // Another process was killed while it wrote, and this one goes on.
            let sound = fs::read(&file).expect("reads");
            fs::write(&file, [&sound[..], torn].concat()).expect("writes");
            letters.append(&[entry(3, "x")]).expect("appends");
            assert_eq!(letters.list().expect("lists"), (vec![entry(1, "x"), entry(2, "x"), entry(3, "x")], 0));
        }
    }

    #[test]
    fn files_are_rotated_and_the_oldest_go_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut letters = open(dir.path());
        for n in 0..100 {
            letters.append(&[entry(n, "a reason of some length that fills the file")]).expect("appends");
            let stock = letters.stock().expect("looks");
            assert!(stock.bytes <= 3000 && stock.files <= 4, "{stock:?}");
        }
        let kept = ids(&letters);
        assert_eq!(kept.len() as u64 + letters.dropped(), 100);
        assert_eq!(kept.last().map(String::as_str), Some("p99"));
        assert_eq!(kept, ids(&open(dir.path())), "a restart changes nothing");
    }

    #[test]
    fn one_entry_larger_than_every_bound_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut letters = open(dir.path());
        letters.append(&[entry(1, "x")]).expect("appends");
        letters.append(&[Entry { body: "y".repeat(5000), ..entry(2, "x") }]).expect("appends");
        assert_eq!((ids(&letters), letters.dropped()), (vec!["p2".to_owned()], 1));
    }

    #[test]
    fn what_is_taken_and_refused_again_stays_and_the_rest_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut server, mut command) = (open(dir.path()), open(dir.path()));
        server.append(&[entry(1, "x"), entry(2, "x")]).expect("appends");
        let mut taken = command.take().expect("takes");
        assert_eq!(taken.waiting().len(), 2);
        server.append(&[entry(3, "meanwhile")]).expect("appends");
        command.append(&[entry(2, "again")]).expect("appends");
        taken.settle(2).expect("settles");
        taken.done().expect("removes");
        assert_eq!(ids(&server), ["p3", "p2"]);
    }

    #[test]
    fn a_retry_that_died_loses_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut letters = open(dir.path());
        for n in 1..4 {
            letters.append(&[entry(n, "x")]).expect("appends");
            drop(letters.take().expect("takes")); // ends without `done`
            assert_eq!(letters.stock().expect("looks").files, u64::from(n));
        }
        assert_eq!(ids(&letters).len(), 3);
        let mut taken = letters.take().expect("takes");
        taken.settle(3).expect("settles");
        taken.done().expect("removes");
        assert_eq!(letters.stock().expect("looks"), Stock::default());
    }

    #[test]
    fn a_line_that_is_no_entry_is_counted_and_its_file_kept_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut letters = open(dir.path());
        letters.append(&[entry(1, "x")]).expect("appends");
        let file = dir.path().join("00000001.ndjson");
        fs::write(&file, [b"{}\n".as_slice(), &fs::read(&file).expect("reads")].concat()).expect("writes");
        let mut taken = letters.take().expect("takes");
        assert_eq!((taken.waiting().len(), taken.unreadable), (1, 1));
        taken.settle(1).expect("settles");
        taken.done().expect("sets aside");
        assert!(dir.path().join("taken-00000001.unreadable").exists());
        assert_eq!(ids(&letters), Vec::<String>::new());
    }
}
