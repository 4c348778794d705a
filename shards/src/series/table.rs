//! The table of a shard's series: resolver for the decoders, names for the log, eviction for the windows.

use super::cache::Cache;
use super::canonical;
use super::client::{ClientEntry, ClientIndex};
use crate::point::{INLINE_BIT, SeriesId, SeriesResolver};
use ahash::RandomState;
use hashbrown::HashTable;
use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher};

/// Tags that are added to points which lack them; see [`SeriesTable::add_tag_set`]. The default set is the static tags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TagSetId(u32);

/// Bounds of one shard's table.
#[derive(Clone, Copy, Debug)]
pub struct SeriesBounds {
    /// Live series in all
    pub series_max: usize,
    /// Live series of one client
    pub series_per_client_max: usize,
    /// Raw-span cache, in all
    pub cache_bytes_max: usize,
    /// Raw-span cache, what one client may fill before its share starts anew
    pub cache_client_bytes_max: usize,
}

impl Default for SeriesBounds {
    fn default() -> SeriesBounds {
        SeriesBounds {
            series_max: 1_000_000,
            series_per_client_max: 100_000,
            cache_bytes_max: 256 << 20,
            cache_client_bytes_max: 64 << 20,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeriesCounters {
    pub created: u64,
    pub evicted: u64,
    /// Points turned away from the table because a limit of live series was met: the client's ...
    pub overflowed_client: u64,
    /// ... or that of the whole shard
    pub overflowed_total: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
}

pub struct SeriesTable {
    bounds: SeriesBounds,
    hasher: RandomState,
    cache: Cache,
    /// By canonical key
    by_key: HashTable<u32>,
    /// By series number: what every point touches ...
    hot: Vec<Hot>,
    /// ... and what it does not
    cold: Vec<Cold>,
    free: Vec<u32>,
    /// Evicted, and not reusable until the segment (first) is closed; in order of segments
    pending: VecDeque<(u64, u32)>,
    created: Vec<SeriesId>,
    hand: usize,
    clients: Vec<ClientState>,
    /// [0] = static tags; each set sorted, client tags merged over the static ones
    tag_sets: Vec<canonical::TagSet>,
    current: Current,
    counters: SeriesCounters,
}

/// State of the series with this number.
#[derive(Clone, Copy)]
pub(super) struct Hot {
    last_seen_s: u32,
    /// Odd = live. Goes up when the series is made and when it is evicted, so whoever remembers the pair (number, this) can tell
    /// whether it still means the same series.
    incarnation: u32,
}

struct Cold {
    /// Stays readable after eviction, until the number may be reused: the log names a series twice, the second time later
    key: Box<[u8]>,
    hash: u64,
    client: u32,
}

#[derive(Clone, Copy, Default)]
struct ClientState {
    /// Tells who has this index
    entry_salt: u64,
    /// Of its raw spans; changes when its share of the cache starts anew
    salt: u64,
    live: u32,
    overflowed: u64,
    cache_bytes: usize,
}

/// Of the request being decoded.
struct Current {
    client: u32,
    entry_salt: u64,
    salt: u64,
    tags: TagSetId,
    now_s: u32,
    /// `client 0xFF`, how its keys begin
    key: Vec<u8>,
    prefix_len: usize,
}

impl SeriesTable {
    /// `seeds` are random, and no client may know them. `static_tags` go to every point that lacks them.
    pub fn new(seeds: [u64; 4], bounds: SeriesBounds, static_tags: &[(&str, &str)]) -> SeriesTable {
        assert!(bounds.series_max < INLINE_BIT as usize);
        SeriesTable {
            bounds,
            hasher: RandomState::with_seeds(seeds[0], seeds[1], seeds[2], seeds[3]),
            cache: Cache::new(bounds.cache_bytes_max),
            // All at once: a table of a million that grows while serving stops its shard for tens of milliseconds. The
            // system gives the memory when it is first used, but for one byte a series.
            by_key: HashTable::with_capacity(bounds.series_max),
            hot: Vec::new(),
            cold: Vec::new(),
            free: Vec::new(),
            pending: VecDeque::new(),
            created: Vec::new(),
            hand: 0,
            clients: Vec::new(),
            tag_sets: vec![canonical::tag_set(static_tags, &[])],
            current: Current {
                client: u32::MAX,
                entry_salt: 0,
                salt: 0,
                tags: TagSetId(0),
                now_s: 0,
                key: Vec::new(),
                prefix_len: 0,
            },
            counters: SeriesCounters::default(),
        }
    }

    /// Tags of one kind of client, over the static ones; for `ClientProfile::tags`.
    pub fn add_tag_set(&mut self, tags: &[(&str, &str)]) -> TagSetId {
        let set = canonical::tag_set(tags, &self.tag_sets[0]);
        self.tag_sets.push(set);
        TagSetId(self.tag_sets.len() as u32 - 1)
    }

    /// Before a body is decoded: whose points these are, and when.
    pub fn begin_request(&mut self, client: &ClientEntry, now_s: u32) {
        let n = client.index.0 as usize;
        if n >= self.clients.len() {
            self.clients.resize_with(n + 1, ClientState::default);
        }
        let state = &mut self.clients[n];
        let current = &mut self.current;
        if current.client != client.index.0 || current.entry_salt != client.salt {
            if state.entry_salt != client.salt {
                // The index was given out again; the series of who had it before are all gone.
                *state =
                    ClientState { entry_salt: client.salt, salt: client.salt, live: state.live, ..Default::default() };
            }
            current.client = client.index.0;
            current.entry_salt = client.salt;
            current.key.clear();
            current.key.extend_from_slice(client.id().as_bytes());
            current.key.push(crate::point::series_key::FIELD);
            current.prefix_len = current.key.len();
        }
        if state.cache_bytes > self.bounds.cache_client_bytes_max {
            // This client's share is full: under a new salt nothing of it is found, and its share starts anew. What it had
            // is dropped with its generation; what others have is not touched.
            state.salt = self.hasher.hash_one((state.salt, client.salt));
            state.cache_bytes = 0;
        }
        current.salt = state.salt;
        current.tags = client.profile.tags;
        current.now_s = now_s;
    }

    /// The series of a canonical key, as the log has it: for the fold after a restart. Ignores the limits: what was a
    /// series when it was acknowledged is one again. `None` only when series numbers are used up (2^31).
    pub fn restore(&mut self, client: &ClientEntry, key: &[u8], now_s: u32) -> Option<SeriesId> {
        self.begin_request(client, now_s);
        let hash = self.hasher.hash_one(key);
        match self.find_key(hash, key) {
            Some(id) => {
                self.touch(id, now_s);
                Some(id)
            }
            None => self.create(hash, key),
        }
    }

    /// Canonical key of a series; also of an evicted one until its number may be reused; else empty.
    pub fn key(&self, id: SeriesId) -> &[u8] {
        self.cold.get(id.0 as usize).map_or(&[], |cold| &cold.key)
    }

    pub fn is_live(&self, id: SeriesId) -> bool {
        self.hot.get(id.0 as usize).is_some_and(|hot| hot.incarnation & 1 == 1)
    }

    pub fn client_of(&self, id: SeriesId) -> Option<ClientIndex> {
        self.is_live(id).then(|| ClientIndex(self.cold[id.0 as usize].client))
    }

    pub fn last_seen_s(&self, id: SeriesId) -> Option<u32> {
        self.is_live(id).then(|| self.hot[id.0 as usize].last_seen_s)
    }

    /// Keeps a series from being idle. `get` and `insert` do it by themselves.
    #[inline]
    pub fn touch(&mut self, id: SeriesId, now_s: u32) {
        if let Some(hot) = self.hot.get_mut(id.0 as usize) {
            hot.last_seen_s = hot.last_seen_s.max(now_s);
        }
    }

    /// Whether `drain_created` has anything.
    pub fn has_created(&self) -> bool {
        !self.created.is_empty()
    }

    /// Hands out the series made since the last call, oldest first: the reducer must know them before their partials.
    pub fn drain_created(&mut self) -> impl Iterator<Item = SeriesId> + '_ {
        let hot = &self.hot;
        self.created.drain(..).filter(move |id| hot[id.0 as usize].incarnation & 1 == 1)
    }

    /// Looks at up to `budget` series, from where the last call stopped, and evicts those that were idle and that
    /// `can_evict` lets go (no open window). Their numbers are free when `segment_id`, the one now being written, is closed.
    /// Answers how many.
    pub fn evict_idle(
        &mut self,
        now_s: u32,
        idle_after_s: u32,
        budget: usize,
        segment_id: u64,
        can_evict: impl Fn(SeriesId) -> bool,
        mut on_evict: impl FnMut(SeriesId, &[u8]),
    ) -> usize {
        let mut evicted = 0;
        for _ in 0..budget.min(self.hot.len()) {
            let n = self.hand;
            self.hand = (self.hand + 1) % self.hot.len();
            let hot = self.hot[n];
            let id = SeriesId(n as u32);
            if hot.incarnation & 1 == 0 || now_s.saturating_sub(hot.last_seen_s) <= idle_after_s || !can_evict(id) {
                continue;
            }
            let cold = &self.cold[n];
            if let Ok(found) = self.by_key.find_entry(cold.hash, |&other| other as usize == n) {
                found.remove();
            }
            self.hot[n].incarnation = hot.incarnation.wrapping_add(1);
            self.clients[cold.client as usize].live -= 1;
            self.counters.evicted += 1;
            // Never before an earlier one: `segment_closed` takes from the front.
            let segment_id = self.pending.back().map_or(segment_id, |&(last, _)| last.max(segment_id));
            self.pending.push_back((segment_id, n as u32));
            on_evict(id, &self.cold[n].key);
            evicted += 1;
        }
        evicted
    }

    /// This segment and those before it are closed: numbers of series evicted by then may be used again.
    pub fn segment_closed(&mut self, segment_id: u64) {
        while let Some(&(tag, n)) = self.pending.front()
            && tag <= segment_id
        {
            self.pending.pop_front();
            self.cold[n as usize].key = Box::default();
            self.free.push(n);
        }
    }

    pub fn live(&self) -> usize {
        self.by_key.len()
    }
    pub fn live_of(&self, client: ClientIndex) -> usize {
        self.clients.get(client.0 as usize).map_or(0, |state| state.live as usize)
    }
    /// Points of this client that a limit turned away
    pub fn overflowed_of(&self, client: ClientIndex) -> u64 {
        self.clients.get(client.0 as usize).map_or(0, |state| state.overflowed)
    }
    /// Series numbers in use or waiting: all are below this
    pub fn numbers(&self) -> usize {
        self.hot.len()
    }
    pub fn counters(&self) -> SeriesCounters {
        self.counters
    }
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Forgets all raw spans; to be called when tag sets of known clients change.
    pub fn clear_cache(&mut self) {
        self.cache.clear();
        self.clients.iter_mut().for_each(|state| state.cache_bytes = 0);
    }

    fn find_key(&self, hash: u64, key: &[u8]) -> Option<SeriesId> {
        self.by_key.find(hash, |&n| *self.cold[n as usize].key == *key).map(|&n| SeriesId(n))
    }

    fn create(&mut self, hash: u64, key: &[u8]) -> Option<SeriesId> {
        let n = match self.free.pop() {
            Some(n) => n,
            None if self.hot.len() >= INLINE_BIT as usize => return None,
            None => {
                self.hot.push(Hot { last_seen_s: 0, incarnation: 0 });
                self.cold.push(Cold { key: Box::default(), hash: 0, client: 0 });
                self.hot.len() as u32 - 1
            }
        };
        let hot = &mut self.hot[n as usize];
        *hot = Hot { last_seen_s: self.current.now_s, incarnation: hot.incarnation.wrapping_add(1) };
        self.cold[n as usize] = Cold { key: key.into(), hash, client: self.current.client };
        let cold = &self.cold;
        self.by_key.insert_unique(hash, n, |&n| cold[n as usize].hash);
        self.clients[self.current.client as usize].live += 1;
        self.counters.created += 1;
        self.created.push(SeriesId(n));
        Some(SeriesId(n))
    }

    /// May another series be made? Counts when not.
    fn room(&mut self) -> bool {
        let state = &mut self.clients[self.current.client as usize];
        let room_client = (state.live as usize) < self.bounds.series_per_client_max;
        let room = self.by_key.len() < self.bounds.series_max;
        if !room_client {
            self.counters.overflowed_client += 1;
        } else if !room {
            self.counters.overflowed_total += 1;
        }
        state.overflowed += u64::from(!(room && room_client));
        room && room_client
    }

    fn resolve_key(&mut self, hash: u64, key: &[u8]) -> Option<SeriesId> {
        if let Some(id) = self.find_key(hash, key) {
            self.touch(id, self.current.now_s);
            return Some(id);
        }
        if self.room() { self.create(hash, key) } else { None }
    }
}

/// Between `begin_request` and the end of that request's decoding.
impl SeriesResolver for SeriesTable {
    #[inline]
    fn hash(&self, raw: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(raw);
        hasher.finish() ^ self.current.salt
    }

    #[inline]
    fn prefetch(&self, hash: u64) {
        self.cache.prefetch(hash);
    }

    #[inline]
    fn get(&mut self, hash: u64, raw: &[u8]) -> Option<SeriesId> {
        let hot = &self.hot;
        let found = self.cache.get(hash, self.current.client, raw, |series, incarnation| {
            hot.get(series as usize).is_some_and(|hot| hot.incarnation == incarnation)
        });
        match found {
            Some(series) => {
                self.counters.cache_hits += 1;
                let hot = &mut self.hot[series as usize];
                if hot.last_seen_s < self.current.now_s {
                    hot.last_seen_s = self.current.now_s; // once a second, not for every point: the line stays clean
                }
                Some(SeriesId(series))
            }
            None => {
                self.counters.cache_misses += 1;
                None
            }
        }
    }

    fn insert(
        &mut self,
        hash: u64,
        raw: &[u8],
        name: &[u8],
        tags: &mut Vec<(&[u8], &[u8])>,
        overflow_key: &mut Vec<u8>,
    ) -> Option<SeriesId> {
        assert!((self.current.client as usize) < self.clients.len(), "begin_request comes first");
        let mut key = std::mem::take(&mut self.current.key);
        key.truncate(self.current.prefix_len);
        canonical::write(&mut key, name, tags, &self.tag_sets[self.current.tags.0 as usize]);
        let found = self.resolve_key(self.hasher.hash_one(&key[..]), &key);
        match found {
            Some(id) => {
                let incarnation = self.hot[id.0 as usize].incarnation;
                let used = self.cache.insert(hash, self.current.client, raw, id.0, incarnation);
                self.clients[self.current.client as usize].cache_bytes += used;
            }
            None => {
                overflow_key.clear();
                overflow_key.extend_from_slice(&key);
            }
        }
        self.current.key = key;
        found
    }
}
