//! The buckets of all clients, shared by the shards of a process; bounded, without waiting.
//!
//! Slots stand in groups of 32, allocated when first used; a client's hash names its group. A slot is a key word
//! (56 bits of hash, 8 bits of generation) and one word a dimension (56 bits of theoretical arrival time, the same
//! generation). Every change of a bucket is a compare-exchange of its word, so two shards never lose each other's tokens.
//!
//! **Taking over a slot.** When a client has no slot, one whose times are all in the past is as good as empty. The
//! claimant first moves each time word to the next generation, by compare-exchange from the idle value it saw, and only then
//! writes the key. An owner who acts at the same moment either was first (the exchange fails, the slot is active after
//! all, the claimant puts the words back and looks further), or finds a word of another generation and looks its slot up
//! again. So debt is never lost nor charged to the wrong client; that would need 256 take-overs of one slot between two
//! instructions. One shard at a time claims in a group, or two could give one client two slots; the mark that says so is
//! held for some 100 ns, and who finds it set for too long (its holder lost the CPU) does not wait: see overflow.
//!
//! **Overflow.** When all 32 slots are active, or the group is being claimed for too long, the request is charged to a
//! bucket that all such clients of the group share, with the asking client's limit. Counted. At a million slots it takes half a
//! million clients that each spend faster than their rate refills.
//!
//! Clocks of shards may differ by a turn; a client's slot may then be taken over that much early, which forgives that
//! much of its debt.

use super::limits::{Dimension, Limit};
use std::hint;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

const SLOTS: usize = 32;
/// Tries before a request goes to the overflow bucket; some 10 us.
const ATTEMPTS: u32 = 1000;
/// A year: what a client may owe at most, so that sums cannot wrap.
const DEBT_TICKS_MAX: u64 = 1 << 52;

pub struct Shared {
    /// A power of two
    groups: Box<[OnceLock<Box<Group>>]>,
    groups_used: AtomicU64,
    overflows: AtomicU64,
    takeovers: AtomicU64,
}

struct Group {
    claimed: AtomicU32,
    /// Identity << 8 | generation; 0 = never used
    keys: [AtomicU64; SLOTS],
    /// Theoretical arrival time << 8 | generation
    times: [[AtomicU64; SLOTS]; Dimension::COUNT],
    /// Theoretical arrival times of the clients that found no slot
    overflow: [AtomicU64; Dimension::COUNT],
}

/// Counts since the start, and what is held now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests charged to an overflow bucket
    pub overflows: u64,
    /// Slots given from an idle client to another
    pub takeovers: u64,
    pub memory_bytes: u64,
}

/// What is in a bucket at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    /// Ticks' worth of tokens left
    pub(super) available: u64,
    /// Until full
    pub(super) full_in: u64,
    /// Until a lease can be had; 0 = now
    pub(super) wait: u64,
}

impl Shared {
    /// Room for `clients_max` clients (rounded up), half of the slots being spare: 66 bytes a client when all are in
    /// use, 1 KiB more for each group that is used; 1 MiB at the start for a million.
    pub fn new(clients_max: usize) -> Shared {
        let groups = (clients_max.max(1) * 2).div_ceil(SLOTS).next_power_of_two();
        Shared {
            groups: (0..groups).map(|_| OnceLock::new()).collect(),
            groups_used: AtomicU64::new(0),
            overflows: AtomicU64::new(0),
            takeovers: AtomicU64::new(0),
        }
    }

    pub fn totals(&self) -> Totals {
        let groups = self.groups.len() * size_of::<OnceLock<Box<Group>>>();
        Totals {
            overflows: self.overflows.load(Relaxed),
            takeovers: self.takeovers.load(Relaxed),
            memory_bytes: groups as u64 + self.groups_used.load(Relaxed) * size_of::<Group>() as u64,
        }
    }

    /// Takes a lease: an eighth of what is left, but at least `at_least` and at most `at_most`, in whole tokens.
    /// Answers the lease and what stays; or nothing, when `at_least` is not there.
    pub(super) fn take(
        &self,
        client: u64,
        dimension: Dimension,
        limit: &Limit,
        at_least: u64,
        at_most: u64,
        now: u64,
    ) -> (u64, Level) {
        let mut lease = 0;
        let mut level = Level { available: 0, full_in: 0, wait: 0 };
        self.update(client, dimension, now, |time, own| {
            let used = time.saturating_sub(now);
            let available = limit.burst_ticks.saturating_sub(used);
            if available < at_least {
                lease = 0;
                level = Level { available, full_in: used, wait: used + at_least - limit.burst_ticks };
                return None;
            }
            // An overflow bucket gets nothing back, so nothing is held ahead of it.
            lease = if own && at_most > at_least { (available / 8).clamp(at_least, at_most) } else { at_least };
            if lease > limit.token_ticks {
                lease -= lease % limit.token_ticks;
            }
            level = Level { available: available - lease, full_in: used + lease, wait: 0 };
            Some(time.max(now) + lease)
        });
        (lease, level)
    }

    /// What `take` would see; changes nothing but may give the client a slot.
    pub(super) fn look(&self, client: u64, dimension: Dimension, limit: &Limit, at_least: u64, now: u64) -> Level {
        let mut level = Level { available: 0, full_in: 0, wait: 0 };
        self.update(client, dimension, now, |time, _| {
            let used = time.saturating_sub(now);
            let available = limit.burst_ticks.saturating_sub(used);
            level = Level { available, full_in: used, wait: (used + at_least).saturating_sub(limit.burst_ticks) };
            None
        });
        level
    }

    /// Charges what was used already, whether it is there or not.
    pub(super) fn charge(&self, client: u64, dimension: Dimension, ticks: u64, now: u64) {
        let ticks = ticks.min(DEBT_TICKS_MAX);
        self.update(client, dimension, now, |time, _| Some((time.max(now) + ticks).min(now + DEBT_TICKS_MAX)));
    }

    /// Returns the unused part of a lease. A client whose slot has gone to another had a full bucket: nothing to return to.
    pub(super) fn give_back(&self, client: u64, dimension: Dimension, ticks: u64) {
        let Some(group) = self.groups[self.group_of(client)].get() else { return };
        let identity = identity(client);
        for _ in 0..ATTEMPTS {
            let Some((slot, generation)) = group.find(identity) else { return };
            let word = &group.times[dimension as usize][slot];
            let old = word.load(Acquire);
            if old & 0xFF != generation {
                hint::spin_loop();
                continue;
            }
            let new = (old >> 8).saturating_sub(ticks) << 8 | generation;
            if word.compare_exchange(old, new, AcqRel, Acquire).is_ok() {
                return;
            }
        }
    }

    fn group_of(&self, client: u64) -> usize {
        client as usize & (self.groups.len() - 1)
    }

    /// Changes one bucket: `change` is given its time and whether it is the client's own, and answers the new time. It may run
    /// several times; the last counts.
    fn update(&self, client: u64, dimension: Dimension, now: u64, mut change: impl FnMut(u64, bool) -> Option<u64>) {
        let group = self.groups[self.group_of(client)].get_or_init(|| {
            self.groups_used.fetch_add(1, Relaxed);
            Box::new(Group::new())
        });
        let identity = identity(client);
        for _ in 0..ATTEMPTS {
            let Some((slot, generation)) = group.find(identity) else {
                match group.claim(identity, now) {
                    Claim::Done { took_over } => {
                        if took_over {
                            self.takeovers.fetch_add(1, Relaxed);
                        }
                        continue;
                    }
                    Claim::Busy => {
                        hint::spin_loop();
                        continue;
                    }
                    Claim::Full => break,
                }
            };
            let word = &group.times[dimension as usize][slot];
            let old = word.load(Acquire);
            if old & 0xFF != generation {
                hint::spin_loop(); // being taken over
                continue;
            }
            let Some(new) = change(old >> 8, true) else { return };
            if word.compare_exchange(old, new << 8 | generation, AcqRel, Acquire).is_ok() {
                return;
            }
        }
        self.overflows.fetch_add(1, Relaxed);
        let word = &group.overflow[dimension as usize];
        let mut old = word.load(Acquire);
        while let Some(new) = change(old, false) {
            match word.compare_exchange_weak(old, new, AcqRel, Acquire) {
                Ok(_) => return,
                Err(seen) => old = seen,
            }
        }
    }
}

/// Never 0, so that a key word of 0 is an empty slot.
fn identity(client: u64) -> u64 {
    (client >> 8).max(1)
}

/// Slots in the order in which they are searched. The start comes from bits that did not choose the group.
fn probe(identity: u64) -> impl Iterator<Item = usize> {
    (0..SLOTS).map(move |i| ((identity >> 40) as usize + i) % SLOTS)
}

enum Claim {
    Done { took_over: bool },
    Busy,
    Full,
}

impl Group {
    fn new() -> Group {
        Group {
            claimed: AtomicU32::new(0),
            keys: [const { AtomicU64::new(0) }; SLOTS],
            times: [const { [const { AtomicU64::new(0) }; SLOTS] }; Dimension::COUNT],
            overflow: [const { AtomicU64::new(0) }; Dimension::COUNT],
        }
    }

    /// A client's slot and the generation it holds it in. Probes from the client's own place, so that it is mostly found in
    /// the first cache line.
    fn find(&self, identity: u64) -> Option<(usize, u64)> {
        for slot in probe(identity) {
            let key = self.keys[slot].load(Acquire);
            if key >> 8 == identity {
                return Some((slot, key & 0xFF));
            }
        }
        None
    }

    fn claim(&self, identity: u64, now: u64) -> Claim {
        if self.claimed.compare_exchange(0, 1, Acquire, Relaxed).is_err() {
            return Claim::Busy;
        }
        let result = self.claim_alone(identity, now);
        self.claimed.store(0, Release);
        result
    }

    fn claim_alone(&self, identity: u64, now: u64) -> Claim {
        if self.find(identity).is_some() {
            return Claim::Done { took_over: false }; // another shard was faster
        }
        // Empty slots first: a client that comes back then finds its own again.
        if let Some(slot) = probe(identity).find(|&slot| self.keys[slot].load(Relaxed) == 0) {
            self.keys[slot].store(identity << 8, Release);
            return Claim::Done { took_over: false };
        }
        match probe(identity).find(|&slot| self.take_over(slot, identity, now)) {
            Some(_) => Claim::Done { took_over: true },
            None => Claim::Full,
        }
    }

    /// Only by the holder of `claimed`.
    fn take_over(&self, slot: usize, identity: u64, now: u64) -> bool {
        let generation = self.keys[slot].load(Relaxed) & 0xFF;
        let next = (generation + 1) & 0xFF;
        let mut seen = [0; Dimension::COUNT];
        for (dimension, times) in self.times.iter().enumerate() {
            let old = times[slot].load(Acquire);
            seen[dimension] = old;
            if old >> 8 > now || times[slot].compare_exchange(old, next, AcqRel, Relaxed).is_err() {
                // Active. Nobody else writes words of a generation that no key has: put them back as they were.
                for (times, old) in self.times.iter().zip(&seen[..dimension]) {
                    times[slot].store(*old, Release);
                }
                return false;
            }
        }
        self.keys[slot].store(identity << 8 | next, Release);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1 << 30;

    /// One group, all of its slots taken by clients 1000.. that are idle at `NOW`.
    fn full() -> Shared {
        let shared = Shared::new(1);
        for n in 0..SLOTS as u64 {
            shared.charge((1000 + n) << 8, Dimension::Points, 5, NOW - 100);
        }
        shared
    }

    fn time(shared: &Shared, client: u64, dimension: Dimension) -> Option<u64> {
        let group = shared.groups[0].get()?;
        let (slot, generation) = group.find(identity(client))?;
        let word = group.times[dimension as usize][slot].load(Acquire);
        assert_eq!(word & 0xFF, generation);
        Some(word >> 8)
    }

    #[test]
    fn a_slot_taken_over_between_reading_and_writing_is_not_charged_to_its_new_owner() {
        let shared = full();
        let newcomers = 5000..5000 + SLOTS as u64;
        let owner = 1007 << 8;
        let mut runs = 0;
        shared.update(owner, Dimension::Requests, NOW, |time, _| {
            runs += 1;
            if runs == 1 {
                // Right now, everybody's slot goes to somebody else, who has debt of 1; but one, who has none.
                newcomers.clone().skip(1).for_each(|n| shared.charge(n << 8, Dimension::Requests, 1, NOW));
                shared.charge(newcomers.start << 8, Dimension::Requests, 0, NOW);
            }
            Some(time.max(NOW) + 77)
        });
        assert_eq!(runs, 2);
        assert_eq!(time(&shared, owner, Dimension::Requests), Some(NOW + 77), "charged in the slot it then got");
        for n in newcomers.skip(1) {
            assert_eq!(time(&shared, n << 8, Dimension::Requests), Some(NOW + 1));
        }
    }

    #[test]
    fn a_slot_in_the_middle_of_a_take_over_is_left_alone() {
        let shared = full();
        let owner = 1007 << 8;
        let group = shared.groups[0].get().expect("in use");
        let (slot, generation) = group.find(identity(owner)).expect("has a slot");
        // The claimant lost its core after it had moved the first word.
        let word = &group.times[Dimension::Requests as usize][slot];
        word.store(generation + 1, Release);
        shared.charge(owner, Dimension::Requests, 77, NOW);
        shared.give_back(owner, Dimension::Requests, 77);
        assert_eq!(word.load(Acquire), generation + 1);
        assert_eq!(shared.totals().overflows, 1);
        assert_eq!(group.overflow[Dimension::Requests as usize].load(Acquire), NOW + 77);
    }

    #[test]
    fn a_take_over_that_meets_debt_puts_everything_back() {
        let shared = full();
        let owner = 1007 << 8;
        shared.charge(owner, Dimension::Bytes, 50, NOW); // the last dimension: two words are moved before it is seen
        let group = shared.groups[0].get().expect("in use");
        let (slot, _) = group.find(identity(owner)).expect("has a slot");
        assert!(!group.take_over(slot, identity(9999 << 8), NOW));
        assert_eq!(time(&shared, owner, Dimension::Points), Some(NOW - 95));
        assert_eq!(time(&shared, owner, Dimension::Bytes), Some(NOW + 50));
        assert!(group.take_over(slot, identity(9999 << 8), NOW + 50));
        assert_eq!(time(&shared, 9999 << 8, Dimension::Bytes), Some(0), "a new owner begins with a full bucket");
    }

    #[test]
    fn generations_wrap_around() {
        let shared = full();
        for turn in 0..1000u64 {
            let now = NOW + turn * 10;
            for n in 0..SLOTS as u64 {
                let client = (100_000 + turn * 100 + n) << 8;
                shared.charge(client, Dimension::Requests, 5, now);
                assert_eq!(time(&shared, client, Dimension::Requests), Some(now + 5));
            }
        }
        assert_eq!(shared.totals(), Totals { overflows: 0, takeovers: 32_000, ..shared.totals() });
    }
}
