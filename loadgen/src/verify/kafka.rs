//! Source of points and windows: Kafka, as `kcat -C -e -J` prints it.
//!
//! The judge has no Kafka client of its own: what it reads was fetched by a tool that knows nothing of the appliance.
//! Each line is an envelope with the record's place, key and headers, and its value as a string; topics may follow
//! each other in any order.
//!
//! Points: the header `id` names a record and `point` is its identity; both are opaque. Records that were sent again after
//! a crash have equal ids; a client's retry has another id and the same identity. Order holds in a partition.
//!
//! Windows: of those of one series and start, the greatest (era, revision) is what the appliance says. One revision that
//! came twice must say the same. One in parts, because its topic is too small for it, is one when all of them are there. (The windows of several appliances would have to be merged: they are not compared here.)

use std::io::BufRead;

use serde::Deserialize;

use super::Options;
use super::expected::Expected;
use super::hashed::HashedMap;
use super::lines::{self, PointLine, WindowLine, for_each_line};
use super::points::{self, Identity, Points};
use super::progress::Progress;
use super::series_hash::{self, Text};
use super::verdict::Verdict;
use super::windows::{self, Windows};
use crate::commands::Failure;

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    topic: Text<'a>,
    partition: i64,
    offset: i64,
    /// Names and values in turn
    #[serde(borrow, default)]
    headers: Option<Vec<Option<Text<'a>>>>,
    #[serde(borrow, default)]
    payload: Option<Text<'a>>,
}

impl Envelope<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        let pairs = self.headers.as_deref().unwrap_or_default().chunks_exact(2);
        let mut values = pairs.filter(|pair| pair[0].as_ref().is_some_and(|key| key.0 == name)).map(|pair| &pair[1]);
        values.next()?.as_ref().map(|value| &*value.0)
    }
}

/// Partitions, each with its name for people and the last offset.
#[derive(Default)]
struct Partitions(HashedMap<(String, i64)>);

impl Partitions {
    /// The record's partition. Offsets rise: what is read twice or out of turn would be taken for repeats.
    fn note(&mut self, record: &Envelope<'_>) -> Result<&str, Failure> {
        let (topic, partition, offset) = (&*record.topic.0, record.partition, record.offset);
        let key = series_hash::of_place(series_hash::of_bytes(topic.as_bytes()), partition, 0);
        let (name, last) = self.0.entry(key).or_insert_with(|| (format!("{topic}/{partition}"), -1));
        if offset <= *last {
            return Err(Failure(format!(
                "offset {offset} of {name} comes after offset {last}: the topic was read twice, or its lines are mixed up; \
                 read each topic once, from its beginning"
            )));
        }
        *last = offset;
        Ok(name)
    }
}

/// Of each line: the envelope and its value.
fn for_each_record(
    input: impl BufRead,
    progress: &mut Progress,
    mut each: impl FnMut(&Envelope<'_>, &str, &[u8]) -> Result<(), String>,
) -> Result<(), Failure> {
    let mut partitions = Partitions::default();
    for_each_line(input, |number, text| {
        progress.add(1);
        let record: Envelope<'_> = serde_json::from_slice(text).map_err(|error| {
            Failure(format!("line {number} is no record as JSON: {error}; is it the output of `kcat -C -e -J`?"))
        })?;
        let partition = partitions.note(&record)?;
        let payload = record.payload.as_ref().map_or("", |payload| &payload.0);
        each(&record, partition, payload.as_bytes())
            .map_err(|what| Failure(format!("the record at offset {} of {partition} {what}", record.offset)))
    })
}

/// The topics of raw points. Records of windows are passed over.
pub fn compare_points(expected: &Expected, options: &Options, input: impl BufRead) -> Result<Verdict, Failure> {
    let mut points = Points::new(expected, options, "points in Kafka")?;
    let mut progress = Progress::new("records read", options.progress);
    for_each_record(input, &mut progress, |record, partition, payload| {
        let line: PointLine<'_> =
            serde_json::from_slice(payload).map_err(|error| format!("is not a point as JSON: {error}"))?;
        if line.is_aggregate() {
            return Ok(());
        }
        let id = record.header("id").ok_or("has no header `id`, so that repeats cannot be told from points")?;
        let found = line.found().ok_or("is not a point: it has no `name` or no `timestamp`")?;
        let identity = Identity::Told(record.header("point"));
        let found = points::Found { log: Some(partition), id: Some(id), identity, ..found };
        points.take(&found, || lines::describe(payload));
        Ok(())
    })?;
    Ok(points.finish())
}

/// A window has at most 162,332 bins, and each part one of them.
const PARTS_MAX: usize = 1 << 18;

/// What a window's record says beside its figures
#[derive(Deserialize)]
struct Revision {
    #[serde(default)]
    era: u32,
    #[serde(default)]
    revision: u32,
    /// Of a record that its topic does not take whole; 0: it is whole
    #[serde(default)]
    part: usize,
    #[serde(default)]
    parts: usize,
}

/// Results in parts that are not all there yet: place, era, revision and number of parts, and what has come.
#[derive(Default)]
struct InParts(std::collections::HashMap<(u64, u32, u32, usize), Vec<Option<windows::Found>>>);

impl InParts {
    /// The whole, with its last part. Counts are divided among the parts; the sum is in the first, the others have 0; the extremes
    /// are in all.
    fn take(&mut self, key: u64, of: &Revision, found: windows::Found) -> Option<windows::Found> {
        let place = (key, of.era, of.revision, of.parts);
        let parts = self.0.entry(place).or_insert_with(|| vec![None; of.parts]);
        parts[of.part - 1] = Some(found);
        let all: Vec<windows::Found> = parts.iter().copied().collect::<Option<_>>()?;
        self.0.remove(&place);
        all.into_iter().reduce(|whole, part| windows::Found {
            count: whole.count + part.count,
            sum: whole.sum + part.sum,
            min: whole.min.min(part.min),
            max: whole.max.max(part.max),
            ..whole
        })
    }
}

/// The topics of windows. Records of points are passed over.
pub fn compare_windows(expected: &Expected, options: &Options, input: impl BufRead) -> Result<Verdict, Failure> {
    let mut windows = Windows::new(expected, options, "windows in Kafka");
    let mut progress = Progress::new("records read", options.progress);
    let mut latest: HashedMap<(u32, u32, windows::Found)> = HashedMap::default();
    let (mut older, mut again) = (0, 0);
    let mut in_parts = InParts::default();
    for_each_record(input, &mut progress, |_, _, payload| {
        let not_one = |error| format!("is not a window as JSON: {error}");
        let line: WindowLine<'_> = serde_json::from_slice(payload).map_err(not_one)?;
        let Some((of, mut found)) = line.found() else { return Ok(()) };
        let said: Revision = serde_json::from_slice(payload).map_err(not_one)?;
        let Revision { era, revision, part, parts } = said;
        if part > 0 {
            if part > parts || parts > PARTS_MAX {
                return Err(format!("is part {part} of {parts}, which cannot be"));
            }
            let Some(whole) = in_parts.take(of.key(), &said, found) else { return Ok(()) };
            found = whole;
        }
        // Windows of rules are not compared, and may share their key with a series' own.
        if !of.is_rule {
            let (known_era, known_revision, known) = *latest.entry(of.key()).or_insert((era, revision, found));
            if (era, revision) < (known_era, known_revision) {
                older += 1;
                return Ok(());
            }
            if (era, revision) == (known_era, known_revision) && known != found {
                let before =
                    format!("what revision {revision} of era {era} said before: {}", windows::in_words(&known));
                windows.contradicts(&of, &found, before, || lines::describe(payload));
            }
            again += u64::from((era, revision) == (known_era, known_revision));
            latest.insert(of.key(), (era, revision, found));
        }
        windows.take(&of, &found, || lines::describe(payload));
        Ok(())
    })?;
    again -= latest.len() as u64;
    let mut verdict = windows.finish();
    verdict.total("revisions sent again", again);
    verdict.total("older revisions passed over", older);
    Ok(verdict)
}
