//! Clients by id: a shard's dense numbers for them, and what was resolved about each once.

use ahash::RandomState;
use hashbrown::HashTable;
use thiserror::Error;

/// A client of one shard's table. Dense; reused after the client was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct ClientIndex(pub u32);

/// What the operator's configuration says about a client: looked up once, when the client is first seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientProfile {
    /// Index into the caller's table of limits
    pub limits: u32,
    /// From `SeriesTable::add_tag_set`
    pub tags: super::TagSetId,
}

#[derive(Debug, Clone)]
pub struct ClientEntry {
    pub index: ClientIndex,
    /// Hash of the id: the same on all shards that were given the same seeds
    pub hash: u64,
    pub profile: ClientProfile,
    pub last_seen_s: u32,
    /// Differs for every client and every time that its index is given out; keys the raw-span cache
    pub(super) salt: u64,
    id: Box<str>,
}

impl ClientEntry {
    pub fn id(&self) -> &str {
        &self.id
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ClientError {
    #[error("the client id is empty")]
    Empty,
    #[error("the client id is {0} bytes long; at most {max} are allowed", max = ClientTable::ID_BYTES_MAX)]
    TooLong(usize),
    #[error("the client id has a control character")]
    Control,
    /// Nothing wrong with this client: the table is full of others that were active lately
    #[error("more clients are active than this server is configured for")]
    TableFull,
}

pub struct ClientTable {
    hasher: RandomState,
    by_id: HashTable<u32>,
    entries: Vec<Option<ClientEntry>>,
    free: Vec<u32>,
    clients_max: usize,
    salts_given: u64,
    hand: usize,
}

impl ClientTable {
    pub const ID_BYTES_MAX: usize = 256;

    /// `seeds` are random, and the same for all shards of a process: the limiter's buckets are found by these hashes.
    /// About 120 bytes a client.
    pub fn new(seeds: [u64; 4], clients_max: usize) -> ClientTable {
        ClientTable {
            hasher: RandomState::with_seeds(seeds[0], seeds[1], seeds[2], seeds[3]),
            by_id: HashTable::new(),
            entries: Vec::new(),
            free: Vec::new(),
            clients_max,
            salts_given: 0,
            hand: 0,
        }
    }

    /// The hash that `ClientEntry::hash` holds, for an id not (yet) in the table.
    pub fn hash(&self, id: &str) -> u64 {
        self.hasher.hash_one(id)
    }

    /// Finds or makes the client; `profile` runs when it is new.
    pub fn resolve(
        &mut self,
        id: &str,
        now_s: u32,
        profile: impl FnOnce(&str) -> ClientProfile,
    ) -> Result<&ClientEntry, ClientError> {
        let hash = self.hash(id);
        let entries = &self.entries;
        let found = self.by_id.find(hash, |&n| is(&entries[n as usize], id)).copied();
        let index = match found {
            Some(index) => index,
            None => self.add(id, hash, profile)?,
        };
        let entry = self.entries[index as usize].as_mut().expect("the table names live entries only");
        entry.last_seen_s = entry.last_seen_s.max(now_s);
        Ok(entry)
    }

    pub fn entry(&self, index: ClientIndex) -> Option<&ClientEntry> {
        self.entries.get(index.0 as usize)?.as_ref()
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Looks at `budget` clients, from where the last call stopped, and forgets those that were idle and that
    /// `can_forget` lets go (they must have no live series: `SeriesTable::live_of`). Answers how many.
    pub fn forget_idle(
        &mut self,
        now_s: u32,
        idle_after_s: u32,
        budget: usize,
        can_forget: impl Fn(ClientIndex) -> bool,
    ) -> usize {
        let mut forgotten = 0;
        for _ in 0..budget.min(self.entries.len()) {
            let n = self.hand;
            self.hand = (self.hand + 1) % self.entries.len();
            let Some(entry) = &self.entries[n] else { continue };
            if now_s.saturating_sub(entry.last_seen_s) <= idle_after_s || !can_forget(entry.index) {
                continue;
            }
            if let Ok(found) = self.by_id.find_entry(entry.hash, |&other| other as usize == n) {
                found.remove();
            }
            self.entries[n] = None;
            self.free.push(n as u32);
            forgotten += 1;
        }
        forgotten
    }

    /// Drops what was resolved about every client, after a change of configuration.
    pub fn reprofile(&mut self, mut profile: impl FnMut(&str) -> ClientProfile) {
        for entry in self.entries.iter_mut().flatten() {
            entry.profile = profile(&entry.id);
        }
    }

    fn add(&mut self, id: &str, hash: u64, profile: impl FnOnce(&str) -> ClientProfile) -> Result<u32, ClientError> {
        if id.is_empty() {
            return Err(ClientError::Empty);
        }
        if id.len() > Self::ID_BYTES_MAX {
            return Err(ClientError::TooLong(id.len()));
        }
        if id.chars().any(char::is_control) {
            return Err(ClientError::Control);
        }
        if self.by_id.len() >= self.clients_max {
            return Err(ClientError::TableFull);
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.salts_given += 1;
        self.entries[index as usize] = Some(ClientEntry {
            index: ClientIndex(index),
            hash,
            profile: profile(id),
            last_seen_s: 0,
            salt: self.hasher.hash_one((hash, self.salts_given)),
            id: id.into(),
        });
        let entries = &self.entries;
        self.by_id.insert_unique(hash, index, |&n| entries[n as usize].as_ref().map_or(0, |entry| entry.hash));
        Ok(index)
    }
}

fn is(entry: &Option<ClientEntry>, id: &str) -> bool {
    entry.as_ref().is_some_and(|entry| &*entry.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(_: &str) -> ClientProfile {
        ClientProfile::default()
    }

    #[test]
    fn a_client_keeps_its_index_until_it_is_forgotten() {
        let mut table = ClientTable::new([1, 2, 3, 4], 10);
        let a = table.resolve("10.0.0.1", 5, profile).unwrap().index;
        let b = table.resolve("10.0.0.2", 9, profile).unwrap().index;
        assert_ne!(a, b);
        assert_eq!(table.resolve("10.0.0.1", 6, |_| panic!("known")).unwrap().index, a);
        assert_eq!(table.forget_idle(17, 10, 100, |_| false), 0, "it still has series");
        assert_eq!(table.forget_idle(17, 10, 100, |_| true), 1);
        assert_eq!(table.entry(a).map(ClientEntry::id), None);
        let c = table.resolve("10.0.0.3", 17, profile).unwrap();
        assert_eq!((c.index, c.id()), (a, "10.0.0.3"), "the index is used again");
    }

    #[test]
    fn an_index_given_out_again_has_another_salt() {
        let mut table = ClientTable::new([1, 2, 3, 4], 10);
        let salt = table.resolve("a", 0, profile).unwrap().salt;
        assert_eq!(table.forget_idle(100, 10, 100, |_| true), 1);
        assert_ne!(table.resolve("a", 100, profile).unwrap().salt, salt);
    }

    #[test]
    fn hashes_agree_between_shards_and_with_entries() {
        let mut one = ClientTable::new([1, 2, 3, 4], 10);
        let two = ClientTable::new([1, 2, 3, 4], 10);
        one.resolve("other", 0, profile).unwrap();
        assert_eq!(one.resolve("a", 0, profile).unwrap().hash, two.hash("a"));
    }

    #[test]
    fn ids_that_would_break_keys_or_bounds_are_refused() {
        let mut table = ClientTable::new([1, 2, 3, 4], 2);
        let mut refused = |id: &str| table.resolve(id, 0, profile).map(|_| ()).unwrap_err();
        assert_eq!(refused(""), ClientError::Empty);
        assert_eq!(refused(&"x".repeat(257)), ClientError::TooLong(257));
        assert_eq!(refused("a\nb"), ClientError::Control);
        assert_eq!(refused("a\u{7f}"), ClientError::Control);
        assert_eq!(refused("a\u{85}"), ClientError::Control);
        table.resolve(&"x".repeat(256), 0, profile).unwrap();
        table.resolve("ü", 0, profile).unwrap();
        assert_eq!(table.resolve("c", 0, profile).map(|_| ()).unwrap_err(), ClientError::TableFull);
        assert!(table.resolve("ü", 0, profile).is_ok(), "a full table still serves its clients");
    }
}
