//! Records that Kafka refuses, in the sink's directory of dead letters.

use std::io;
use std::path::{Path, PathBuf};

use super::super::dead_letter::{Bounds, DeadLetters, Entry};
use super::{Letter, SetAside};
use crate::reducer::thread::wall_ns;

pub struct LetterBox {
    sink: String,
    dir: PathBuf,
    /// Made with the first letter
    open: Option<DeadLetters>,
}

impl LetterBox {
    pub fn new(sink: &str, data_dir: &Path) -> LetterBox {
        LetterBox { sink: sink.to_owned(), dir: data_dir.join("dead-letters").join(sink), open: None }
    }
}

impl SetAside for LetterBox {
    fn set_aside(&mut self, letters: Vec<Letter>) -> io::Result<()> {
        let time_ms = wall_ns() / 1_000_000;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let entries: Vec<Entry> = letters
            .into_iter()
            .map(|letter| Entry {
                id: letter.id,
                time_ms,
                sink: self.sink.clone(),
                target: letter.topic,
                reason: letter.reason,
                key: Some(text(letter.key)),
                headers: letter.headers.into_iter().filter(|(name, _)| name != "id").collect(),
                body: text(letter.value),
            })
            .collect();
        if self.open.is_none() {
            self.open = Some(DeadLetters::open(&self.dir, Bounds::default())?);
        }
        self.open.as_mut().expect("opened above").append(&entries)
    }
}
