//! The reducer's own numbers for series and for rule outputs (targets), their keys, and their order by key.
//!
//! A series is kept while a source maps a number to it, a cell of it is held, or an earlier result waits to be
//! compared; a target while it has members or such a result. Numbers are reused after [`SeriesTable::sweep`] only.

use super::rules::Rule;
use metricstream_shards::point::series_key;
use std::{collections::HashMap, sync::Arc};

pub(super) struct SeriesTable {
    rules: Vec<Rule>,
    by_key: HashMap<Arc<[u8]>, u32>,
    slots: Vec<SeriesSlot>,
    free: Vec<u32>,
    /// Live series in key order, without `unsorted`
    sorted: Vec<u32>,
    unsorted: Vec<u32>,
    targets_by_key: HashMap<(u32, Box<[u8]>), u32>,
    targets: Vec<Target>,
    targets_free: Vec<u32>,
    /// May have no references left
    idle: Vec<u32>,
    targets_idle: Vec<u32>,
    keys_bytes: usize,
}

struct SeriesSlot {
    key: Arc<[u8]>,
    targets: Box<[u32]>,
    refs: u32,
    /// Position in `sorted`
    rank: u32,
}

pub(super) struct Target {
    pub(super) rule: u32,
    pub(super) key: Box<[u8]>,
    pub(super) members: Vec<u32>,
    refs: u32,
}

impl SeriesTable {
    pub(super) fn new(rules: Vec<Rule>) -> SeriesTable {
        SeriesTable {
            rules,
            by_key: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            sorted: Vec::new(),
            unsorted: Vec::new(),
            targets_by_key: HashMap::new(),
            targets: Vec::new(),
            targets_free: Vec::new(),
            idle: Vec::new(),
            targets_idle: Vec::new(),
            keys_bytes: 0,
        }
    }

    pub(super) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Keys, slots and tables, roughly.
    pub(super) fn bytes(&self) -> usize {
        self.keys_bytes + self.by_key.len() * (size_of::<SeriesSlot>() + 48)
    }

    /// Finds the series or makes it, with its targets, and takes a reference.
    pub(super) fn acquire(&mut self, key: &[u8]) -> u32 {
        if let Some(&series) = self.by_key.get(key) {
            self.slots[series as usize].refs += 1;
            return series;
        }
        let series = self.free.pop().unwrap_or(self.slots.len() as u32);
        assert!(series < TARGET_BIT, "two thousand million series");
        let targets = self.targets_of(key, series);
        let key: Arc<[u8]> = key.into();
        self.keys_bytes += key.len() + 16;
        let slot = SeriesSlot { key: key.clone(), targets, refs: 1, rank: 0 };
        match self.slots.get_mut(series as usize) {
            Some(free) => *free = slot,
            None => self.slots.push(slot),
        }
        self.by_key.insert(key, series);
        self.unsorted.push(series);
        series
    }

    fn targets_of(&mut self, key: &[u8], series: u32) -> Box<[u32]> {
        // A key that does not parse cannot come from a shard; it takes part in no rule.
        let Some(parsed) = series_key::parse(key) else { return Box::default() };
        let keys: Vec<(u32, Vec<u8>)> =
            (0u32..).zip(&self.rules).filter_map(|(n, rule)| Some((n, rule.target_key(&parsed)?))).collect();
        let mut targets = Vec::with_capacity(keys.len());
        for (rule, key) in keys {
            let target = self.target(rule, key.into());
            self.targets[target as usize].members.push(series);
            targets.push(target);
        }
        targets.into()
    }

    fn target(&mut self, rule: u32, key: Box<[u8]>) -> u32 {
        if let Some(&target) = self.targets_by_key.get(&(rule, key.clone())) {
            return target;
        }
        let slot = Target { rule, key: key.clone(), members: Vec::new(), refs: 0 };
        let target = match self.targets_free.pop() {
            Some(target) => {
                self.targets[target as usize] = slot;
                target
            }
            None => {
                self.targets.push(slot);
                self.targets.len() as u32 - 1
            }
        };
        self.targets_by_key.insert((rule, key), target);
        target
    }

    pub(super) fn acquire_target(&mut self, rule: u32, key: &[u8]) -> u32 {
        let target = self.target(rule, key.into());
        self.targets[target as usize].refs += 1;
        target
    }

    pub(super) fn add_ref(&mut self, series: u32) {
        self.slots[series as usize].refs += 1;
    }

    pub(super) fn release(&mut self, series: u32) {
        let slot = &mut self.slots[series as usize];
        slot.refs = slot.refs.checked_sub(1).expect("a reference is released once");
        if slot.refs == 0 {
            self.idle.push(series);
        }
    }

    pub(super) fn release_target(&mut self, target: u32) {
        let slot = &mut self.targets[target as usize];
        slot.refs = slot.refs.checked_sub(1).expect("a reference is released once");
        self.targets_idle.push(target);
    }

    pub(super) fn key(&self, series: u32) -> &Arc<[u8]> {
        &self.slots[series as usize].key
    }

    pub(super) fn targets_for(&self, series: u32) -> &[u32] {
        &self.slots[series as usize].targets
    }

    pub(super) fn target_at(&self, target: u32) -> &Target {
        &self.targets[target as usize]
    }

    /// Frees what nothing refers to.
    pub(super) fn sweep(&mut self) {
        let mut idle = std::mem::take(&mut self.idle);
        idle.sort_unstable();
        idle.dedup();
        idle.retain(|&series| self.slots[series as usize].refs == 0);
        if !idle.is_empty() {
            self.order();
            self.sorted.retain(|series| idle.binary_search(series).is_err());
            for (rank, &series) in (0u32..).zip(&self.sorted) {
                self.slots[series as usize].rank = rank;
            }
            let mut touched = Vec::new();
            for &series in &idle {
                let slot = &mut self.slots[series as usize];
                touched.extend(std::mem::take(&mut slot.targets));
                let key = std::mem::replace(&mut slot.key, Arc::from([].as_slice()));
                self.keys_bytes -= key.len() + 16;
                self.by_key.remove(&key);
                self.free.push(series);
            }
            touched.sort_unstable();
            touched.dedup();
            for &target in &touched {
                self.targets[target as usize].members.retain(|series| idle.binary_search(series).is_err());
            }
            self.targets_idle.extend(touched);
        }
        let mut idle = std::mem::take(&mut self.targets_idle);
        idle.sort_unstable();
        idle.dedup();
        for target in idle {
            let slot = &mut self.targets[target as usize];
            if slot.refs == 0 && slot.members.is_empty() {
                let key = std::mem::take(&mut slot.key);
                self.targets_by_key.remove(&(slot.rule, key));
                self.targets_free.push(target);
            }
        }
    }

    /// Brings the ranks up to date: new series are sorted among themselves and merged in, so that a window of a million
    /// series is put in order by integers.
    pub(super) fn order(&mut self) {
        if self.unsorted.is_empty() {
            return;
        }
        let slots = &self.slots;
        let key = |series: u32| &slots[series as usize].key;
        self.unsorted.sort_unstable_by(|&a, &b| key(a).cmp(key(b)));
        let mut merged = Vec::with_capacity(self.sorted.len() + self.unsorted.len());
        let mut rest = &self.sorted[..];
        for &series in &self.unsorted {
            let before = rest.partition_point(|&s| key(s) < key(series));
            merged.extend_from_slice(&rest[..before]);
            merged.push(series);
            rest = &rest[before..];
        }
        merged.extend_from_slice(rest);
        self.unsorted.clear();
        self.sorted = merged;
        for (rank, &series) in (0u32..).zip(&self.sorted) {
            self.slots[series as usize].rank = rank;
        }
    }

    /// Sorts subjects: series by key, then targets by rule and key. [`Self::order`] first.
    pub(super) fn sort_subjects(&self, subjects: &mut [(Subject, bool)]) {
        let split = {
            subjects.sort_unstable_by_key(|(s, _)| match s.unpack() {
                Unpacked::Series(series) => u64::from(self.slots[series as usize].rank),
                Unpacked::Target(target) => u64::from(TARGET_BIT) + u64::from(target),
            });
            subjects.partition_point(|(s, _)| matches!(s.unpack(), Unpacked::Series(_)))
        };
        let by_key = |s: Subject| match s.unpack() {
            Unpacked::Target(target) => (self.targets[target as usize].rule, &self.targets[target as usize].key[..]),
            Unpacked::Series(_) => unreachable!("series are in front of the split"),
        };
        subjects[split..].sort_unstable_by(|a, b| by_key(a.0).cmp(&by_key(b.0)));
    }
}

/// What a result is of: a series, or a target (top bit).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Subject(u32);

const TARGET_BIT: u32 = 1 << 31;

pub(super) enum Unpacked {
    Series(u32),
    Target(u32),
}

impl Subject {
    pub(super) fn series(series: u32) -> Subject {
        Subject(series)
    }
    pub(super) fn target(target: u32) -> Subject {
        Subject(target | TARGET_BIT)
    }
    pub(super) fn unpack(self) -> Unpacked {
        if self.0 & TARGET_BIT == 0 { Unpacked::Series(self.0) } else { Unpacked::Target(self.0 & !TARGET_BIT) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_stay_in_key_order_while_they_come_and_go() {
        let mut table = SeriesTable::new(Vec::new());
        let mut held = Vec::new();
        for n in 0..200u32 {
            let key = format!("c\u{1}{:03}", n * 37 % 200).into_bytes();
            held.push((key.clone(), table.acquire(&key)));
            if n % 3 == 0 {
                let (_, series) = held.swap_remove(held.len() / 2);
                table.release(series);
                table.sweep();
            }
            if n % 5 == 0 {
                table.order();
                assert!(table.sorted.windows(2).all(|w| table.key(w[0]) < table.key(w[1])));
            }
        }
        table.order();
        held.sort();
        let order: Vec<u32> = held.iter().map(|(_, series)| *series).collect();
        assert_eq!(table.sorted, order);
        assert_eq!(table.len(), held.len());
    }
}
