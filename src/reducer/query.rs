//! `GET /api/v1/windows`: the latest revisions of closed windows, filtered, ordered, a page at a time.
//!
//! What the log holds is offered to a [`WindowQuery`] record by record, in any order; it keeps no more than one page,
//! however long the log is, and says which windows it could still want, so that the rest is not read ([`super::zones`]).
//! Order: start, window, key, rule. A cursor names the last window of a page and no place in the log, which is in another
//! order: so pages neither repeat nor skip while windows are closed and revised, and a cursor holds over restarts and when
//! retention has taken the segment that the page was read from.

use super::{encode::RecordView, record::WindowRecord};
use metricstream_shards::{log::Position, point::series_key, window::summary::Quantiles};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub name: Option<String>,
    /// Tags that must be there with these values; others may be there too
    pub tags: Vec<(String, String)>,
    pub client: Option<String>,
    pub window_s: Option<u32>,
    /// First start
    pub since_ms: Option<i64>,
    /// First start that is not wanted any more
    pub until_ms: Option<i64>,
    /// Where the last page ended
    pub cursor: Option<Cursor>,
}

/// The place of a window in the order of all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    start_ms: i64,
    window_s: u32,
    key: Box<[u8]>,
    rule: Option<Box<str>>,
}

impl Cursor {
    pub fn of(record: &WindowRecord) -> Cursor {
        Cursor {
            start_ms: record.start_ms,
            window_s: record.window_s,
            key: record.key.clone(),
            rule: record.rule.clone(),
        }
    }

    /// `None` when it is none of ours.
    pub fn parse(text: &str) -> Option<Cursor> {
        let mut fields = text.split('.');
        let start_ms = fields.next()?.parse().ok()?;
        let window_s = fields.next()?.parse().ok()?;
        let key = from_hex(fields.next()?)?.into();
        let rule = match fields.next() {
            Some(rule) => Some(String::from_utf8(from_hex(rule)?).ok()?.into()),
            None => None,
        };
        if fields.next().is_some() { None } else { Some(Cursor { start_ms, window_s, key, rule }) }
    }

    fn render(&self) -> String {
        let mut out = format!("{}.{}.", self.start_ms, self.window_s);
        to_hex(&mut out, &self.key);
        if let Some(rule) = &self.rule {
            out.push('.');
            to_hex(&mut out, rule.as_bytes());
        }
        out
    }
}

/// One page in the making.
pub struct WindowQuery {
    filter: Filter,
    limit: usize,
    /// With the place in the log
    found: BTreeMap<Cursor, (Position, WindowRecord)>,
}

impl WindowQuery {
    pub const LIMIT_DEFAULT: usize = 1_000;
    pub const LIMIT_MAX: usize = 10_000;

    pub fn new(filter: Filter, limit: usize) -> WindowQuery {
        WindowQuery { filter, limit: limit.clamp(1, Self::LIMIT_MAX), found: BTreeMap::new() }
    }

    /// Whether any window of this length that begins from the first to the last of these could be wanted.
    pub fn could_want(&self, window_s: u32, first_ms: i64, last_ms: i64) -> bool {
        self.filter.window_s.is_none_or(|w| w == window_s)
            && self.filter.since_ms.is_none_or(|since| last_ms >= since)
            && self.filter.until_ms.is_none_or(|until| first_ms < until)
            && self.filter.cursor.as_ref().is_none_or(|c| (last_ms, window_s) >= (c.start_ms, c.window_s))
    }

    /// Nothing that begins earlier is wanted. (A cursor does not count: segments are chosen by it, whose stamps a clock that
    /// was set back may have made earlier than their windows. What a page has passed, the zones know.)
    pub fn from_ms(&self) -> i64 {
        self.filter.since_ms.unwrap_or(i64::MIN)
    }

    /// Whether the page is full and this place lies behind it, whatever the key.
    pub fn ends_before(&self, start_ms: i64, window_s: u32) -> bool {
        let last = self.found.last_key_value().filter(|_| self.found.len() > self.limit);
        last.is_some_and(|(last, _)| (last.start_ms, last.window_s) < (start_ms, window_s))
    }

    /// Takes one result, of a block that lies here. Of two with the same era and revision the one further on in the log stays.
    pub fn offer(&mut self, at: Position, view: &RecordView<'_>) {
        if !self.could_want(view.window_s, view.start_ms, view.start_ms)
            || self.ends_before(view.start_ms, view.window_s) // without a copy
            || !self.matches(view.key)
        {
            return;
        }
        let record = view.to_record();
        let place = Cursor::of(&record);
        if self.filter.cursor.as_ref().is_some_and(|cursor| place <= *cursor) {
            return;
        }
        match self.found.get_mut(&place) {
            Some((old_at, old)) if (old.era, old.revision, *old_at) <= (record.era, record.revision, at) => {
                (*old_at, *old) = (at, record);
            }
            Some(_) => {}
            None => {
                self.found.insert(place, (at, record));
                // One more than the page, to know whether there is a next one. What falls off lies behind everything
                // that stays, so a later revision of it falls off again.
                if self.found.len() > self.limit + 1 {
                    self.found.pop_last();
                }
            }
        }
    }

    fn matches(&self, key: &[u8]) -> bool {
        if self.filter.name.is_none() && self.filter.tags.is_empty() && self.filter.client.is_none() {
            return true;
        }
        let Some(parsed) = series_key::parse(key) else { return false };
        self.filter.name.as_ref().is_none_or(|name| parsed.name == name)
            && self.filter.client.as_ref().is_none_or(|client| parsed.client == client)
            && self.filter.tags.iter().all(|(k, v)| parsed.tags.iter().any(|(key, value)| key == k && value == v))
    }

    pub fn finish(mut self) -> Page {
        let more = self.found.len() > self.limit;
        if more {
            self.found.pop_last();
        }
        let next = self.found.last_key_value().filter(|_| more).map(|(place, _)| place.render());
        Page { windows: self.found.into_values().map(|(_, window)| window).collect(), next }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    pub windows: Vec<WindowRecord>,
    pub next: Option<String>,
}

impl Page {
    /// The response body. Numbers are the shortest that read back as the same; a sum beyond f64 is `null`, because JSON
    /// has no infinity, and so are quantiles that are not kept: readers find the same keys always.
    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(64 + self.windows.len() * 256);
        out.push_str("{\"windows\":[");
        for (n, window) in self.windows.iter().enumerate() {
            if n > 0 {
                out.push(',');
            }
            render_window(&mut out, window);
        }
        out.push_str("],\"next\":");
        match &self.next {
            Some(next) => string(&mut out, next),
            None => out.push_str("null"),
        }
        out.push('}');
        out
    }
}

/// One window as a page shows it.
pub fn window_json(window: &WindowRecord) -> String {
    let mut out = String::with_capacity(256);
    render_window(&mut out, window);
    out
}

fn render_window(out: &mut String, window: &WindowRecord) {
    let parsed = window.parsed();
    let a = &window.aggregates;
    out.push_str("{\"name\":");
    string(out, parsed.name);
    out.push_str(",\"tags\":{");
    for (n, (tag, value)) in parsed.tags.iter().enumerate() {
        if n > 0 {
            out.push(',');
        }
        string(out, tag);
        out.push(':');
        string(out, value);
    }
    out.push_str(&format!(
        "}},\"window_s\":{},\"start_ms\":{},\"count\":{}",
        window.window_s, window.start_ms, a.count
    ));
    let quantile = |of: fn(Quantiles) -> f64| a.quantiles.map(of);
    for (name, value) in [
        ("sum", Some(a.sum)),
        ("min", Some(a.min)),
        ("max", Some(a.max)),
        ("avg", Some(a.avg)),
        ("p50", quantile(|q| q.p50)),
        ("p95", quantile(|q| q.p95)),
        ("p99", quantile(|q| q.p99)),
    ] {
        out.push_str(",\"");
        out.push_str(name);
        out.push_str("\":");
        match value.filter(|value| value.is_finite()) {
            Some(value) => out.push_str(zmij::Buffer::new().format_finite(value)),
            None => out.push_str("null"),
        }
    }
    out.push_str(&format!(",\"series\":{},\"client\":", window.series));
    string(out, parsed.client);
    out.push_str(&format!(
        ",\"revision\":{},\"incomplete\":{},\"unchecked\":{}}}",
        window.revision, window.flags.incomplete, window.flags.unchecked
    ));
}

fn string(out: &mut String, text: &str) {
    out.push_str(&serde_json::to_string(text).expect("any text is a string of JSON"));
}

fn to_hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reducer::record::Flags;
    use metricstream_shards::window::summary::{Aggregates, Detail};

    struct Sample {
        key: Vec<u8>,
        start_ms: i64,
        window_s: u32,
        revision: u32,
        value: f64,
    }

    fn sample(host: &str, start_ms: i64, window_s: u32, revision: u32, value: f64) -> Sample {
        let mut key = Vec::new();
        series_key::write(&mut key, b"c\"1", b"cpu", &[(b"dc", b"eu"), (b"host", host.as_bytes())]);
        Sample { key, start_ms, window_s, revision, value }
    }

    fn run(samples: &[Sample], filter: Filter, limit: usize) -> Page {
        let mut query = WindowQuery::new(filter, limit);
        for s in samples {
            query.offer(
                Position::default(),
                &RecordView {
                    key: &s.key,
                    rule: None,
                    window_s: s.window_s,
                    start_ms: s.start_ms,
                    aggregates: Aggregates::of(&mut [s.value], Detail::Quantiles).expect("one value"),
                    series: 1,
                    era: 0,
                    revision: s.revision,
                    flags: Flags::default(),
                    state: None,
                },
            );
        }
        query.finish()
    }

    fn samples() -> Vec<Sample> {
        let mut all = Vec::new();
        for revision in 0..2 {
            for start in [30_000, 10_000, 20_000, 0] {
                for host in ["b", "a\n"] {
                    all.push(sample(host, start, 10, revision, f64::from(revision) + 0.1));
                }
            }
            all.push(sample("b", 0, 60, revision, 1e300));
        }
        all
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_repeat_and_hold_the_latest_revision() {
        let all = samples();
        let whole = run(&all, Filter::default(), 100);
        assert_eq!((whole.windows.len(), &whole.next), (9, &None));
        assert!(whole.windows.iter().all(|w| w.revision == 1));
        assert!(whole.windows.is_sorted_by_key(Cursor::of));
        for limit in 1..=10 {
            let (mut gathered, mut cursor) = (Vec::new(), None);
            loop {
                let page = run(&all, Filter { cursor, ..Filter::default() }, limit);
                assert!(page.windows.len() <= limit);
                gathered.extend(page.windows);
                let Some(next) = page.next else { break };
                cursor = Some(Cursor::parse(&next).expect("ours"));
            }
            assert_eq!(gathered, whole.windows, "pages of {limit}");
        }
    }

    #[test]
    fn filters_select_by_name_tag_window_and_time() {
        let all = samples();
        let count = |filter| run(&all, filter, 100).windows.len();
        let tag = |k: &str, v: &str| vec![(k.to_owned(), v.to_owned())];
        assert_eq!(count(Filter { name: Some("mem".into()), ..Filter::default() }), 0);
        assert_eq!(count(Filter { name: Some("cpu".into()), window_s: Some(60), ..Filter::default() }), 1);
        assert_eq!(count(Filter { tags: tag("host", "b"), window_s: Some(10), ..Filter::default() }), 4);
        assert_eq!(count(Filter { tags: tag("dc", "us"), ..Filter::default() }), 0);
        assert_eq!(count(Filter { client: Some("c\"1".into()), ..Filter::default() }), 9);
        assert_eq!(count(Filter { since_ms: Some(10_000), until_ms: Some(30_000), ..Filter::default() }), 4);
    }

    #[test]
    fn the_body_is_json_whose_numbers_read_back_bit_for_bit() {
        let page = run(&samples(), Filter { window_s: Some(60), ..Filter::default() }, 10);
        assert_eq!(
            page.to_json(),
            r#"{"windows":[{"name":"cpu","tags":{"dc":"eu","host":"b"},"window_s":60,"start_ms":0,"count":1,"#
                .to_owned()
                + r#""sum":1e+300,"min":1e+300,"max":1e+300,"avg":1e+300,"p50":1e+300,"p95":1e+300,"p99":1e+300,"#
                + r#""series":1,"client":"c\"1","revision":1,"incomplete":false,"unchecked":false}],"next":null}"#
        );
        for value in [0.1, 1.0 / 3.0, 1e-9, 0.0, 5e-324, f64::MAX, -1e21, 123_456_789.123] {
            let json = run(&[sample("a\n\u{1}\\", 0, 10, 0, value)], Filter::default(), 1).to_json();
            let parsed: serde_json::Value = serde_json::from_str(&json).expect("valid JSON");
            let window = &parsed["windows"][0];
            assert_eq!(window["sum"].as_f64().map(f64::to_bits), Some(value.to_bits()), "{json}");
            assert_eq!(window["tags"]["host"], "a\n\u{1}\\");
        }
    }

    #[test]
    fn quantiles_that_are_not_kept_are_null() {
        let mut window = run(&samples(), Filter::default(), 1).windows.remove(0);
        window.aggregates.quantiles = None;
        let json = window_json(&window);
        let parsed: serde_json::Value = serde_json::from_str(&json).expect("valid JSON");
        let null = ["p50", "p95", "p99"].map(|key| parsed.get(key).is_some_and(serde_json::Value::is_null));
        assert_eq!(null, [true; 3], "{json}");
        assert_eq!((&parsed["max"], &parsed["series"]), (&window.aggregates.max.into(), &1.into()), "{json}");
    }

    #[test]
    fn foreign_cursors_are_refused() {
        for text in ["", "1", "1.2", "a.10.00", "1.10.0", "1.10.zz", "1.10.00.ff", "1.10.00.00.00", "1.10.é"] {
            assert_eq!(Cursor::parse(text), None, "{text}");
        }
    }
}
