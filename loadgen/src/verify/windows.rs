//! Compares windows with the ledgers, whatever source they come from.
//!
//! Of each (series, window) the count, the sum rounded once, the least and the greatest value are worked out from the
//! ledgers; the latest revision that the source has must equal them.
//!
//! What a window cannot tell: order within it, and a change of a value so small that it vanishes when the sum is rounded
//! (the last bit of one value among many). A point that went to the neighbouring window is told. For the rest compare
//! points.
//!
//! Which windows are compared:
//! - Closed ones. With marks (`mark_ms` in a dump), a window is closed when it ends at or before the last mark. Without,
//!   when it ends no later than the last window of its length that the server has: windows close in the order of their
//!   ends. Points of later windows are counted as not compared.
//! - A point of an unknown request may be in its window or not: the count may be anything between, and the rest is
//!   compared with every choice that gives this count, while there are few.
//! - A point that came in more than the horizon after the start of its window may have been too late for it, and one
//!   further ahead than the future bound too early: like unknown ones. Both are counted.
//! - In a window that is `unchecked` repeats may count more than once; then only the least and greatest are compared.
//! - Windows of several series, as aggregate rules make them, are left out.

use super::Options;
use super::clients::Clients;
use super::exact::Sum;
use super::expected::Expected;
use super::hashed::{HashedMap, HashedSet};
use super::points::{all_series, name_fault, name_fault_at};
use super::progress::Progress;
use super::series_hash;
use super::verdict::{Fault, FaultKind, Verdict};
use crate::workload::values::Decimal;

/// With more points of unknown fate in one window, only the count's range is compared.
const CHOICES_BITS_MAX: usize = 12;

/// Which window a source tells of.
pub struct Of<'a> {
    /// The hash of its name and tags
    pub series: u64,
    pub client: &'a str,
    pub window_s: u32,
    pub start_ms: i64,
    /// Of several series, as an aggregate rule makes it
    pub is_rule: bool,
}

impl Of<'_> {
    pub fn key(&self) -> u64 {
        series_hash::of_place(self.series, self.start_ms, self.window_s)
    }
}

/// What a window says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    pub count: u64,
    /// NaN where the source has none
    pub sum: f64,
    pub min: f64,
    pub max: f64,
    pub incomplete: bool,
    pub unchecked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    NotFound,
    Equal,
    /// The details are in `different`.
    Different,
}

/// One (series, window), in 64 bytes.
struct Window {
    sum: Sum,
    min: f64,
    max: f64,
    /// Points that must be there; those that may be are in `maybe`
    must: u32,
    /// How often repeats may have counted on top, where they are not told apart
    spare: u32,
    /// Any point of it
    batch: u32,
    index: u32,
    decimals: u8,
    has_maybe: bool,
    state: State,
    /// Already judged at the end
    judged: bool,
}

pub struct Windows<'a> {
    expected: &'a Expected,
    options: &'a Options,
    verdict: Verdict,
    table: HashedMap<Window>,
    maybe: HashedMap<Vec<Decimal>>,
    different: HashedMap<Found>,
    known: Option<HashedSet>,
    clients: Clients<'a>,
    mark_ms: Option<i64>,
    /// By window length: the latest end
    last_end_ms: Vec<i64>,
    points: u64,
    maybe_points: u64,
    beyond: u64,
    found: u64,
    of_rules: u64,
    others: u64,
    incomplete: u64,
    unchecked: u64,
}

impl<'a> Windows<'a> {
    /// `comparison` names the source.
    pub fn new(expected: &'a Expected, options: &'a Options, comparison: &'static str) -> Windows<'a> {
        let mut windows = Windows {
            expected,
            options,
            verdict: Verdict::new(comparison),
            table: HashedMap::default(),
            maybe: HashedMap::default(),
            different: HashedMap::default(),
            known: None,
            clients: Clients::new(expected, options),
            mark_ms: None,
            last_end_ms: vec![i64::MIN; options.window_lengths_s.len()],
            points: 0,
            maybe_points: 0,
            beyond: 0,
            found: 0,
            of_rules: 0,
            others: 0,
            incomplete: 0,
            unchecked: 0,
        };
        windows.fold();
        windows
    }

    /// What the windows should be.
    fn fold(&mut self) {
        let expected = self.expected;
        let mut progress = Progress::new("points made again from the ledger", self.options.progress);
        expected.for_each_point(|n, batch, point| {
            progress.add(1);
            if batch.copies_max() == 0 {
                return;
            }
            let run = expected.run(batch);
            let series = run.series_hash(point.slot);
            // By when the server had it at the latest.
            let came_ns = run.by_ns(batch.first_acknowledged);
            let unknown = batch.acknowledged == 0;
            self.points += u64::from(!unknown);
            self.maybe_points += u64::from(unknown);
            let mut outside = false;
            for &length_s in &self.options.window_lengths_s {
                let start_ms = start_ms(point.timestamp_ns, length_s);
                let horizon_ns = self.options.horizon_ms as i64 * 1_000_000;
                let future_ns = self.options.future_ms as i64 * 1_000_000;
                let late = came_ns.is_none_or(|came| came.saturating_sub(start_ms * 1_000_000) > horizon_ns);
                let early = point.timestamp_ns.saturating_sub(batch.batch().stamp_ns) > future_ns;
                outside |= late || early;
                let key = series_hash::of_place(series, start_ms, length_s);
                let window = self.table.entry(key).or_insert(Window {
                    sum: Sum::default(),
                    min: f64::INFINITY,
                    max: f64::NEG_INFINITY,
                    must: 0,
                    spare: 0,
                    batch: n,
                    index: point.index,
                    decimals: point.value.decimals,
                    has_maybe: false,
                    state: State::NotFound,
                    judged: false,
                });
                window.spare = window.spare.saturating_add(batch.copies_max() - 1);
                if unknown || late || early {
                    window.has_maybe = true;
                    self.maybe.entry(key).or_default().push(point.value);
                } else {
                    window.must += 1;
                    window.sum.add(point.value);
                    window.min = window.min.min(point.value.to_f64());
                    window.max = window.max.max(point.value.to_f64());
                }
            }
            self.beyond += u64::from(outside && !unknown);
        });
    }

    /// All windows that end by then have closed.
    pub fn mark(&mut self, mark_ms: i64) {
        // Marks of a later era may be earlier; what was closed stays closed.
        self.mark_ms = self.mark_ms.max(Some(mark_ms));
    }

    /// By length, in the order of the options: the latest end of a window so far
    pub fn last_end_ms(&self, length: usize) -> Option<i64> {
        Some(self.last_end_ms[length]).filter(|end| *end != i64::MIN)
    }

    /// Revisions of a window, oldest first. `describe`: the series in words, asked for when no ledger has it.
    pub fn take(&mut self, of: &Of<'_>, found: &Found, describe: impl FnOnce() -> String) {
        let Some(length) = self.options.window_lengths_s.iter().position(|&length| length == of.window_s) else {
            return;
        };
        if of.client.is_empty() || of.is_rule {
            self.of_rules += 1;
            return;
        }
        self.last_end_ms[length] = self.last_end_ms[length].max(of.start_ms + i64::from(of.window_s) * 1_000);
        let key = of.key();
        let Some(window) = self.table.get_mut(&key) else {
            self.foreign(of, found, describe);
            return;
        };
        self.found += u64::from(window.state == State::NotFound);
        self.incomplete += u64::from(found.incomplete);
        self.unchecked += u64::from(found.unchecked);
        if equal(window, found, || &self.maybe[&key]) {
            window.state = State::Equal;
            self.different.remove(&key);
        } else {
            window.state = State::Different;
            self.different.insert(key, *found);
        }
        let (batch, index) = (window.batch, window.index);
        self.compare_client(batch, index, of.client);
    }

    /// Two sets of figures under one revision.
    pub fn contradicts(&mut self, of: &Of<'_>, found: &Found, before: String, describe: impl FnOnce() -> String) {
        self.verdict.fault(FaultKind::Altered, || {
            let at_ns = of.start_ms.saturating_mul(1_000_000);
            let client = of.client.to_string();
            Fault::new(FaultKind::Altered, client, describe(), at_ns, before, in_words(found))
        });
    }

    fn compare_client(&mut self, batch: u32, index: u32, client: &str) {
        let sent = &self.expected.batches[batch as usize];
        let Some(expected) = self.clients.wrong(sent, client) else { return };
        let point = self.expected.point(batch, index);
        self.verdict.fault(FaultKind::Altered, || {
            let found = format!("the client {client:?}");
            name_fault(self.expected, FaultKind::Altered, sent, &point, expected, found)
        });
    }

    fn foreign(&mut self, of: &Of<'_>, found: &Found, describe: impl FnOnce() -> String) {
        let known = self.known.get_or_insert_with(|| all_series(self.expected));
        let known = known.contains(&of.series);
        if !known && self.options.others_allowed {
            self.others += 1;
            return;
        }
        self.verdict.fault(FaultKind::Foreign, || {
            let Of { window_s, start_ms, .. } = of;
            let expected = match known {
                true => format!("no point of it in the {window_s} s window that starts at {start_ms} ms"),
                false => "no such series".to_string(),
            };
            let at_ns = start_ms.saturating_mul(1_000_000);
            Fault::new(FaultKind::Foreign, of.client.to_string(), describe(), at_ns, expected, in_words(found))
        });
    }

    pub fn finish(mut self) -> Verdict {
        let expected = self.expected;
        let (mut compared, mut open) = (0_u64, 0_u64);
        let mut windows_compared = 0_u64;
        let mut progress = Progress::new("points looked for", self.options.progress);
        let first_length = self.options.window_lengths_s.first().copied();
        expected.for_each_point(|_, batch, point| {
            progress.add(1);
            if batch.copies_max() == 0 {
                return;
            }
            let series = expected.run(batch).series_hash(point.slot);
            for (n, &length_s) in self.options.window_lengths_s.iter().enumerate() {
                let start_ms = start_ms(point.timestamp_ns, length_s);
                let end_ms = start_ms + i64::from(length_s) * 1_000;
                let closed = end_ms <= self.mark_ms.unwrap_or(self.last_end_ms[n]);
                if Some(length_s) == first_length && batch.acknowledged > 0 {
                    *(if closed { &mut compared } else { &mut open }) += 1;
                }
                if !closed {
                    continue;
                }
                let key = series_hash::of_place(series, start_ms, length_s);
                let window = self.table.get_mut(&key).expect("every point was folded");
                if std::mem::replace(&mut window.judged, true) {
                    continue;
                }
                windows_compared += 1;
                let found = self.different.get(&key);
                let (kind, found) = match (window.state, found) {
                    (State::Equal, _) => continue,
                    (State::NotFound, _) if window.must == 0 => continue,
                    (State::NotFound, _) | (State::Different, None) => {
                        (FaultKind::Missing, "no such window".to_string())
                    }
                    (State::Different, Some(found)) => (kind_of(window, found, self.maybe.get(&key)), in_words(found)),
                };
                let window = &*window;
                self.verdict.fault(kind, || {
                    let maybe = self.maybe.get(&key).map_or(0, Vec::len) as u32;
                    let window_text = format!("in the {length_s} s window {}", describe_expected(window, maybe));
                    name_fault_at(expected, kind, batch, &point, start_ms * 1_000_000, window_text, found)
                });
            }
        });
        let totals = &expected.totals;
        for (name, count) in [
            ("requests acknowledged", totals.requests_acknowledged),
            ("requests refused", totals.requests_refused),
            ("requests unknown", totals.requests_unknown),
            ("points acknowledged", self.points),
            ("points in closed windows", compared),
            ("points in windows not closed yet", open),
            ("points beyond the horizon or too early", self.beyond),
            ("points unknown", self.maybe_points),
            ("windows compared", windows_compared),
            ("windows found", self.found),
            ("revisions marked incomplete", self.incomplete),
            ("revisions marked unchecked", self.unchecked),
            ("windows of aggregate rules", self.of_rules),
            ("windows of other series", self.others),
        ] {
            self.verdict.total(name, count);
        }
        self.verdict.notes.clone_from(&expected.notes);
        if let Some(length_s) = first_length {
            self.verdict.notes.push(match self.mark_ms {
                Some(mark) => format!("closed are windows that end by the server's last mark, {mark} ms; points are counted in the {length_s} s windows"),
                None => format!("closed are windows that end no later than the last one found of their length; points are counted in the {length_s} s windows"),
            });
        }
        if windows_compared == 0 {
            self.verdict.notes.push(
                "no window has closed yet, so nothing was compared: windows close their lateness (15 s) after their end"
                    .to_string(),
            );
        }
        self.verdict
    }
}

#[inline]
fn start_ms(timestamp_ns: i64, length_s: u32) -> i64 {
    let length_ms = i64::from(length_s) * 1_000;
    timestamp_ns.div_euclid(length_ms * 1_000_000) * length_ms
}

fn equal<'m>(window: &Window, found: &Found, maybe: impl FnOnce() -> &'m Vec<Decimal>) -> bool {
    let sum_is = |sum: Sum| sum.rounded(window.decimals) == found.sum;
    if !window.has_maybe && found.count == u64::from(window.must) {
        return sum_is(window.sum) && window.min == found.min && window.max == found.max;
    }
    let must = u64::from(window.must);
    let maybe: &[Decimal] = if window.has_maybe { maybe() } else { &[] };
    let least = maybe.iter().map(|value| value.to_f64()).fold(window.min, f64::min);
    let greatest = maybe.iter().map(|value| value.to_f64()).fold(window.max, f64::max);
    let within = found.min >= least && found.min <= window.min && found.max <= greatest && found.max >= window.max;
    let count_max = must + maybe.len() as u64;
    if found.unchecked && found.count > must && found.count <= count_max + u64::from(window.spare) {
        return within;
    }
    if found.count < must || found.count > count_max {
        return false;
    }
    if maybe.len() > CHOICES_BITS_MAX {
        return within;
    }
    // Every choice of those that may be there.
    (0..1_u32 << maybe.len()).filter(|choice| u64::from(choice.count_ones()) + must == found.count).any(|choice| {
        let (mut sum, mut min, mut max) = (window.sum, window.min, window.max);
        for (_, value) in maybe.iter().enumerate().filter(|(n, _)| choice >> n & 1 == 1) {
            sum.add(*value);
            min = min.min(value.to_f64());
            max = max.max(value.to_f64());
        }
        sum_is(sum) && min == found.min && max == found.max
    })
}

fn kind_of(window: &Window, found: &Found, maybe: Option<&Vec<Decimal>>) -> FaultKind {
    let must = u64::from(window.must);
    if found.count < must {
        FaultKind::Missing
    } else if found.count > must + maybe.map_or(0, Vec::len) as u64 {
        FaultKind::Doubled
    } else {
        FaultKind::Altered
    }
}

pub fn in_words(found: &Found) -> String {
    let marks = match (found.incomplete, found.unchecked) {
        (false, false) => "",
        (true, false) => " (marked incomplete)",
        (false, true) => " (marked unchecked)",
        (true, true) => " (marked incomplete and unchecked)",
    };
    format!("count {} sum {} min {} max {}{marks}", found.count, found.sum, found.min, found.max)
}

fn describe_expected(window: &Window, maybe: u32) -> String {
    let sum = window.sum.rounded(window.decimals);
    let known = match window.must {
        0 => "count 0".to_string(),
        n => format!("count {n} sum {sum} min {} max {}", window.min, window.max),
    };
    if maybe == 0 { known } else { format!("{known} and up to {maybe} points more, whose fate is unknown or late") }
}
