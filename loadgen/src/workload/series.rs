//! Series: their names, their tags, and which of them a point belongs to.
//!
//! A client has *slots*, each with one series at a time. Points go round the slots in turn. With churn, a slot's series
//! ends and a new one begins, told apart by the tag `life`; slots change at different moments, spread over time.
//!
//! A series is `name,host=…,<tags>`. The host carries the seed, so that processes with seeds of their own never meet.
//! A client has at most 100 names while it has a tag beside `host`: beyond that the first tag, `instance`, counts, as
//! with real hosts and their many disks. The other tags are of few values.

use super::hash::{Purpose, Stream};
use crate::plan;

/// Where a client's series are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub client: u32,
    /// From 0 within the client
    pub number: u64,
    /// Counts the series that this slot has had; 0 for ever without churn
    pub life: u64,
}

/// The key under which the life of a slot stands, with churn.
pub const LIFE_TAG: &str = "life";
const NAMES_MAX: u64 = 100;
const STEMS: [&str; 10] = [
    "cpu_usage",
    "mem_used",
    "disk_io",
    "net_bytes",
    "http_requests",
    "api_latency",
    "queue_depth",
    "gc_pause",
    "cache_hits",
    "db_queries",
];
/// Keys, what their values begin with, and how many values there are.
const TAGS: [(&str, &str, u64); 12] = [
    ("instance", "i-", 0),
    ("region", "eu-west-", 4),
    ("service", "checkout-", 12),
    ("env", "prod", 1),
    ("zone", "z", 3),
    ("cluster", "k8s-", 8),
    ("team", "team-", 16),
    ("version", "1.42.", 10),
    ("rack", "r", 64),
    ("os", "debian-", 2),
    ("arch", "x86-64-v", 4),
    ("tier", "t", 5),
];

#[derive(Clone, Debug)]
pub struct Series {
    seed: u64,
    clients: u32,
    /// In all; at least one for each client
    total: u64,
    tags: u32,
    churn_per_minute: f64,
    tag_values: Stream,
    churn: Stream,
}

impl Series {
    pub fn new(plan: &plan::Plan) -> Series {
        let clients = plan.workload.clients.max(1);
        Series {
            seed: plan.seed,
            clients,
            total: plan.workload.series.max(u64::from(clients)),
            tags: plan.workload.tags,
            churn_per_minute: plan.workload.churn_per_minute.max(0.0),
            tag_values: Stream::new(plan.seed, Purpose::Tags),
            churn: Stream::new(plan.seed, Purpose::Churn),
        }
    }

    pub fn clients(&self) -> u32 {
        self.clients
    }

    /// Slots of all clients.
    pub fn total(&self) -> u64 {
        self.total
    }

    pub fn has_churn(&self) -> bool {
        self.churn_per_minute > 0.0
    }

    /// How many slots a client has.
    #[inline]
    pub fn slots(&self, client: u32) -> u64 {
        let clients = u64::from(self.clients);
        self.total / clients + u64::from(u64::from(client) < self.total % clients)
    }

    /// The client's first slot among all.
    #[inline]
    pub fn first(&self, client: u32) -> u64 {
        let clients = u64::from(self.clients);
        u64::from(client) * (self.total / clients) + u64::from(client).min(self.total % clients)
    }

    /// How many series a slot had before the one it has now. `since_epoch_ns` is the batch's moment in the run.
    #[inline]
    pub fn life(&self, client: u32, slot: u64, since_epoch_ns: i64) -> u64 {
        if !self.has_churn() {
            return 0;
        }
        let minute = since_epoch_ns.max(0) / 60_000_000_000;
        // 2^53 phases within a life; additions and products of f64 are the same everywhere.
        let phase = (self.churn.at(u64::from(client), slot) >> 11) as f64 / 9_007_199_254_740_992.0;
        (minute as f64 * self.churn_per_minute + phase) as u64
    }

    pub fn name(&self, slot: Slot) -> String {
        let number = if self.tags == 0 { slot.number } else { slot.number % NAMES_MAX };
        let stem = STEMS[(number % STEMS.len() as u64) as usize];
        format!("{stem}_{}", number / STEMS.len() as u64)
    }

    /// Keys and values without `life`, `host` first. None needs escaping in any protocol.
    pub fn tags(&self, slot: Slot) -> Vec<(String, String)> {
        let mut tags = vec![("host".to_string(), self.host(slot.client))];
        for n in 0..self.tags {
            let draw = |values| self.tag_values.below(u64::from(slot.client), u64::from(n), values);
            tags.push(match TAGS.get(n as usize) {
                Some((key, start, 0)) => (key.to_string(), format!("{start}{:04}", slot.number / NAMES_MAX)),
                Some((key, start, values)) => (key.to_string(), format!("{start}{}", draw(*values))),
                None => (format!("tag{n}"), format!("value-{}", draw(10))),
            });
        }
        tags
    }

    /// As the tag has it.
    pub fn host(&self, client: u32) -> String {
        format!("s{}-host-{client:06}", self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::testing::plan;
    use std::collections::HashSet;

    #[test]
    fn every_client_has_a_slot_and_all_series_are_given_out() {
        for (clients, series) in [(1, 1), (3, 10), (7, 3), (10, 10_000), (4, 0)] {
            let mut plan = plan();
            plan.workload.clients = clients;
            plan.workload.series = series;
            let all = Series::new(&plan);
            let mut next = 0;
            for client in 0..clients {
                assert_eq!(all.first(client), next);
                assert!(all.slots(client) >= 1);
                next += all.slots(client);
            }
            assert_eq!(next, all.total());
            assert_eq!(next, series.max(u64::from(clients)));
        }
    }

    #[test]
    fn no_two_slots_are_the_same_series_with_any_number_of_tags() {
        for tags in [0, 1, 2, 5, 15] {
            let mut plan = plan();
            plan.workload.clients = 4;
            plan.workload.series = 2_000;
            plan.workload.tags = tags;
            let all = Series::new(&plan);
            let mut seen = HashSet::new();
            for client in 0..4 {
                for number in 0..all.slots(client) {
                    let slot = Slot { client, number, life: 0 };
                    let pairs = all.tags(slot);
                    assert_eq!(pairs.len(), tags as usize + 1);
                    let keys: HashSet<&String> = pairs.iter().map(|(key, _)| key).collect();
                    assert_eq!(keys.len(), pairs.len());
                    assert!(seen.insert((all.name(slot), pairs)));
                }
            }
            assert_eq!(seen.len(), 2_000);
        }
    }

    #[test]
    fn churn_replaces_its_share_every_minute() {
        let mut plan = plan();
        plan.workload.clients = 1;
        plan.workload.series = 10_000;
        plan.workload.churn_per_minute = 0.1;
        let all = Series::new(&plan);
        for minute in 0..20 {
            let now = minute * 60_000_000_000;
            let changed =
                (0..10_000).filter(|&slot| all.life(0, slot, now) != all.life(0, slot, now + 60_000_000_000)).count();
            assert!(changed.abs_diff(1_000) < 150, "{changed} of 10,000 after minute {minute}");
            assert!((0..10_000).all(|slot| all.life(0, slot, now) == all.life(0, slot, now + 59_999_999_999)));
        }
    }
}
