//! How far one sink has been served of one log, durably: a file of two slots, written in turn.
//!
//! Promises: a cursor is stored only for what the sink has acknowledged; a store that is cut off leaves the cursor
//! before it; a file that cannot be believed is said to be damaged and never guessed at; any bytes are read without a
//! panic. FORMAT.md has the bytes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use metricstream_shards::log::Position;

use crate::data_dir::sync_dir;

pub const MAGIC: [u8; 8] = *b"MScursor";
pub const VERSION: u16 = 1;
/// A page: a write that tears does not reach into the other slot, also on disks whose sectors are 4 KiB.
pub const SLOT_BYTES: usize = 4096;
pub const NAME_BYTES_MAX: usize = 64;
const CRC_AT: usize = SLOT_BYTES - 4;

/// What has become of points, since the cursor was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// The sink has them
    pub delivered: u64,
    /// The sink has said that it will not have them
    pub refused: u64,
    /// Set aside with the sink's reason
    pub dead_lettered: u64,
    /// Not wanted, by the sink's filter
    pub filtered: u64,
    /// Gone from the log before the sink had read them (`when_full = "drop_oldest"`)
    pub dropped: u64,
    /// In damaged blocks or records
    pub lost_to_damage: u64,
}

impl Totals {
    pub fn sum(&self) -> u64 {
        self.delivered + self.refused + self.dead_lettered + self.filtered + self.dropped + self.lost_to_damage
    }

    pub fn add(&mut self, more: &Totals) {
        self.delivered += more.delivered;
        self.refused += more.refused;
        self.dead_lettered += more.dead_lettered;
        self.filtered += more.filtered;
        self.dropped += more.dropped;
        self.lost_to_damage += more.lost_to_damage;
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub node_id: u128,
    pub log_id: u32,
    pub sink: String,
    /// Rises with every store
    pub sequence: u64,
    /// Everything before it is settled
    pub at: Position,
    /// Number of the first point that is not settled
    pub next_point: u64,
    /// Number of the first point that this cursor was ever responsible for
    pub first_point: u64,
    /// Receive stamp of the last settled record; `i64::MIN`: none yet
    pub settled_stamp_ns: i64,
    /// `next_point - first_point` of them
    pub totals: Totals,
}

#[derive(Debug, thiserror::Error)]
pub enum CursorError {
    #[error("{path} cannot be read: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("{path} is damaged: neither of its two copies is whole")]
    Damaged { path: PathBuf },
    #[error("{path} was written by a newer version ({version})")]
    Newer { path: PathBuf, version: u16 },
}

impl Cursor {
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.sink.len() <= NAME_BYTES_MAX, "the configuration bounds names");
        let mut slot = vec![0; SLOT_BYTES];
        let mut put = |at: usize, bytes: &[u8]| slot[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &self.log_id.to_le_bytes());
        put(16, &self.node_id.to_le_bytes());
        put(32, &self.sequence.to_le_bytes());
        put(40, &self.at.segment_id.to_le_bytes());
        put(48, &self.at.offset.to_le_bytes());
        put(56, &self.next_point.to_le_bytes());
        put(64, &self.first_point.to_le_bytes());
        put(72, &self.settled_stamp_ns.to_le_bytes());
        let t = &self.totals;
        for (n, total) in
            [t.delivered, t.refused, t.dead_lettered, t.filtered, t.dropped, t.lost_to_damage].iter().enumerate()
        {
            put(80 + 8 * n, &total.to_le_bytes());
        }
        put(128, &(self.sink.len() as u32).to_le_bytes());
        put(132, self.sink.as_bytes());
        let crc = crc32c::crc32c(&slot[..CRC_AT]);
        slot[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        slot
    }

    /// `Ok(None)`: the slot is not whole.
    fn decode(slot: &[u8]) -> Result<Option<Cursor>, u16> {
        if slot.len() != SLOT_BYTES || slot[..8] != MAGIC {
            return Ok(None);
        }
        let u16_at = |at: usize| u16::from_le_bytes([slot[at], slot[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| slot[at + n]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| slot[at + n]));
        // Before the CRC: a newer format may keep it elsewhere.
        let version = u16_at(8);
        if version > VERSION {
            return Err(version);
        }
        if version == 0 || crc32c::crc32c(&slot[..CRC_AT]) != u32_at(CRC_AT) {
            return Ok(None);
        }
        let name_bytes = u32_at(128) as usize;
        let Some(name) = slot[132..132 + NAME_BYTES_MAX].get(..name_bytes) else { return Ok(None) };
        let Ok(name) = std::str::from_utf8(name) else { return Ok(None) };
        Ok(Some(Cursor {
            log_id: u32_at(12),
            node_id: u128::from_le_bytes(std::array::from_fn(|n| slot[16 + n])),
            sink: name.to_owned(),
            sequence: u64_at(32),
            at: Position { segment_id: u64_at(40), offset: u64_at(48) },
            next_point: u64_at(56),
            first_point: u64_at(64),
            settled_stamp_ns: u64_at(72) as i64,
            totals: Totals {
                delivered: u64_at(80),
                refused: u64_at(88),
                dead_lettered: u64_at(96),
                filtered: u64_at(104),
                dropped: u64_at(112),
                lost_to_damage: u64_at(120),
            },
        }))
    }
}

/// The newest whole copy; `None`: there is no such file.
pub fn read(path: &Path) -> Result<Option<Cursor>, CursorError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CursorError::Io { path: path.to_path_buf(), error }),
    };
    let mut newest: Option<Cursor> = None;
    let mut newer = None;
    for slot in bytes.chunks(SLOT_BYTES).take(2) {
        match Cursor::decode(slot) {
            Ok(Some(cursor)) if newest.as_ref().is_none_or(|known| known.sequence < cursor.sequence) => {
                newest = Some(cursor);
            }
            Ok(_) => {}
            Err(version) => newer = Some(version),
        }
    }
    match (newest, newer) {
        (_, Some(version)) => Err(CursorError::Newer { path: path.to_path_buf(), version }),
        (Some(cursor), None) => Ok(Some(cursor)),
        (None, None) => Err(CursorError::Damaged { path: path.to_path_buf() }),
    }
}

/// The open file of a cursor.
pub struct CursorFile {
    path: PathBuf,
    file: Option<File>,
}

impl CursorFile {
    pub fn new(path: PathBuf) -> CursorFile {
        CursorFile { path, file: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Durable when it returns. `cursor.sequence` must rise; it decides which slot is written.
    pub fn store(&mut self, cursor: &Cursor) -> io::Result<()> {
        let slot = cursor.encode();
        let written = match &self.file {
            Some(file) => {
                let at = cursor.sequence % 2 * SLOT_BYTES as u64;
                file.write_all_at(&slot, at).and_then(|()| file.sync_data())
            }
            None => self.create(&slot).map(|file| self.file = Some(file)),
        };
        if written.is_err() {
            // A flush that failed is not tried again on the same file: the next store makes a new one.
            self.file = None;
        }
        written
    }

    /// Whole or not at all: both slots, then the name.
    fn create(&self, slot: &[u8]) -> io::Result<File> {
        let dir = self.path.parent().expect("a cursor has a directory");
        std::fs::create_dir_all(dir)?;
        let draft = self.path.with_extension("new");
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&draft)?;
        file.write_all_at(slot, 0)?;
        file.write_all_at(slot, SLOT_BYTES as u64)?;
        file.sync_all()?;
        std::fs::rename(&draft, &self.path)?;
        for dir in dir.ancestors().take(3) {
            sync_dir(dir)?;
        }
        Ok(file)
    }
}

/// `<data_dir>/cursors`
pub fn cursors_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("cursors")
}

/// `<data_dir>/cursors/<sink>/<log>`
pub fn cursor_path(data_dir: &Path, sink: &str, log: &str) -> PathBuf {
    cursors_dir(data_dir).join(sink).join(log)
}

/// Sinks that have cursors here, by name, in order.
pub fn sinks_with_cursors(data_dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(cursors_dir(data_dir)) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok().filter(|e| e.path().is_dir())?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// Logs that a sink has cursors for, in order.
pub fn logs_with_cursors(data_dir: &Path, sink: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(cursors_dir(data_dir).join(sink)) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.ends_with(".new"))
        .collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(sequence: u64) -> Cursor {
        Cursor {
            node_id: 0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10,
            log_id: 3,
            sink: "archive".into(),
            sequence,
            at: Position { segment_id: 7, offset: 4096 * sequence },
            next_point: 1000 + sequence,
            first_point: 900,
            settled_stamp_ns: 1_700_000_000_000_000_000,
            totals: Totals {
                delivered: 90 + sequence,
                refused: 1,
                dead_lettered: 2,
                filtered: 3,
                dropped: 4,
                lost_to_damage: 0,
            },
        }
    }

    #[test]
    fn a_cursor_comes_back_as_it_was_stored_also_over_openings() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = cursor_path(dir.path(), "archive", "3");
        assert!(read(&path).expect("no file").is_none());
        for sequence in 1..6 {
            let mut file = CursorFile::new(path.clone());
            file.store(&cursor(sequence)).expect("stored");
            if sequence > 2 {
                file.store(&cursor(sequence + 100)).expect("stored");
            }
            let want = if sequence > 2 { sequence + 100 } else { sequence };
            assert_eq!(read(&path).expect("whole"), Some(cursor(want)));
        }
        assert_eq!(sinks_with_cursors(dir.path()), ["archive"]);
        assert_eq!(logs_with_cursors(dir.path(), "archive"), ["3"]);
    }

    /// The golden file of version 1: written once, never again.
    #[test]
    fn the_bytes_are_those_of_the_format_document() {
        let golden = include_bytes!("testdata/cursor-v1");
        let slots = [cursor(41).encode(), cursor(42).encode()].concat();
        let (first, second) = golden.split_at(SLOT_BYTES);
        assert!(slots[SLOT_BYTES..] == *first && slots[..SLOT_BYTES] == *second, "sequence 42 is in slot 0");
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("golden");
        std::fs::write(&path, golden).expect("written");
        assert_eq!(read(&path).expect("whole"), Some(cursor(42)));
    }

    #[test]
    fn a_store_torn_at_any_sector_leaves_the_cursor_before_it_or_the_new_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("c");
        let (old, new) = ([cursor(2).encode(), cursor(1).encode()].concat(), cursor(3).encode());
        for keep in 0u32..256 {
            let mut bytes = old.clone();
            for sector in (0..8).filter(|n| keep & (1 << n) != 0) {
                let at = sector * 512;
                bytes[SLOT_BYTES + at..SLOT_BYTES + at + 512].copy_from_slice(&new[at..at + 512]);
            }
            std::fs::write(&path, &bytes).expect("written");
            let read = read(&path).expect("one is whole").expect("there");
            assert_eq!(read, cursor(if bytes[SLOT_BYTES..] == new[..] { 3 } else { 2 }), "sectors {keep:08b}");
        }
    }

    #[test]
    fn what_cannot_be_believed_is_damaged_and_a_newer_version_is_left_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("c");
        for bytes in [vec![], vec![0; 8192], vec![0xFF; 8192], cursor(1).encode()[..4000].to_vec()] {
            std::fs::write(&path, &bytes).expect("written");
            assert!(matches!(read(&path), Err(CursorError::Damaged { .. })), "{} bytes", bytes.len());
        }
        for at in [0, 9, 40, 133, 2000, 4095] {
            let mut bytes = cursor(1).encode();
            bytes[at] ^= 0x80;
            std::fs::write(&path, bytes.repeat(2)).expect("written");
            let error = read(&path).expect_err("damaged");
            assert_eq!(matches!(error, CursorError::Newer { .. }), at == 9, "byte {at}: {error}");
        }
    }

    #[test]
    fn the_table_of_the_format_document_is_the_code() {
        let document = include_str!("FORMAT.md");
        let slot = cursor(5).encode();
        for (field, at, bytes) in [
            ("magic", 0, MAGIC.to_vec()),
            ("version", 8, VERSION.to_le_bytes().to_vec()),
            ("log_id", 12, 3u32.to_le_bytes().to_vec()),
            ("sequence", 32, 5u64.to_le_bytes().to_vec()),
            ("segment_id", 40, 7u64.to_le_bytes().to_vec()),
            ("offset", 48, (5 * 4096u64).to_le_bytes().to_vec()),
            ("next_point", 56, 1005u64.to_le_bytes().to_vec()),
            ("first_point", 64, 900u64.to_le_bytes().to_vec()),
            ("delivered", 80, 95u64.to_le_bytes().to_vec()),
            ("refused", 88, 1u64.to_le_bytes().to_vec()),
            ("dead_lettered", 96, 2u64.to_le_bytes().to_vec()),
            ("filtered", 104, 3u64.to_le_bytes().to_vec()),
            ("dropped", 112, 4u64.to_le_bytes().to_vec()),
            ("sink", 132, b"archive".to_vec()),
        ] {
            assert_eq!(slot[at..at + bytes.len()], bytes, "{field}");
            let row = format!("| {at} | ");
            let line = document.lines().find(|l| l.starts_with(&row) && l.contains(&format!("| {field} |")));
            assert!(line.is_some(), "FORMAT.md has no row for {field} at {at}");
        }
    }
}
