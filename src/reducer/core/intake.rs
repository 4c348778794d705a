//! Messages of shards and rebuilds on their way in: series numbers, cells, marks.

use super::super::series::Subject;
use super::{LENGTHS_MAX, NO_SERIES, ReducerCore, Source, lengths::Length};
use metricstream_shards::{
    point::series_key::{self, OVERFLOW_NAME},
    window::{partial::ShardMessage, protocol::align_down, set::Cell},
};

impl ReducerCore {
    /// Takes one message of a mailbox. `clock_ns` is the fold clock's now.
    pub fn apply(&mut self, source: Source, message: ShardMessage, monotonic_ns: i64, clock_ns: i64) {
        match message {
            ShardMessage::NewSeries { id, key } => {
                let series = self.series.acquire(&key);
                let numbers = self.numbers.entry(source).or_default();
                if numbers.len() <= id as usize {
                    numbers.resize(id as usize + 1, NO_SERIES);
                }
                let before = std::mem::replace(&mut numbers[id as usize], series);
                if before != NO_SERIES {
                    self.series.release(before);
                }
            }
            ShardMessage::ForgetSeries { id } => {
                if let Some(number) = self.numbers.get_mut(&source).and_then(|n| n.get_mut(id as usize)) {
                    let series = std::mem::replace(number, NO_SERIES);
                    if series != NO_SERIES {
                        self.series.release(series);
                    }
                }
            }
            ShardMessage::Partials(partials) => {
                for (id, cell) in partials.cells {
                    let numbers = self.numbers.get(&source).map_or(&[][..], Vec::as_slice);
                    let series = numbers.get(id as usize).copied().unwrap_or(NO_SERIES);
                    assert!(series != NO_SERIES, "a series is announced before its first partial");
                    self.take_cell(source, partials.window_start_ns, series, cell);
                }
            }
            ShardMessage::OverflowPartials(partials) => {
                for (client, cell) in partials.cells {
                    let mut key = Vec::with_capacity(client.len() + OVERFLOW_NAME.len() + 1);
                    series_key::write(&mut key, client.as_bytes(), OVERFLOW_NAME.as_bytes(), &[]);
                    // Held by its cells only: overflow series have no number.
                    let series = self.series.acquire(&key);
                    self.take_cell(source, partials.window_start_ns, series, cell);
                    self.series.release(series);
                }
            }
            ShardMessage::Mark { mark_ns } => {
                if let Source::Shard(shard) = source {
                    self.marks.set(usize::from(shard), mark_ns, monotonic_ns, clock_ns);
                }
            }
            ShardMessage::Drained => match source {
                Source::Shard(shard) => self.marks.drained(usize::from(shard)),
                Source::Rebuild(_) => {
                    for series in self.numbers.remove(&source).unwrap_or_default() {
                        if series != NO_SERIES {
                            self.series.release(series);
                        }
                    }
                    self.rebuilds_open = self.rebuilds_open.checked_sub(1).expect("a rebuild ends once");
                    if self.rebuilds_open == 0 {
                        self.finish_rebuild(monotonic_ns);
                    }
                }
            },
        }
    }

    /// A cell on its way in: below F it is only counted, beside a rebuild it waits.
    fn take_cell(&mut self, source: Source, start_ns: i64, series: u32, cell: Cell) {
        assert!(start_ns.rem_euclid(self.base_ns) == 0, "shards and reducer agree on the base window");
        let refold = matches!(source, Source::Rebuild(_));
        let points = cell.count();
        if refold {
            self.books.refolded += points;
        }
        if points == 0 {
            return;
        }
        if start_ns.saturating_add(self.base_ns) <= self.floor.logged_ns() {
            if !refold {
                self.books.late_beyond += points;
            }
            return;
        }
        if self.rebuilding() && !refold {
            let (merged, is_new) = self.live.merge(start_ns, series, cell, self.detail);
            self.books.repeated += merged.repeated;
            self.books.conflicts += merged.conflicts;
            self.books.held += merged.counted;
            if is_new {
                self.series.add_ref(series);
            }
            return;
        }
        self.merge_cell(start_ns, series, cell, refold);
    }

    pub(super) fn merge_cell(&mut self, start_ns: i64, series: u32, cell: Cell, refold: bool) {
        let reported = |core: &ReducerCore, length: &Length| {
            let start_ns = align_down(start_ns, length.length_ns);
            core.windows.0.range(start_ns..start_ns + length.length_ns).any(|(_, w)| w.cells.contains_key(&series))
        };
        // Which closed windows it falls into, and whether the series is new there: to be known before the merge.
        let mut closed: [Option<(usize, bool)>; LENGTHS_MAX] = [None; LENGTHS_MAX];
        for (n, length) in self.lengths.iter().enumerate() {
            let key = length.instance_at(start_ns);
            if key.start_ns() < self.floor.logged_ns() {
                // Only after the window lengths were changed: a part of it is frozen, so it stays as it is in the log.
                continue;
            }
            if self.instances.get(&key).is_some_and(|instance| instance.begun) {
                closed[n] = Some((n, !reported(self, length)));
            } else {
                self.unbegun.insert(key);
            }
        }
        let (merged, is_new) = self.windows.merge(start_ns, series, cell, self.detail);
        if is_new {
            self.series.add_ref(series);
        }
        if !refold {
            self.books.counted += merged.counted;
            self.books.repeated += merged.repeated;
            self.books.conflicts += merged.conflicts;
        }
        // A conflict may have left the greater value, which was there: then this logs a revision with equal results.
        // Telling it apart would cost two results for every conflict in a window of any length.
        if !merged.changed {
            return;
        }
        for (n, first) in closed.into_iter().flatten() {
            let length = &self.lengths[n];
            let key = length.instance_at(start_ns);
            let instance = self.instances.get_mut(&key).expect("closed windows are remembered until F passes");
            let targets = self
                .series
                .targets_for(series)
                .iter()
                .filter(|&&target| length.rules[self.series.target_at(target).rule as usize]);
            if length.per_series {
                *instance.changed.entry(Subject::series(series)).or_insert(first) |= first;
            }
            instance.changed.extend(targets.map(|&target| (Subject::target(target), false)));
            if !instance.changed.is_empty() {
                self.changed.insert(key);
            }
        }
    }
}
