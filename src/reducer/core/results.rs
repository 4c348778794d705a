//! One result of one window: computed from the cells, compared with what was logged before, encoded when it is news.

use super::super::{
    record::{Flags, WindowRecord},
    series::{Subject, Unpacked},
};
use super::{InstanceKey, LastResult, NS_PER_MS, ReducerCore, release};
use metricstream_shards::window::{
    state,
    summary::{Detail, Summary},
};

impl ReducerCore {
    pub(super) fn rule_of(&self, subject: Subject) -> Option<u32> {
        match subject.unpack() {
            Unpacked::Series(_) => None,
            Unpacked::Target(target) => Some(self.series.target_at(target).rule),
        }
    }

    /// Puts one result into the open record, unless it says nothing new.
    pub(super) fn emit(&mut self, key: InstanceKey, subject: Subject, first: bool) {
        let mut scratch = std::mem::replace(&mut self.scratch, Summary::new(Detail::Plain));
        let mut state = std::mem::take(&mut self.state);
        state.clear();
        let computed = self.compute(key, subject, &mut scratch, self.keep_state.then_some(&mut state));
        (self.scratch, self.state) = (scratch, state);
        let instance = self.instances.get_mut(&key).expect("a window is begun before its results");
        instance.changed.remove(&subject);
        let loaded = instance.loaded.remove(&subject);
        if loaded.is_some() {
            release(&mut self.series, subject);
        }
        let damaged = instance.damaged.get(&subject);
        let mut result = match (computed, damaged) {
            // The larger count stays; of what state, only the log before the damage knew.
            (Some(computed), Some(last)) if computed.aggregates.count < last.aggregates.count => {
                self.state.clear();
                *last
            }
            (None, Some(last)) => {
                self.state.clear();
                *last
            }
            (Some(computed), _) => computed,
            (None, None) => return,
        };
        if self.detail == Detail::Plain {
            result.aggregates.quantiles = None; // of a damaged one from before
        }
        result.flags.damaged |= damaged.is_some();
        result.flags.incomplete = instance.incomplete || result.flags.damaged;
        let is_target = matches!(subject.unpack(), Unpacked::Target(_));
        let mut last_revision = instance.revisions.get(&subject).copied();
        if let Some(last) = loaded {
            last_revision = Some(last.revision);
            if last.revision > 0 || is_target {
                instance.revisions.insert(subject, last.revision);
            }
            // Logged with quantiles and now computed without, or the other way: the same points, so it stays as it is. A
            // change of the setting would else write every window above F again.
            let same = last.aggregates.same_values(&result.aggregates)
                && (last.series, last.flags) == (result.series, result.flags);
            if same {
                return self.remember_newest(key, subject, last.revision, &last);
            }
        }
        let known = last_revision.is_some() || !is_target && !first;
        let revision = if known { last_revision.unwrap_or(0) + 1 } else { 0 };
        if revision > 0 || is_target {
            instance.revisions.insert(subject, revision);
        }
        if known {
            self.books.revisions += 1;
        } else {
            self.books.results += 1;
        }
        self.books.incomplete_results += u64::from(result.flags.incomplete);
        self.books.damaged_results += u64::from(result.flags.damaged);
        self.books.sum_overflows += u64::from(result.aggregates.sum.is_infinite());
        self.encode(key, subject, revision, &result);
        self.remember_newest(key, subject, revision, &result);
    }

    fn encode(&mut self, key: InstanceKey, subject: Subject, revision: u32, result: &LastResult) {
        let rule = self.rule_of(subject);
        if self.encoder.is_empty() {
            let rule_id = rule.map(|rule| &*self.series.rules()[rule as usize].id);
            let window_s = self.length(key.length_ns).window_s;
            self.encoder.begin(rule_id, window_s, key.start_ns() / NS_PER_MS, self.era);
            self.group = Some((key, rule));
        }
        let series_key = match subject.unpack() {
            Unpacked::Series(series) => &self.series.key(series)[..],
            Unpacked::Target(target) => &self.series.target_at(target).key[..],
        };
        self.encoder.push(series_key, revision, result.flags, result.series, &result.aggregates, &self.state);
    }

    /// For scrapes: the newest window of each output, visible when the round is durable.
    fn remember_newest(&mut self, key: InstanceKey, subject: Subject, revision: u32, result: &LastResult) {
        let Unpacked::Target(target) = subject.unpack() else { return };
        let target = self.series.target_at(target);
        let window_s = self.length(key.length_ns).window_s;
        let record = WindowRecord {
            key: target.key.clone(),
            rule: Some(self.series.rules()[target.rule as usize].id.clone()),
            window_s,
            start_ms: key.start_ns() / NS_PER_MS,
            aggregates: result.aggregates,
            series: result.series,
            era: self.era,
            revision,
            flags: result.flags,
        };
        self.newest_pending.push(((target.rule, window_s, target.key.clone()), record));
    }

    /// The result as the cells say; `None` without points. `state`: where what it can be merged from is to be put.
    pub(super) fn compute(
        &self,
        key: InstanceKey,
        subject: Subject,
        scratch: &mut Summary,
        state: Option<&mut Vec<u8>>,
    ) -> Option<LastResult> {
        let last = |aggregates, series, unchecked| LastResult {
            aggregates,
            series,
            revision: 0,
            flags: Flags { unchecked, ..Flags::default() },
        };
        let windows = || self.windows.0.range(key.start_ns()..key.end_ns).map(|(_, window)| &window.cells);
        match subject.unpack() {
            Unpacked::Series(series) if key.length_ns == self.base_ns => {
                let cell = windows().next()?.get(&series)?;
                if let Some(state) = state.filter(|_| cell.count() > 1) {
                    scratch.add_cell(cell);
                    state::put(scratch, state);
                    scratch.clear();
                }
                Some(last(cell.aggregates(self.detail)?, 1, cell.is_unchecked()))
            }
            Unpacked::Series(series) => {
                let mut unchecked = false;
                for cell in windows().filter_map(|cells| cells.get(&series)) {
                    scratch.add_cell(cell);
                    unchecked |= cell.is_unchecked();
                }
                let aggregates = (scratch.count() > 0).then(|| scratch.aggregates()).flatten();
                if let Some(state) = state.filter(|_| scratch.count() > 1) {
                    state::put(scratch, state);
                }
                scratch.clear();
                Some(last(aggregates?, 1, unchecked))
            }
            Unpacked::Target(target) => {
                let (mut reported, mut unchecked) = (0, false);
                for series in &self.series.target_at(target).members {
                    let before = scratch.count();
                    for cell in windows().filter_map(|cells| cells.get(series)) {
                        scratch.add_cell(cell);
                        unchecked |= cell.is_unchecked();
                    }
                    reported += u64::from(scratch.count() > before);
                }
                let aggregates = (scratch.count() > 0).then(|| scratch.aggregates()).flatten();
                if let Some(state) = state.filter(|_| scratch.count() > 1) {
                    state::put(scratch, state);
                }
                scratch.clear();
                Some(last(aggregates?, reported, unchecked))
            }
        }
    }
}
