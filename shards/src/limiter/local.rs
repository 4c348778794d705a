//! A shard's leases: what it may spend without asking.
//!
//! An entry exists only while a shard holds unspent tokens of a client, or remembers a refusal: it goes 50 to 100 ms
//! after the client's last request. So the table holds the clients of the last moment, not all that ever came, and is
//! bounded besides: beyond the bound a client's tokens are taken one by one from the shared bucket, which is slower and as right.

use super::limits::{ClientLimits, Dimension, Limit, TICK_NS, TICKS_PER_MS, TICKS_PER_S};
use super::shared::{Level, Shared};
use super::{ClientHash, Decision, Refusal};
use hashbrown::HashTable;
use std::collections::VecDeque;
use std::sync::Arc;

/// Every entry is looked at this often, and dropped when it was not used since: so unused tokens go back within twice this.
const IDLE_TICKS: u64 = TICKS_PER_S / 20;
/// A refusal is repeated from memory for this long at most, so that tokens given back by another shard are seen.
const REMEMBER_TICKS: u64 = TICKS_PER_S / 10;
/// Entries looked at in one tick, so that a turn stays short.
const TICK_ENTRIES_MAX: usize = 1024;
/// What a client with a rate of 0 is told.
const NEVER_MS: u64 = 30_000;

pub struct Local {
    pub(super) shared: Arc<Shared>,
    leases: HashTable<Lease>,
    /// Every entry of `leases` once, with the tick at which to look at it; in order of that tick
    due: VecDeque<(u64, u64)>,
    leases_max: usize,
    counters: Counters,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub admitted: u64,
    /// By [`Dimension`]
    pub refused: [u64; Dimension::COUNT],
    /// Visits to the shared buckets; everything else was decided in the shard
    pub shared_visits: u64,
}

#[derive(Clone, Copy)]
struct Lease {
    client: u64,
    last_used: u64,
    /// Unspent, as ticks, by [`Dimension`]
    ticks: [u64; Dimension::COUNT],
    /// Requests left in the shared bucket when last seen
    shared_remaining: u64,
    /// The last refusal: repeat it until then (0 = none) ...
    refuse_until: u64,
    /// ... and what it said, in ticks of the clock
    retry_at: u64,
    full_at: u64,
    refused: Dimension,
}

impl Local {
    /// `leases_max` bounds memory, at 100 bytes each; 65,536 serve half a million requests/s of ever new clients.
    pub fn new(shared: Arc<Shared>, leases_max: usize) -> Local {
        Local { shared, leases: HashTable::new(), due: VecDeque::new(), leases_max, counters: Counters::default() }
    }

    /// May this request go on? Before decoding: takes one request token, and asks that points and bytes are not in debt.
    #[inline]
    pub fn admit(&mut self, client: ClientHash, limits: &ClientLimits, now_ns: u64) -> Decision {
        if limits.is_unlimited() {
            self.counters.admitted += 1;
            return Decision::Admit { remaining: u64::MAX };
        }
        let decision = self.decide(spread(client), limits, now_ns / TICK_NS);
        match &decision {
            Decision::Admit { .. } => self.counters.admitted += 1,
            Decision::Refuse(refusal) => self.counters.refused[refusal.dimension as usize] += 1,
        }
        decision
    }

    /// Charges what an admitted request turned out to hold. What the lease does not cover is debt, at once and for all shards.
    pub fn charge(&mut self, client: ClientHash, limits: &ClientLimits, points: u64, bytes: u64, now_ns: u64) {
        if limits.points.is_none() && limits.bytes.is_none() {
            return;
        }
        let (client, now) = (spread(client), now_ns / TICK_NS);
        let mut lease = self.leases.find_mut(client, |lease| lease.client == client);
        for (dimension, limit, tokens) in
            [(Dimension::Points, &limits.points, points), (Dimension::Bytes, &limits.bytes, bytes)]
        {
            let Some(limit) = limit else { continue };
            let cost = limit.ticks(tokens);
            let covered = match &mut lease {
                Some(lease) => {
                    let covered = cost.min(lease.ticks[dimension as usize]);
                    lease.ticks[dimension as usize] -= covered;
                    covered
                }
                None => 0,
            };
            if cost > covered {
                self.counters.shared_visits += 1;
                self.shared.charge(client, dimension, cost - covered, now);
            }
        }
    }

    /// Gives back what lies unused. Once a turn.
    pub fn tick(&mut self, now_ns: u64) {
        let now = now_ns / TICK_NS;
        for _ in 0..TICK_ENTRIES_MAX {
            match self.due.front() {
                Some(&(_, due)) if due <= now => {}
                _ => return,
            }
            let Some((client, _)) = self.due.pop_front() else { return };
            let Ok(entry) = self.leases.find_entry(client, |lease| lease.client == client) else { continue };
            if entry.get().last_used + IDLE_TICKS > now {
                self.due.push_back((client, now + IDLE_TICKS));
                continue;
            }
            let (lease, _) = entry.remove();
            self.give_back(&lease);
        }
    }

    /// Gives back everything: a shard that drains.
    pub fn give_back_all(&mut self) {
        let leases = std::mem::take(&mut self.leases);
        self.due.clear();
        for lease in leases {
            self.give_back(&lease);
        }
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Clients with a lease or a remembered refusal
    pub fn leases(&self) -> usize {
        self.leases.len()
    }

    pub fn memory_bytes(&self) -> usize {
        self.leases.allocation_size() + self.due.capacity() * size_of::<(u64, u64)>()
    }

    fn give_back(&mut self, lease: &Lease) {
        for dimension in Dimension::ALL {
            let ticks = lease.ticks[dimension as usize];
            if ticks > 0 {
                self.counters.shared_visits += 1;
                self.shared.give_back(lease.client, dimension, ticks);
            }
        }
    }

    fn decide(&mut self, client: u64, limits: &ClientLimits, now: u64) -> Decision {
        for dimension in Dimension::ALL {
            if limits.get(dimension).is_some_and(|limit| limit.rate_per_s() == 0) {
                return Decision::Refuse(Refusal {
                    dimension,
                    limit_per_s: 0,
                    remaining: 0,
                    retry_after_ms: NEVER_MS,
                    reset_ms: NEVER_MS,
                });
            }
        }
        if let Some(lease) = self.leases.find_mut(client, |lease| lease.client == client) {
            lease.last_used = now;
            let shared = &self.shared;
            return lease.decide(shared, limits, now, true, &mut self.counters.shared_visits);
        }
        let hold = self.leases.len() < self.leases_max;
        let mut lease = Lease::new(client, now);
        let decision = lease.decide(&self.shared, limits, now, hold, &mut self.counters.shared_visits);
        if hold && (lease.ticks != [0; Dimension::COUNT] || lease.refuse_until > now) {
            self.leases.insert_unique(client, lease, |lease| lease.client);
            self.due.push_back((client, now + IDLE_TICKS));
        }
        decision
    }
}

impl Lease {
    fn new(client: u64, now: u64) -> Lease {
        Lease {
            client,
            last_used: now,
            ticks: [0; Dimension::COUNT],
            shared_remaining: 0,
            refuse_until: 0,
            retry_at: 0,
            full_at: 0,
            refused: Dimension::Requests,
        }
    }

    /// `hold`: more than this request needs may be taken.
    fn decide(&mut self, shared: &Shared, limits: &ClientLimits, now: u64, hold: bool, visits: &mut u64) -> Decision {
        if self.refuse_until > now
            && let Some(limit) = limits.get(self.refused)
        {
            return self.refusal(limit, 0, now);
        }
        // Requests last: a request that is refused for another reason costs no token.
        for dimension in [Dimension::Points, Dimension::Bytes] {
            let Some(limit) = limits.get(dimension) else { continue };
            if self.ticks[dimension as usize] >= limit.token_ticks {
                continue;
            }
            *visits += 1;
            let level = if hold {
                let (lease, level) =
                    shared.take(self.client, dimension, limit, limit.lease_ticks_min, limit.lease_ticks_max, now);
                self.ticks[dimension as usize] += lease;
                level
            } else {
                shared.look(self.client, dimension, limit, limit.token_ticks, now)
            };
            if level.wait > 0 {
                return self.refuse(dimension, limit, level, now);
            }
        }
        let Some(limit) = &limits.requests else { return Decision::Admit { remaining: u64::MAX } };
        let unspent = &mut self.ticks[Dimension::Requests as usize];
        if *unspent < limit.token_ticks {
            *visits += 1;
            let (at_least, at_most) = if hold {
                (limit.lease_ticks_min, limit.lease_ticks_max)
            } else {
                (limit.token_ticks, limit.token_ticks)
            };
            let (lease, level) = shared.take(self.client, Dimension::Requests, limit, at_least, at_most, now);
            if level.wait > 0 {
                return self.refuse(Dimension::Requests, limit, level, now);
            }
            *unspent += lease;
            self.shared_remaining = limit.tokens(level.available);
        }
        *unspent -= limit.token_ticks;
        Decision::Admit { remaining: limit.tokens(*unspent) + self.shared_remaining }
    }

    fn refuse(&mut self, dimension: Dimension, limit: &Limit, level: Level, now: u64) -> Decision {
        self.refused = dimension;
        self.retry_at = now + level.wait;
        self.full_at = now + level.full_in;
        self.refuse_until = self.retry_at.min(now + REMEMBER_TICKS);
        self.refusal(limit, limit.tokens(level.available), now)
    }

    fn refusal(&self, limit: &Limit, remaining: u64, now: u64) -> Decision {
        Decision::Refuse(Refusal {
            dimension: self.refused,
            limit_per_s: limit.rate_per_s(),
            remaining,
            retry_after_ms: self.retry_at.saturating_sub(now).div_ceil(TICKS_PER_MS).max(1),
            reset_ms: self.full_at.saturating_sub(now).div_ceil(TICKS_PER_MS),
        })
    }
}

/// Spreads a client's hash over all bits (the finaliser of MurmurHash3, one to one), so that any source of hashes does.
pub(super) fn spread(client: ClientHash) -> u64 {
    let mut h = client.0;
    h = (h ^ (h >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    h = (h ^ (h >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    h ^ (h >> 33)
}
