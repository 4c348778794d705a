//! After a restart: results from before it come in, and the end of the rebuild shows what they lack.

use super::super::{
    record::WindowRecord,
    series::{Subject, Unpacked},
};
use super::{LastResult, NS_PER_MS, ReducerCore, release};
use metricstream_shards::window::summary::{Detail, Summary};

impl ReducerCore {
    /// Takes in the results from before the restart. Those of windows and rules that are not configured any more stay as
    /// they are in the log.
    pub(super) fn load(&mut self, results: Vec<WindowRecord>) {
        for record in results {
            let Some(length) = self.lengths.iter().find(|l| l.window_s == record.window_s) else { continue };
            let start_ns = record.start_ms.saturating_mul(NS_PER_MS);
            let key = length.instance_at(start_ns);
            if key.start_ns() != start_ns || start_ns < self.floor.logged_ns() {
                continue;
            }
            let subject = match &record.rule {
                None if length.per_series => Subject::series(self.series.acquire(&record.key)),
                None => continue,
                Some(id) => {
                    let Some(rule) = self.series.rules().iter().position(|rule| rule.id == *id) else { continue };
                    if !length.rules[rule] {
                        continue;
                    }
                    Subject::target(self.series.acquire_target(rule as u32, &record.key))
                }
            };
            let last = LastResult {
                aggregates: record.aggregates,
                series: record.series,
                revision: record.revision,
                flags: record.flags,
            };
            if self.instances.entry(key).or_default().loaded.insert(subject, last).is_some() {
                release(&mut self.series, subject);
            }
            self.unbegun.insert(key);
        }
    }

    /// Everything durable above F is folded again: finds what was lost, lets the live partials in, lets M go.
    pub(super) fn finish_rebuild(&mut self, monotonic_ns: i64) {
        let mut scratch = std::mem::replace(&mut self.scratch, Summary::new(Detail::Plain));
        let mut lost = Vec::new();
        for (&key, instance) in &self.instances {
            for (&subject, last) in &instance.loaded {
                let count = self.compute(key, subject, &mut scratch, None).map_or(0, |r| r.aggregates.count);
                // Once damaged, always: an equal count is then the count of what was left.
                if count < last.aggregates.count || last.flags.damaged {
                    lost.push((key, subject, *last));
                }
            }
        }
        self.scratch = scratch;
        for (key, subject, last) in lost {
            match subject.unpack() {
                Unpacked::Series(series) => self.series.add_ref(series),
                Unpacked::Target(target) => {
                    let slot = self.series.target_at(target);
                    let (rule, key) = (slot.rule, slot.key.clone());
                    self.series.acquire_target(rule, &key);
                }
            }
            self.instances.entry(key).or_default().damaged.insert(subject, last);
        }
        self.books.held = 0;
        for (start_ns, window) in std::mem::take(&mut self.live).0 {
            for (series, cell) in window.cells {
                self.merge_cell(start_ns, series, cell, false);
                self.series.release(series);
            }
        }
        self.marks.release(monotonic_ns);
    }
}
