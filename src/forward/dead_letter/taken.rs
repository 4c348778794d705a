//! Letters on their way out again: files that a retry has taken aside, and how far each of them is settled.
//!
//! `taken-<n>.ndjson` rise in the order in which they were taken. Beside a file that is settled in part stands its place,
//! `taken-<n>.place`: the bytes at its start that are not to be sent again. Promises:
//! - When [`Taken::settle`] has returned, its letters are not sent again by any later retry; the place is on stable storage.
//! - A place that cannot be believed (no number, no end of a line) counts for nothing: the file goes out whole, under equal ids.
//! - A file goes when all of its letters are settled; one with lines that cannot be read stays, under a name that nobody takes.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{Entry, LINE_BYTES_MAX, hold};

/// Letters that wait to be sent again. Dropping it leaves what is not settled to the next retry.
#[derive(Debug)]
pub struct Taken {
    letters: Vec<Letter>,
    /// Letters before it are settled
    next: usize,
    /// Lines that are no letters
    pub unreadable: u64,
    files: Vec<TakenFile>,
    /// Files before it are gone
    next_file: usize,
    dir: PathBuf,
}

#[derive(Debug)]
pub struct Letter {
    pub entry: Entry,
    /// Number of its file among those that were read
    file: usize,
    /// Where its line ends
    end: u64,
}

#[derive(Debug)]
struct TakenFile {
    path: PathBuf,
    bytes: u64,
}

impl Taken {
    /// What is there of this and of earlier retries. The caller holds the lock.
    pub(super) fn open(dir: &Path) -> io::Result<Taken> {
        let paths = taken_files(dir)?;
        let from = paths.iter().map(|path| Ok((path.clone(), settled_bytes(path)?))).collect::<io::Result<Vec<_>>>()?;
        let (letters, unreadable) = read(&from)?;
        let unreadable = unreadable + unreadable_before(&from)?;
        let files = paths.into_iter().map(|path| Ok(TakenFile { bytes: fs::metadata(&path)?.len(), path }));
        let files = files.collect::<io::Result<Vec<_>>>()?;
        Ok(Taken { letters, next: 0, unreadable, files, next_file: 0, dir: dir.to_owned() })
    }

    /// The letters that are not settled, the oldest first.
    pub fn waiting(&self) -> &[Letter] {
        &self.letters[self.next..]
    }

    /// The next `count` letters are placed: with the sink, or among the letters anew, and there durable.
    pub fn settle(&mut self, count: usize) -> io::Result<()> {
        let Some(last) = self.letters[self.next..self.next + count].last() else { return Ok(()) };
        let (file, end) = (last.file, last.end);
        let _held = hold(&self.dir)?;
        self.remove_before(file)?;
        if end < self.files[file].bytes {
            store(&self.files[file].path, end)?;
        } else {
            self.remove_before(file + 1)?;
        }
        self.next += count;
        Ok(())
    }

    /// All letters are settled: what is left are files without any.
    pub fn done(mut self) -> io::Result<()> {
        assert!(self.waiting().is_empty(), "a retry ends when every letter is placed");
        let _held = hold(&self.dir)?;
        self.remove_before(self.files.len())
    }

    fn remove_before(&mut self, end: usize) -> io::Result<()> {
        for TakenFile { path, .. } in &self.files[self.next_file..end] {
            if read(&[(path.clone(), 0)])?.1 > 0 {
                fs::rename(path, path.with_extension("unreadable"))?;
            } else {
                fs::remove_file(path)?;
            }
            // After its file: a place whose file is gone is removed before another file gets the name.
            File::open(&self.dir)?.sync_all()?;
            remove_if_there(&place_of(path))?;
            self.next_file += 1;
        }
        Ok(())
    }
}

/// Before files are taken: the greatest number that was given, and no places of files that are gone.
pub(super) fn newest_number(dir: &Path) -> io::Result<u64> {
    let mut newest = 0;
    for path in named(dir)? {
        if path.extension().is_some_and(|extension| extension == "place") && !path.with_extension("ndjson").exists() {
            fs::remove_file(&path)?;
        } else if let Some((number, _)) = number_of(&path) {
            newest = newest.max(number);
        }
    }
    File::open(dir)?.sync_all()?;
    Ok(newest)
}

/// In the order in which they were taken.
pub(super) fn taken_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = named(dir)?;
    found.retain(|path| path.extension().is_some_and(|extension| extension == "ndjson"));
    found.sort_by_key(|path| number_of(path));
    Ok(found)
}

fn named(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("taken-")) {
            found.push(path);
        }
    }
    Ok(found)
}

/// `taken-<n>`, and of earlier versions `taken-<n>-<m>`.
fn number_of(path: &Path) -> Option<(u64, u64)> {
    let number = path.file_stem()?.to_str()?.strip_prefix("taken-")?;
    match number.split_once('-') {
        Some((number, more)) => Some((number.parse().ok()?, more.parse().ok()?)),
        None => Some((number.parse().ok()?, 0)),
    }
}

fn place_of(path: &Path) -> PathBuf {
    path.with_extension("place")
}

fn store(path: &Path, settled_bytes: u64) -> io::Result<()> {
    let new = path.with_extension("place.new");
    let mut file = File::create(&new)?;
    file.write_all(format!("{settled_bytes}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, place_of(path))?;
    File::open(path.parent().expect("a file is in a directory"))?.sync_all()
}

/// How much at the start of a taken file is settled.
pub(super) fn settled_bytes(path: &Path) -> io::Result<u64> {
    let text = match fs::read_to_string(place_of(path)) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => return Ok(0),
        Err(error) => return Err(error),
    };
    let Some(settled) = text.strip_suffix('\n').and_then(|text| text.parse().ok()).filter(|&bytes| bytes > 0) else {
        return Ok(0);
    };
    let mut file = File::open(path)?;
    let mut last = [0];
    file.seek(SeekFrom::Start(settled - 1))?;
    Ok(if file.read(&mut last)? == 1 && last == *b"\n" { settled } else { 0 })
}

/// The letters of these files from these offsets on; of equal ids the last stays, in its place. Counts lines that are none.
pub(super) fn read(files: &[(PathBuf, u64)]) -> io::Result<(Vec<Letter>, u64)> {
    let (mut letters, mut unreadable) = (Vec::new(), 0);
    for (file, (path, from)) in files.iter().enumerate() {
        let mut reader = BufReader::new(File::open(path)?);
        let mut end = reader.seek(SeekFrom::Start(*from))?;
        let mut line = Vec::new();
        loop {
            line.clear();
            let bytes = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
            if bytes == 0 {
                break;
            }
            end += bytes as u64;
            match serde_json::from_slice::<Entry>(&line) {
                Ok(entry) => letters.push(Letter { entry, file, end }),
                Err(_) => unreadable += 1,
            }
        }
    }
    let mut seen = HashSet::new();
    letters.reverse();
    letters.retain(|letter| seen.insert((letter.entry.id.clone(), letter.entry.target.clone())));
    letters.reverse();
    Ok((letters, unreadable))
}

/// Lines that are none in the parts before these offsets: their file stays.
pub(super) fn unreadable_before(files: &[(PathBuf, u64)]) -> io::Result<u64> {
    let mut unreadable = 0;
    for (path, from) in files.iter().filter(|(_, from)| *from > 0) {
        unreadable += read(&[(path.clone(), 0)])?.1 - read(&[(path.clone(), *from)])?.1;
    }
    Ok(unreadable)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{entry, ids, open};
    use super::super::{DeadLetters, Stock};
    use super::*;

    fn waiting(taken: &Taken) -> Vec<&str> {
        taken.waiting().iter().map(|letter| letter.entry.id.as_str()).collect()
    }

    fn filled(dir: &Path, letters: std::ops::Range<u32>) -> DeadLetters {
        let mut there = open(dir);
        letters.for_each(|n| there.append(&[entry(n, "x")]).expect("appends"));
        there
    }

    #[test]
    fn a_retry_goes_on_behind_what_the_one_before_has_settled() {
        let dir = tempfile::tempdir().expect("a directory");
        // Files of 1,000 bytes: several.
        let mut letters = filled(dir.path(), 0..9);
        for (begun, settled) in [(0, 1), (1, 0), (1, 4), (5, 3)] {
            let mut taken = letters.take().expect("takes");
            let rest: Vec<String> = (begun..9).map(|n| format!("p{n}")).collect();
            assert_eq!(waiting(&taken), rest);
            taken.settle(settled).expect("settles");
            assert_eq!(ids(&letters), rest[settled..], "what is listed is what is left");
            drop(taken); // as if it were killed
        }
        // What is refused meanwhile comes after them, whatever the numbers of the files.
        letters.append(&[entry(20, "x"), entry(21, "x")]).expect("appends");
        let mut taken = letters.take().expect("takes");
        assert_eq!(waiting(&taken), ["p8", "p20", "p21"]);
        taken.settle(3).expect("settles");
        taken.done().expect("nothing is left");
        assert_eq!(letters.stock().expect("looks"), Stock::default());
        assert_eq!(named(dir.path()).expect("lists"), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_place_that_cannot_be_believed_sends_the_file_whole() {
        for text in ["", "12", "7\n", "-1\n", "99999\n", "0\n", "\u{fffd}\n"] {
            let dir = tempfile::tempdir().expect("a directory");
            let letters = filled(dir.path(), 0..3);
            let mut taken = letters.take().expect("takes");
            taken.settle(1).expect("settles");
            fs::write(dir.path().join("taken-00000001.place"), text).expect("writes");
            assert_eq!(ids(&letters), ["p0", "p1", "p2"], "{text:?}");
        }
    }

    #[test]
    fn a_place_whose_file_is_gone_is_not_anothers() {
        let dir = tempfile::tempdir().expect("a directory");
        let letters = filled(dir.path(), 0..2);
        let mut taken = letters.take().expect("takes");
        taken.settle(1).expect("settles");
        drop(taken);
        // As a crash leaves it between the removal of the two.
        fs::remove_file(dir.path().join("taken-00000001.ndjson")).expect("removes");
        let letters = filled(dir.path(), 2..4);
        assert_eq!(waiting(&letters.take().expect("takes")), ["p2", "p3"]);
    }

    #[test]
    fn a_letter_that_is_there_twice_goes_once_and_neither_line_comes_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut letters = open(dir.path());
        letters.append(&[entry(1, "x"), entry(2, "x"), entry(1, "again")]).expect("appends");
        let mut taken = letters.take().expect("takes");
        assert_eq!(waiting(&taken), ["p2", "p1"]);
        taken.settle(1).expect("settles");
        assert_eq!(ids(&letters), ["p1"]);
        taken.settle(1).expect("settles");
        assert_eq!(ids(&letters), Vec::<String>::new());
    }

    #[test]
    fn a_line_that_cannot_be_read_keeps_its_file_through_a_retry_that_is_gone_on_with() {
        let dir = tempfile::tempdir().expect("a directory");
        let letters = filled(dir.path(), 0..1);
        let file = dir.path().join("00000001.ndjson");
        let sound = fs::read(&file).expect("reads");
        let letter = |n| serde_json::to_string(&entry(n, "x")).expect("JSON") + "\n";
        fs::write(&file, [b"no letter\n", &sound[..], letter(1).as_bytes()].concat()).expect("writes");
        letters.take().expect("taken").settle(1).expect("settles");
        assert_eq!(letters.list().expect("lists").1, 1);
        let mut taken = letters.take().expect("taken");
        assert_eq!((waiting(&taken), taken.unreadable), (vec!["p1"], 1));
        taken.settle(1).expect("settles");
        taken.done().expect("done");
        let kept = dir.path().join("taken-00000001.unreadable");
        assert!(fs::read(kept).expect("kept").starts_with(b"no letter\n"));
    }
}
