//! Which starts each part of the aggregate log holds, as far as it has been read: so that a page of windows reads the parts
//! that can have to do with it, and no others.
//!
//! A zone is [`ZONE_BYTES`] of whole blocks; what lies below a segment's durable end never changes, so what was learned of
//! it holds until the segment goes. Nothing is kept on disk: the first query after a start reads all, and learns.
//! Memory: about 100 bytes a zone, which is 2 MiB for each GiB of the log.

use std::collections::BTreeMap;

use metricstream_shards::log::ReadSpan;

use super::query::WindowQuery;

/// A zone is closed when it is this long; one block may make it longer. A page reads each zone that it touches, and a page of
/// 1,000 windows is about as long.
const ZONE_BYTES: u64 = 64 << 10;

/// For each length of windows the first and the last start, in ms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Starts(Vec<(u32, i64, i64)>);

impl Starts {
    pub fn add(&mut self, window_s: u32, start_ms: i64) {
        self.widen(window_s, start_ms, start_ms);
    }

    fn widen(&mut self, window_s: u32, first_ms: i64, last_ms: i64) {
        match self.0.iter_mut().find(|(window, ..)| *window == window_s) {
            Some((_, first, last)) => (*first, *last) = ((*first).min(first_ms), (*last).max(last_ms)),
            None => self.0.push((window_s, first_ms, last_ms)),
        }
    }

    /// The least place, start and length, that the query could want; `None`: it wants nothing of this.
    fn first_wanted(&self, query: &WindowQuery) -> Option<(i64, u32)> {
        let wanted =
            self.0.iter().filter(|&&(window_s, first_ms, last_ms)| query.could_want(window_s, first_ms, last_ms));
        wanted.map(|&(window_s, first_ms, _)| (first_ms, window_s)).min()
    }
}

#[derive(Debug)]
struct Zone {
    from: u64,
    to: u64,
    starts: Starts,
}

/// A part of the log that a query may have to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which of the spans that were asked about
    pub span: usize,
    pub from: u64,
    pub to: u64,
    /// No window before this place is in it; `None`: it is not known what is
    pub first: Option<(i64, u32)>,
}

#[derive(Debug, Default)]
pub struct Zones {
    /// By segment; zones by place, disjoint, with gaps where nothing is known
    segments: BTreeMap<u64, Vec<Zone>>,
}

impl Zones {
    /// The parts of `spans` that the query could want something of: first those that are not known, in the order of the log,
    /// then the others by what they begin with. Forgets segments that are gone.
    pub fn plan(&mut self, spans: &[ReadSpan], query: &WindowQuery) -> Vec<Part> {
        self.segments.retain(|id, _| spans.iter().any(|span| span.segment_id == *id));
        let mut parts = Vec::new();
        for (n, span) in spans.iter().enumerate() {
            let mut known_to = span.from;
            let unknown = |from: u64, to: u64, parts: &mut Vec<Part>| {
                if from < to {
                    parts.push(Part { span: n, from, to, first: None });
                }
            };
            let zones = self.segments.get(&span.segment_id).map_or(&[][..], Vec::as_slice);
            for zone in zones.iter().filter(|zone| zone.from >= span.from && zone.to <= span.to) {
                unknown(known_to, zone.from, &mut parts);
                known_to = zone.to;
                if let first @ Some(_) = zone.starts.first_wanted(query) {
                    parts.push(Part { span: n, from: zone.from, to: zone.to, first });
                }
            }
            unknown(known_to, span.to, &mut parts);
        }
        // Stable: equal ones stay in the order of the log.
        parts.sort_by_key(|part| part.first);
        parts
    }

    /// These bytes, whole blocks, were read to their end and hold this. What is known already stays as it is.
    fn learn(&mut self, segment_id: u64, zone: Zone) {
        let zones = self.segments.entry(segment_id).or_default();
        let at = zones.partition_point(|known| known.from < zone.from);
        if at.checked_sub(1).is_some_and(|n| zones[n].to > zone.from) || zones.get(at).is_some_and(|z| z.from < zone.to)
        {
            return;
        }
        // The segment being written is read a little further each time: that must not make a zone each time.
        match at.checked_sub(1).map(|n| &mut zones[n]) {
            Some(before) if before.to == zone.from && zone.to - before.from <= ZONE_BYTES => {
                before.to = zone.to;
                zone.starts.0.iter().for_each(|&(window_s, first, last)| before.starts.widen(window_s, first, last));
            }
            _ => zones.insert(at, zone),
        }
    }
}

/// Gathers what one reading of a part shows, and closes zones on the way.
pub struct Learning {
    segment_id: u64,
    from: u64,
    to: u64,
    starts: Starts,
}

impl Learning {
    pub fn new(segment_id: u64, from: u64) -> Learning {
        Learning { segment_id, from, to: from, starts: Starts::default() }
    }

    /// A sound block up to `to`, which follows the one before, held these.
    pub fn block(&mut self, to: u64, zones: &mut Zones, add: impl FnOnce(&mut Starts)) {
        add(&mut self.starts);
        self.to = to;
        if self.to - self.from >= ZONE_BYTES {
            self.close(zones, to);
        }
    }

    /// What follows up to `next` could not be read, or nothing does: nothing is claimed of it.
    pub fn close(&mut self, zones: &mut Zones, next: u64) {
        let starts = std::mem::take(&mut self.starts);
        if self.from < self.to {
            zones.learn(self.segment_id, Zone { from: self.from, to: self.to, starts });
        }
        (self.from, self.to) = (next, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reducer::query::{Cursor, Filter};

    fn span(segment_id: u64, from: u64, to: u64) -> ReadSpan {
        ReadSpan { segment_id, path: format!("{segment_id}.seg").into(), from, to }
    }

    fn starts(of: &[(u32, i64, i64)]) -> Starts {
        Starts(of.to_vec())
    }

    fn planned(zones: &mut Zones, spans: &[ReadSpan], filter: Filter) -> Vec<(u64, u64, u64, bool)> {
        let parts = zones.plan(spans, &WindowQuery::new(filter, 10));
        parts.iter().map(|part| (spans[part.span].segment_id, part.from, part.to, part.first.is_some())).collect()
    }

    #[test]
    fn what_is_known_is_read_where_it_can_matter_and_what_is_not_always() {
        let mut zones = Zones::default();
        zones.learn(1, Zone { from: 4096, to: 300_000, starts: starts(&[(10, 0, 90_000), (60, 0, 0)]) });
        zones.learn(
            1,
            Zone { from: 304_096, to: 600_000, starts: starts(&[(10, 80_000, 190_000), (60, 60_000, 60_000)]) },
        );
        zones.learn(2, Zone { from: 4096, to: 8192, starts: starts(&[]) });
        let spans = [span(1, 4096, 600_000), span(2, 4096, 12_288), span(3, 4096, 8192)];
        let gaps = [(1, 300_000, 304_096, false), (2, 8192, 12_288, false), (3, 4096, 8192, false)];
        let (one, two) = ((1, 4096, 300_000, true), (1, 304_096, 600_000, true));
        let after = |start_ms: i64, window_s: u32| Filter {
            cursor: Cursor::parse(&format!("{start_ms}.{window_s}.00")),
            ..Filter::default()
        };
        for (filter, known) in [
            (Filter::default(), vec![one, two]),
            (Filter { since_ms: Some(100_000), ..Filter::default() }, vec![two]),
            (Filter { until_ms: Some(60_000), ..Filter::default() }, vec![one]),
            (Filter { until_ms: Some(0), ..Filter::default() }, vec![]),
            (Filter { window_s: Some(60), since_ms: Some(1), ..Filter::default() }, vec![two]),
            (Filter { window_s: Some(300), ..Filter::default() }, vec![]),
            (after(90_000, 10), vec![one, two]),
            (after(90_000, 60), vec![two]),
            (after(190_000, 11), vec![]),
        ] {
            let expected: Vec<_> = gaps.into_iter().chain(known).collect();
            assert_eq!(planned(&mut zones, &spans, filter.clone()), expected, "{filter:?}");
        }
        assert_eq!(zones.segments.len(), 2);
        zones.plan(&spans[1..], &WindowQuery::new(Filter::default(), 10));
        assert_eq!(zones.segments.keys().collect::<Vec<_>>(), [&2], "a segment that is gone is forgotten");
    }

    #[test]
    fn a_segment_that_grows_makes_few_zones_and_what_overlaps_is_not_learned_twice() {
        let mut zones = Zones::default();
        for n in 0..1000u64 {
            let mut learning = Learning::new(1, n * 4096);
            learning.block((n + 1) * 4096, &mut zones, |starts| starts.add(10, n as i64 * 10_000));
            learning.close(&mut zones, 0);
        }
        let known = &zones.segments[&1];
        assert_eq!(known.len() as u64, (1000 * 4096u64).div_ceil(ZONE_BYTES));
        assert_eq!((known[0].from, known.last().map(|zone| zone.to)), (0, Some(1000 * 4096)));
        assert!(known.windows(2).all(|pair| pair[0].to == pair[1].from));
        assert_eq!(known[1].starts, starts(&[(10, 160_000, 310_000)]));
        zones.learn(1, Zone { from: 999 * 4096, to: 1001 * 4096, starts: starts(&[(10, 0, 0)]) });
        assert_eq!(
            planned(&mut zones, &[span(1, 0, 1001 * 4096)], Filter { until_ms: Some(0), ..Filter::default() }),
            [(1, 1000 * 4096, 1001 * 4096, false)]
        );
    }

    #[test]
    fn nothing_is_claimed_of_what_could_not_be_read() {
        let mut zones = Zones::default();
        let mut learning = Learning::new(1, 4096);
        learning.block(8192, &mut zones, |starts| starts.add(10, 0));
        learning.close(&mut zones, 12_288);
        learning.block(16_384, &mut zones, |starts| starts.add(10, 10_000));
        learning.close(&mut zones, 16_384);
        let none = Filter { until_ms: Some(0), ..Filter::default() };
        assert_eq!(planned(&mut zones, &[span(1, 4096, 16_384)], none), [(1, 8192, 12_288, false)]);
    }
}
