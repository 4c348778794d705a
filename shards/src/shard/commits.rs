//! What was appended and is not done with: whose acknowledgement waits for which commit, and how many points of which
//! protocol each commit holds.

use std::collections::VecDeque;

use crate::counters::Counters;
use crate::point::Protocol;

use super::connection::Key;

const PROTOCOLS: usize = Protocol::ALL.len();

struct Commit {
    number: u64,
    /// Of its first batch
    stamp_ns: i64,
    points: [u64; PROTOCOLS],
    /// Of these, already acknowledged (`durability = "memory"`)
    acknowledged: [u64; PROTOCOLS],
    begun_ns: u64,
}

struct Parked {
    commit: u64,
    key: Key,
    served_ns: u64,
}

#[derive(Default)]
pub struct Commits {
    /// Appended and not folded, oldest first
    open: VecDeque<Commit>,
    parked: VecDeque<Parked>,
    durable: u64,
    folded: u64,
}

impl Commits {
    /// Points were appended; they will be durable with this commit. `waits`: their acknowledgement waits for that.
    pub fn appended(&mut self, number: u64, stamp_ns: i64, protocol: Protocol, points: u64, waits: bool, now_ns: u64) {
        if self.open.back().is_none_or(|commit| commit.number != number) {
            self.open.push_back(Commit {
                number,
                stamp_ns,
                points: [0; PROTOCOLS],
                acknowledged: [0; PROTOCOLS],
                begun_ns: now_ns,
            });
        }
        let commit = self.open.back_mut().expect("pushed above");
        commit.points[protocol as usize] += points;
        commit.acknowledged[protocol as usize] += if waits { 0 } else { points };
    }

    /// The shard ends although not all is durable: counts what was acknowledged from memory and is lost.
    pub fn lost(&self, counters: &Counters) -> u64 {
        let mut all = 0;
        for commit in self.open.iter().filter(|commit| commit.number > self.durable) {
            for protocol in Protocol::ALL {
                let points = commit.acknowledged[protocol as usize];
                counters.points(protocol).lost_after_ack.add(points);
                all += points;
            }
        }
        all
    }

    /// A connection's reply waits for this commit.
    pub fn park(&mut self, commit: u64, key: Key, served_ns: u64) {
        self.parked.push_back(Parked { commit, key, served_ns });
    }

    /// Everything up to `upto` is on disk: counts it. Answers the points of the newly durable commits.
    pub fn durable(&mut self, upto: u64, counters: &Counters) -> u64 {
        let mut all = 0;
        for commit in self.open.iter().filter(|commit| commit.number > self.durable && commit.number <= upto) {
            for protocol in Protocol::ALL {
                let points = commit.points[protocol as usize];
                counters.points(protocol).durable.add(points);
                all += points;
            }
        }
        self.durable = self.durable.max(upto);
        all
    }

    /// The next connection with a reply that may leave now, and when it was served.
    pub fn unpark(&mut self) -> Option<(Key, u64)> {
        if self.parked.front()?.commit > self.durable {
            return None;
        }
        self.parked.pop_front().map(|parked| (parked.key, parked.served_ns))
    }

    pub fn is_parked_empty(&self) -> bool {
        self.parked.is_empty()
    }

    pub fn durable_commit(&self) -> u64 {
        self.durable
    }

    /// Everything up to `upto` is folded.
    pub fn folded(&mut self, upto: u64) {
        while self.open.front().is_some_and(|commit| commit.number <= upto) {
            self.open.pop_front();
        }
        self.folded = self.folded.max(upto);
    }

    pub fn folded_commit(&self) -> u64 {
        self.folded
    }

    /// Stamp of the oldest record appended and not folded.
    pub fn oldest_unfolded_ns(&self) -> Option<i64> {
        self.open.iter().map(|commit| commit.stamp_ns).next()
    }

    /// Since when the oldest commit that is not durable waits.
    pub fn oldest_undurable_since_ns(&self) -> Option<u64> {
        self.open.iter().find(|commit| commit.number > self.durable).map(|commit| commit.begun_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_acknowledged_and_is_not_durable_is_lost() {
        let counters = Counters::new(1);
        let mut commits = Commits::default();
        commits.appended(1, 10, Protocol::Json, 1, false, 0);
        commits.appended(2, 20, Protocol::Json, 2, false, 0);
        commits.appended(2, 20, Protocol::Influx, 4, true, 0);
        commits.appended(3, 30, Protocol::Influx, 8, false, 0);
        assert_eq!(commits.durable(1, &counters), 1);
        assert_eq!(commits.lost(&counters), 10);
        assert_eq!(counters.points(Protocol::Influx).lost_after_ack.get(), 8);
    }
}
