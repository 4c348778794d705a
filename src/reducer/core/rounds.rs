//! Closing windows: a round takes one M, logs what is due by it, then the mark record, and frees what F has passed.

use super::super::{
    aggregate_log::{AggregateLog, Kind, LogRefused},
    encode::MarkRecord,
    record::WindowRecord,
    series::Subject,
};
use super::{
    Closed, Emitting, InstanceKey, NS_PER_MS, Progress, RECORD_BYTES, ReducerCore, Round,
    lengths::least_common_multiple, release,
};
use metricstream_shards::window::protocol::{BEFORE_ALL_NS, SECOND_NS, align_down};
use std::collections::{BTreeSet, HashSet};

impl ReducerCore {
    /// Appends what is due: at most `results_max` results, then says [`Progress::More`]. Once a second of fold time is
    /// enough: revisions of a window are gathered that long.
    pub fn advance(
        &mut self,
        monotonic_ns: i64,
        clock_ns: i64,
        log: &mut impl AggregateLog,
        results_max: usize,
    ) -> Progress {
        match self.try_advance(monotonic_ns, clock_ns, log, results_max) {
            Ok(progress) => progress,
            Err(LogRefused) => Progress::Blocked,
        }
    }

    fn try_advance(
        &mut self,
        monotonic_ns: i64,
        clock_ns: i64,
        log: &mut impl AggregateLog,
        results_max: usize,
    ) -> Result<Progress, LogRefused> {
        if self.round.is_none() && !self.begin_round(monotonic_ns) {
            return Ok(Progress::Idle);
        }
        let mut left = results_max.max(1);
        loop {
            if self.emitting.is_none() {
                match self.next_due() {
                    Some(key) => self.begin_instance(key),
                    None => break,
                }
            }
            while let Some((key, subject, first)) = self.next_subject() {
                if left == 0 {
                    return Ok(Progress::More);
                }
                if self.encoder.bytes().len() >= RECORD_BYTES || self.group != Some((key, self.rule_of(subject))) {
                    self.send_record(clock_ns, log)?;
                }
                left -= 1;
                self.emit(key, subject, first);
                self.emitting.as_mut().expect("a subject was next").next += 1;
            }
            self.emitting = None;
        }
        self.send_record(clock_ns, log)?;
        self.finish_round(clock_ns, log)?;
        Ok(Progress::Idle)
    }

    /// A round works with one M from its first result to its mark record.
    fn begin_round(&mut self, monotonic_ns: i64) -> bool {
        let marks = self.marks.advance(monotonic_ns);
        if self.marks.held() {
            return false;
        }
        let m_ns = align_down(marks.m_ns, SECOND_NS);
        let moved = m_ns > self.last_mark_ns;
        // A rebuild has results to log although M stands where it was.
        let rebuilt = self.unbegun.first().is_some_and(|key| key.end_ns <= m_ns);
        if !moved && !rebuilt {
            return false;
        }
        self.round = Some(Round { m_ns, complete_ns: marks.complete_ns, mark_appended: false });
        // A mark a base window even when there is nothing to say: readers wait for time to pass, not only for points.
        let crossed = align_down(m_ns, self.base_ns) > align_down(self.last_mark_ns, self.base_ns);
        if !crossed && self.next_due().is_none() {
            self.round = None;
        }
        self.round.is_some()
    }

    /// The first window by end that has something to log.
    fn next_due(&self) -> Option<InstanceKey> {
        let round = self.round.as_ref()?;
        let (m_ns, complete_ns) = (round.m_ns, round.complete_ns);
        let first = |set: &BTreeSet<InstanceKey>, limit_ns: i64| set.first().copied().filter(|k| k.end_ns <= limit_ns);
        [first(&self.unbegun, m_ns), first(&self.changed, m_ns), first(&self.incomplete, complete_ns.min(m_ns))]
            .into_iter()
            .flatten()
            .min()
    }

    fn begin_instance(&mut self, key: InstanceKey) {
        let round = self.round.as_ref().expect("windows are closed in rounds");
        let first_time = self.unbegun.remove(&key);
        let completed = self.incomplete.contains(&key) && key.end_ns <= round.complete_ns;
        self.changed.remove(&key);
        let all = first_time || completed;
        let mut subjects = if all { self.subjects(key) } else { Vec::new() };
        let instance = self.instances.entry(key).or_default();
        if first_time {
            instance.begun = true;
            instance.incomplete = key.end_ns > round.complete_ns;
            if instance.incomplete {
                self.incomplete.insert(key);
            }
            subjects.extend(instance.loaded.keys().map(|&subject| (subject, true)));
        } else if completed {
            instance.incomplete = false;
            self.incomplete.remove(&key);
            subjects.iter_mut().for_each(|(s, first)| *first = instance.changed.get(s).copied().unwrap_or(false));
        }
        if !all {
            subjects.extend(instance.changed.iter().map(|(&subject, &first)| (subject, first)));
        }
        self.series.order();
        self.series.sort_subjects(&mut subjects);
        subjects.dedup_by_key(|(subject, _)| *subject);
        // A second pass over the same window starts at the first key again, so in a record of its own.
        self.group = None;
        self.emitting = Some(Emitting { key, subjects, next: 0 });
    }

    /// All series and rule outputs with points in a window.
    fn subjects(&self, key: InstanceKey) -> Vec<(Subject, bool)> {
        let length = self.length(key.length_ns);
        let mut members: Vec<u32> = Vec::new();
        for (_, window) in self.windows.0.range(key.start_ns()..key.end_ns) {
            members.extend(window.cells.keys());
        }
        if key.length_ns > self.base_ns {
            members.sort_unstable();
            members.dedup();
        }
        let mut targets: HashSet<u32> = HashSet::new();
        if length.rules.iter().any(|&wanted| wanted) {
            for &series in &members {
                for &target in self.series.targets_for(series) {
                    if length.rules[self.series.target_at(target).rule as usize] {
                        targets.insert(target);
                    }
                }
            }
        }
        let mut subjects = Vec::with_capacity(members.len() + targets.len());
        if length.per_series {
            subjects.extend(members.into_iter().map(|series| (Subject::series(series), true)));
        }
        subjects.extend(targets.into_iter().map(|target| (Subject::target(target), true)));
        subjects
    }

    fn next_subject(&self) -> Option<(InstanceKey, Subject, bool)> {
        let emitting = self.emitting.as_ref()?;
        let &(subject, first) = emitting.subjects.get(emitting.next)?;
        Some((emitting.key, subject, first))
    }

    /// Appends the open record, if there is one. When the log refuses, it stays as it is.
    pub(super) fn send_record(&mut self, clock_ns: i64, log: &mut impl AggregateLog) -> Result<(), LogRefused> {
        if !self.encoder.is_empty() {
            log.append(Kind::Aggregates, clock_ns, self.encoder.entries(), self.encoder.bytes())?;
            self.encoder.clear();
        }
        Ok(())
    }

    /// The mark record, the flush, and only then the freeing.
    fn finish_round(&mut self, clock_ns: i64, log: &mut impl AggregateLog) -> Result<(), LogRefused> {
        let round = self.round.as_ref().expect("a round is under way");
        let m_ns = round.m_ns;
        if !round.mark_appended {
            let by_horizon_ns = self.floor.propose(m_ns, BEFORE_ALL_NS);
            let floor_ns = self.floor.propose(m_ns, self.budget_floor_ns());
            self.books.floor_raised_by_memory += u64::from(floor_ns > by_horizon_ns);
            let mark = MarkRecord { era: self.era, epoch: self.epoch, m_ns, floor_ns };
            log.append(Kind::Mark, clock_ns, 0, &mark.encode())?;
            self.last_mark_ns = m_ns;
            self.round.as_mut().expect("a round is under way").mark_appended = true;
        }
        log.flush()?;
        self.round = None;
        self.commit(m_ns);
        Ok(())
    }

    /// Everything appended is durable: readers may see it, and what F has passed is freed.
    pub(super) fn commit(&mut self, m_ns: i64) {
        let floor_ns = self.floor.commit();
        self.closed = Closed { era: self.era, m_ns, floor_ns };
        self.newest_version += u64::from(!self.newest_pending.is_empty());
        for (key, record) in self.newest_pending.drain(..) {
            let newer = |old: &WindowRecord| (old.era, old.start_ms) <= (record.era, record.start_ms);
            if self.newest.get(&key).is_none_or(newer) {
                self.newest.insert(key, record);
            }
        }
        let frozen_before = self.windows.0.len() + self.instances.len();
        while let Some(entry) = self.windows.0.first_entry()
            && entry.key().saturating_add(self.base_ns) <= floor_ns
        {
            entry.remove().cells.into_keys().for_each(|series| self.series.release(series));
        }
        while let Some(entry) = self.instances.first_entry()
            && entry.key().end_ns <= floor_ns
        {
            let instance = entry.remove();
            let left = instance.loaded.into_keys().chain(instance.damaged.into_keys());
            left.for_each(|subject| release(&mut self.series, subject));
        }
        for set in [&mut self.unbegun, &mut self.changed, &mut self.incomplete] {
            while set.first().is_some_and(|key| key.end_ns <= floor_ns) {
                set.pop_first();
            }
        }
        if self.windows.0.len() + self.instances.len() < frozen_before {
            self.newest_version += 1;
            self.newest.retain(|_, record| record.end_ms().saturating_mul(NS_PER_MS) > floor_ns);
            self.series.sweep();
        }
    }

    /// The floor below which enough would be freed to come back under the bound.
    fn budget_floor_ns(&self) -> i64 {
        let mut over = self.bytes().saturating_sub(self.memory_bytes_max);
        if over == 0 && self.wanted_floor_ns == BEFORE_ALL_NS {
            return BEFORE_ALL_NS;
        }
        let mut floor_ns = self.wanted_floor_ns;
        for (start_ns, window) in &self.windows.0 {
            if over == 0 {
                break;
            }
            over = over.saturating_sub(window.bytes());
            floor_ns = floor_ns.max(start_ns + self.base_ns);
        }
        // Aligned upwards, or a part of a long window's length would never be freed.
        let align_ns = self.lengths.iter().map(|l| l.length_ns).fold(self.base_ns, least_common_multiple);
        align_down(floor_ns.saturating_add(align_ns - 1), align_ns)
    }
}
