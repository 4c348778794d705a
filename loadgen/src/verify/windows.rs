//! Compares windows, from the appliance's `/api/v1/windows` or its aggregate log, with the ledgers.
//!
//! Of each (series, window) the count, the sum rounded once, the least and the greatest value are worked out from the
//! ledgers; the latest revision that the server has must equal them.
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

use std::io::BufRead;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Options;
use super::exact::Sum;
use super::expected::Expected;
use super::points::{HashedMap, all_series, describe_line, name_fault, name_fault_at};
use super::progress::Progress;
use super::series_hash::{self, Tags, Text};
use super::verdict::{Fault, FaultKind, Verdict};
use crate::commands::Failure;
use crate::workload::values::Decimal;

const PAGE_LIMIT: u32 = 10_000;
/// With more points of unknown fate in one window, only the count's range is compared.
const CHOICES_BITS_MAX: usize = 12;

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, default)]
    client: Option<Text<'a>>,
    #[serde(borrow, default)]
    name: Option<Text<'a>>,
    #[serde(default)]
    tags: Tags,
    window_s: Option<u32>,
    start_ms: Option<i64>,
    #[serde(default)]
    count: u64,
    #[serde(borrow, default)]
    sum: Option<&'a RawValue>,
    #[serde(borrow, default)]
    min: Option<&'a RawValue>,
    #[serde(borrow, default)]
    max: Option<&'a RawValue>,
    #[serde(default)]
    series: Option<u64>,
    #[serde(default)]
    incomplete: bool,
    #[serde(default)]
    unchecked: bool,
    /// Only a mark has it.
    #[serde(default)]
    mark_ms: Option<i64>,
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    windows: Vec<&'a RawValue>,
    next: Option<String>,
}

/// What a window says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Found {
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
    incomplete: bool,
    unchecked: bool,
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

struct Windows<'a> {
    expected: &'a Expected,
    options: &'a Options,
    verdict: Verdict,
    table: HashedMap<Window>,
    maybe: HashedMap<Vec<Decimal>>,
    different: HashedMap<Found>,
    known: Option<std::collections::HashSet<u64, std::hash::BuildHasherDefault<super::points::AsIs>>>,
    /// What the server calls all clients, where the plan leaves it open
    one_name: Option<String>,
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

/// From the lines of `log dump --shard aggregate` (or a whole dump; points are passed over).
pub fn compare_dump(expected: &Expected, options: &Options, input: impl BufRead) -> Result<Verdict, Failure> {
    let mut windows = Windows::new(expected, options);
    let mut progress = Progress::new("windows read", options.progress);
    super::for_each_line(input, |number, line| {
        progress.add(1);
        windows.line(line).map_err(|error| {
            Failure(format!("line {number} is not a window as JSON: {error}; is it the output of `log dump`?"))
        })
    })?;
    Ok(windows.finish())
}

/// From the operators' listener; `url` is its base, or whole.
pub fn compare_url(expected: &Expected, options: &Options, url: &str) -> Result<Verdict, Failure> {
    let base = url.split('?').next().unwrap_or(url).trim_end_matches('/');
    let base = match base.splitn(4, '/').nth(3) {
        Some(path) if !path.is_empty() => base.to_string(),
        _ => format!("{base}/api/v1/windows"),
    };
    let mut windows = Windows::new(expected, options);
    let mut progress = Progress::new("windows read", options.progress);
    for (n, length_s) in options.window_lengths_s.iter().enumerate() {
        let start = format!("{base}?window={length_s}s&limit={PAGE_LIMIT}");
        windows.pages(&start, &mut progress)?;
        // Windows of one end close together, but the last pages may have been read in the midst of it.
        if let Some(since) = windows.last_end_ms[n].checked_sub(i64::from(*length_s) * 1_000) {
            windows.pages(&format!("{start}&since={since}"), &mut progress)?;
        }
    }
    Ok(windows.finish())
}

impl<'a> Windows<'a> {
    fn new(expected: &'a Expected, options: &'a Options) -> Windows<'a> {
        let mut windows = Windows {
            expected,
            options,
            verdict: Verdict::new("windows"),
            table: HashedMap::default(),
            maybe: HashedMap::default(),
            different: HashedMap::default(),
            known: None,
            one_name: options.client.clone(),
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

    fn pages(&mut self, start: &str, progress: &mut Progress) -> Result<(), Failure> {
        let mut cursor = None;
        loop {
            let url = match &cursor {
                None => start.to_string(),
                Some(cursor) => format!("{start}&cursor={cursor}"),
            };
            let text = ureq::get(&url)
                .call()
                .and_then(|mut answer| answer.body_mut().with_config().limit(1 << 30).read_to_string())
                .map_err(|error| Failure(format!("windows cannot be read from {url}: {error}")))?;
            let told = |error| Failure(format!("what {url} answers are no windows: {error}"));
            let page: Page<'_> = serde_json::from_str(&text).map_err(told)?;
            progress.add(page.windows.len() as u64);
            for window in &page.windows {
                self.line(window.get().as_bytes()).map_err(told)?;
            }
            match page.next {
                None => return Ok(()),
                next => cursor = next,
            }
        }
    }

    fn line(&mut self, text: &[u8]) -> serde_json::Result<()> {
        let line: Line<'_> = serde_json::from_slice(text)?;
        if let Some(mark) = line.mark_ms {
            // Marks of a later era may be earlier; what was closed stays closed.
            self.mark_ms = self.mark_ms.max(Some(mark));
        }
        let (Some(name), Some(window_s), Some(start_ms)) = (&line.name, line.window_s, line.start_ms) else {
            return Ok(());
        };
        let client = line.client.as_ref().map_or("", |client| &client.0);
        let Some(length) = self.options.window_lengths_s.iter().position(|&length| length == window_s) else {
            return Ok(());
        };
        if client.is_empty() || line.series.is_some_and(|series| series != 1) {
            self.of_rules += 1;
            return Ok(());
        }
        self.last_end_ms[length] = self.last_end_ms[length].max(start_ms + i64::from(window_s) * 1_000);
        let number = |raw: Option<&RawValue>| raw.and_then(|raw| raw.get().parse().ok()).unwrap_or(f64::NAN);
        let found = Found {
            count: line.count,
            sum: number(line.sum),
            min: number(line.min),
            max: number(line.max),
            incomplete: line.incomplete,
            unchecked: line.unchecked,
        };
        let series = series_hash::of_name(&name.0).wrapping_add(line.tags.0);
        let key = series_hash::of_place(series, start_ms, window_s);
        let Some(window) = self.table.get_mut(&key) else {
            self.foreign(series, &found, client, start_ms, window_s, text);
            return Ok(());
        };
        self.found += u64::from(window.state == State::NotFound);
        self.incomplete += u64::from(found.incomplete);
        self.unchecked += u64::from(found.unchecked);
        if equal(window, &found, || &self.maybe[&key]) {
            window.state = State::Equal;
            self.different.remove(&key);
        } else {
            window.state = State::Different;
            self.different.insert(key, found);
        }
        let (batch, index) = (window.batch, window.index);
        self.compare_client(batch, index, client);
        Ok(())
    }

    fn compare_client(&mut self, batch: u32, index: u32, client: &str) {
        let sent = &self.expected.batches[batch as usize];
        let told = match &self.options.client {
            Some(_) => None,
            None => self.expected.client_name(sent),
        };
        let wanted = match told {
            Some(name) => name,
            None => self.one_name.get_or_insert_with(|| client.to_string()).clone(),
        };
        if client != wanted {
            let point = self.expected.point(batch, index);
            self.verdict.fault(FaultKind::Altered, || {
                let expected =
                    format!("the client {wanted:?} (say --client NAME when the server names clients otherwise)");
                let found = format!("the client {client:?}");
                name_fault(self.expected, FaultKind::Altered, sent, &point, expected, found)
            });
        }
    }

    fn foreign(&mut self, series: u64, found: &Found, client: &str, start_ms: i64, window_s: u32, text: &[u8]) {
        let known = self.known.get_or_insert_with(|| all_series(self.expected));
        let known = known.contains(&series);
        if !known && self.options.others_allowed {
            self.others += 1;
            return;
        }
        self.verdict.fault(FaultKind::Foreign, || {
            let expected = match known {
                true => format!("no point of it in the {window_s} s window that starts at {start_ms} ms"),
                false => "no such series".to_string(),
            };
            let series = describe_line(text);
            Fault::new(FaultKind::Foreign, client.to_string(), series, start_ms * 1_000_000, expected, describe(found))
        });
    }

    fn finish(mut self) -> Verdict {
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
                    (State::Different, Some(found)) => (kind_of(window, found, self.maybe.get(&key)), describe(found)),
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

fn describe(found: &Found) -> String {
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
