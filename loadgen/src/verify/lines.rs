//! Sources of JSON lines: `log dump`, and the newline JSON of a sink.
//!
//! A point has `name`, `tags`, `client_id`, `value`, and `timestamp_ns`, or else `timestamp` in ms; the log's also `log`,
//! a sink's `id`. A window has `window_s` and `start_ms`, and a mark `mark_ms`. Each comparison passes over the other's
//! lines, so that both can read the same text.

use std::io::BufRead;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Options;
use super::expected::Expected;
use super::points::{self, Identity, Points};
use super::progress::Progress;
use super::series_hash::{self, Tags, Text};
use super::verdict::Verdict;
use super::windows::{self, Of, Windows};
use crate::commands::Failure;

/// `comparison` names the source.
pub fn compare_points(
    expected: &Expected,
    options: &Options,
    comparison: &'static str,
    input: impl BufRead,
) -> Result<Verdict, Failure> {
    let mut points = Points::new(expected, options, comparison)?;
    let mut progress = Progress::new("points read", options.progress);
    for_each_line(input, |number, text| {
        progress.add(1);
        let not_one = |what: String| Failure(format!("line {number} is not a point{what}"));
        let line: PointLine<'_> = serde_json::from_slice(text)
            .map_err(|error| not_one(format!(" as JSON: {error}; is it the output of `log dump`?")))?;
        if line.is_aggregate() {
            return Ok(());
        }
        let found = line.found().ok_or_else(|| {
            not_one(": it has no `name`, or no `timestamp_ns` or `timestamp` that fits in ns".to_string())
        })?;
        points.take(&found, || describe(text));
        Ok(())
    })?;
    Ok(points.finish())
}

/// From the lines of `log dump --shard aggregate`, or of a whole dump.
pub fn compare_windows(expected: &Expected, options: &Options, input: impl BufRead) -> Result<Verdict, Failure> {
    let mut windows = Windows::new(expected, options, "windows");
    let mut progress = Progress::new("windows read", options.progress);
    for_each_line(input, |number, text| {
        progress.add(1);
        take_window(&mut windows, text).map_err(|error| {
            Failure(format!("line {number} is not a window as JSON: {error}; is it the output of `log dump`?"))
        })
    })?;
    Ok(windows.finish())
}

/// A point, as the log and sinks write it.
#[derive(Deserialize)]
pub struct PointLine<'a> {
    #[serde(borrow, default)]
    log: Option<Text<'a>>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    client_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    name: Option<Text<'a>>,
    #[serde(default)]
    tags: Tags,
    #[serde(default)]
    timestamp_ns: Option<i64>,
    /// In ms
    #[serde(default)]
    timestamp: Option<i64>,
    #[serde(borrow, default)]
    value: Option<&'a RawValue>,
    /// Only lines of the aggregate log have one of these.
    #[serde(default)]
    window_s: Option<u32>,
    #[serde(default)]
    era: Option<u32>,
}

impl PointLine<'_> {
    pub fn is_aggregate(&self) -> bool {
        self.window_s.is_some() || self.era.is_some()
    }

    /// `None`: it is no point.
    pub fn found(&self) -> Option<points::Found<'_>> {
        let in_ms = || self.timestamp.and_then(|ms| ms.checked_mul(1_000_000));
        Some(points::Found {
            series: series_hash::of_name(&self.name.as_ref()?.0).wrapping_add(self.tags.0),
            timestamp_ns: self.timestamp_ns.or_else(in_ms)?,
            value: self.value.map_or("nothing", |value| value.get()),
            client: self.client_id.as_ref().map_or("", |client| &client.0),
            log: Some(self.log.as_ref().map_or("", |log| &log.0)),
            id: self.id.map(|id| id.get()),
            identity: Identity::Without,
        })
    }
}

/// A window, as the log, the operators' listener and sinks write it.
#[derive(Deserialize)]
pub struct WindowLine<'a> {
    #[serde(borrow, default, alias = "client_id")]
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
    #[serde(borrow, default)]
    rule: Option<Text<'a>>,
    #[serde(default)]
    incomplete: bool,
    #[serde(default)]
    unchecked: bool,
    /// Only a mark has it.
    #[serde(default)]
    mark_ms: Option<i64>,
}

impl WindowLine<'_> {
    /// `None`: it is no window.
    pub fn found(&self) -> Option<(Of<'_>, windows::Found)> {
        let number = |raw: Option<&RawValue>| raw.and_then(|raw| raw.get().parse().ok()).unwrap_or(f64::NAN);
        let of = Of {
            series: series_hash::of_name(&self.name.as_ref()?.0).wrapping_add(self.tags.0),
            client: self.client.as_ref().map_or("", |client| &client.0),
            window_s: self.window_s?,
            start_ms: self.start_ms?,
            is_rule: self.rule.as_ref().is_some_and(|rule| !rule.0.is_empty())
                || self.series.is_some_and(|series| series != 1),
        };
        let found = windows::Found {
            count: self.count,
            sum: number(self.sum),
            min: number(self.min),
            max: number(self.max),
            incomplete: self.incomplete,
            unchecked: self.unchecked,
        };
        Some((of, found))
    }
}

/// A window or a mark; anything else is passed over.
pub fn take_window(windows: &mut Windows<'_>, text: &[u8]) -> serde_json::Result<()> {
    let line: WindowLine<'_> = serde_json::from_slice(text)?;
    if let Some(mark_ms) = line.mark_ms {
        windows.mark(mark_ms);
    }
    if let Some((of, found)) = line.found() {
        windows.take(&of, &found, || describe(text));
    }
    Ok(())
}

/// Gives each line without its end and its number from 1, in one buffer.
pub fn for_each_line(
    mut input: impl BufRead,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        line.clear();
        let got = input
            .read_until(b'\n', &mut line)
            .map_err(|error| Failure(format!("the input cannot be read: {error}")))?;
        if got == 0 {
            return Ok(());
        }
        number += 1;
        let text = line.trim_ascii();
        if !text.is_empty() {
            each(number, text)?;
        }
    }
}

/// `name{key="value"}` of a line's own.
pub fn describe(text: &[u8]) -> String {
    let line: serde_json::Value = serde_json::from_slice(text).unwrap_or_default();
    let tags = line["tags"].as_object().map_or_else(Vec::new, |tags| {
        tags.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<String>>()
    });
    format!("{}{{{}}}", line["name"].as_str().unwrap_or("?"), tags.join(","))
}
