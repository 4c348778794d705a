//! What a replay says: while it runs, to whoever waits at the terminal or reads the log lines; and at its end.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::source::Missing;
use crate::when::rfc3339;

/// What became of the points of the logs. But for `passed_over` and `missing`, the parts sum to `read`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub read: u64,
    /// Their time is not in the range
    pub outside: u64,
    /// Not wanted by the sink's filter, or by the command line's
    pub filtered: u64,
    /// Windows of which a later revision was sent
    pub superseded: u64,
    /// The sink has them; of a dry run: it would get them
    pub sent: u64,
    pub rejected: u64,
    pub dead_lettered: u64,
    /// In records that cannot be read
    pub unreadable: u64,
    pub missing: Missing,
    /// Received outside of the span that was asked for, and not looked at
    pub passed_over: u64,
    /// Least and greatest time of the points that pass the filters, in the range or not
    pub times_ns: Option<(i64, i64)>,
}

impl Totals {
    pub fn add(&mut self, more: &Totals) {
        self.read += more.read;
        self.outside += more.outside;
        self.filtered += more.filtered;
        self.superseded += more.superseded;
        self.sent += more.sent;
        self.rejected += more.rejected;
        self.dead_lettered += more.dead_lettered;
        self.unreadable += more.unreadable;
        self.missing.removed += more.missing.removed;
        self.missing.damaged += more.missing.damaged;
        self.passed_over += more.passed_over;
        self.times_ns = match (self.times_ns, more.times_ns) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (one, other) => one.or(other),
        };
    }

    /// In the range, and wanted.
    pub fn chosen(&self) -> u64 {
        self.sent + self.rejected + self.dead_lettered
    }

    fn fields(&self) -> [(&'static str, u64); 11] {
        [
            ("read", self.read),
            ("passed_over", self.passed_over),
            ("outside_range", self.outside),
            ("filtered", self.filtered),
            ("older_revisions", self.superseded),
            ("sent", self.sent),
            ("rejected", self.rejected),
            ("dead_lettered", self.dead_lettered),
            ("unreadable", self.unreadable),
            ("removed_meanwhile", self.missing.removed),
            ("damaged", self.missing.damaged),
        ]
    }

    pub fn json(&self) -> serde_json::Map<String, serde_json::Value> {
        self.fields().iter().map(|&(field, points)| (field.to_owned(), points.into())).collect()
    }

    /// One line; what did not happen and is rare is left out.
    pub fn sentence(&self, dry_run: bool) -> String {
        let mut out = String::new();
        for (field, points) in self.fields() {
            let always = matches!(field, "read" | "filtered" | "sent" | "rejected" | "dead_lettered");
            if points == 0 && !always {
                continue;
            }
            let word = match field {
                "passed_over" => "passed over",
                "outside_range" => "outside the range",
                "older_revisions" => "older revisions",
                "sent" if dry_run => "to be sent",
                "dead_lettered" => "dead-lettered",
                "removed_meanwhile" => "removed by retention meanwhile",
                word => word,
            };
            let comma = if out.is_empty() { "" } else { ", " };
            let _ = write!(out, "{comma}{points} {word}");
        }
        out
    }
}

/// For people: `2026-01-31T12:00:00Z`, with what is finer where there is such.
pub fn time(ns: i64) -> String {
    let whole = rfc3339(ns);
    match ns.rem_euclid(1_000_000_000) {
        0 => whole,
        fraction => format!("{}.{fraction:09}Z", whole.trim_end_matches('Z')),
    }
}

const LINE_EVERY: Duration = Duration::from_secs(5);
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// For people: what a disk has to give.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

/// A bar on a terminal, else a line now and then; both on standard error.
pub struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
    begun: Instant,
    next: Instant,
}

impl Progress {
    pub fn new() -> Progress {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = "{elapsed_precise} [{bar:40}] {percent:>3} % {msg}";
        bar.set_style(ProgressStyle::with_template(style).expect("a sound template").progress_chars("=> "));
        let now = Instant::now();
        Progress { bar, is_terminal, begun: now, next: now + if is_terminal { DRAW_EVERY } else { LINE_EVERY } }
    }

    /// Lines written through it stand above the bar.
    pub fn lines(&self) -> AboveBar {
        AboveBar(self.bar.clone())
    }

    /// `read` and `of`: points of the logs.
    pub fn show(&mut self, read: u64, of: u64, totals: &Totals, now: Instant) {
        if now < self.next {
            return;
        }
        let rate = totals.chosen() as f64 / self.begun.elapsed().as_secs_f64().max(0.001);
        if self.is_terminal {
            self.next = now + DRAW_EVERY;
            self.bar.set_length(of);
            self.bar.set_position(read);
            self.bar.set_message(format!("{read} of {of} points read, {} sent, {rate:.0}/s", totals.sent));
            self.bar.tick();
        } else {
            self.next = now + LINE_EVERY;
            let percent = if of == 0 { 100.0 } else { 100.0 * read as f64 / of as f64 };
            eprintln!("replay: {percent:.0} %: {read} of {of} points read, {} sent, {rate:.0}/s", totals.sent);
        }
    }

    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

#[derive(Clone)]
pub struct AboveBar(ProgressBar);

impl Write for AboveBar {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.suspend(|| std::io::stderr().write(bytes))
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_names_what_happened_and_always_the_five_that_are_asked_for() {
        let mut totals = Totals { read: 10, sent: 8, outside: 2, ..Totals::default() };
        let sentence = "10 read, 2 outside the range, 0 filtered, 8 sent, 0 rejected, 0 dead-lettered";
        assert_eq!(totals.sentence(false), sentence);
        totals.add(&Totals {
            missing: Missing { removed: 3, damaged: 1 },
            times_ns: Some((5, 7)),
            ..Totals::default()
        });
        totals.add(&Totals { times_ns: Some((2, 6)), ..Totals::default() });
        assert_eq!(totals.times_ns, Some((2, 7)));
        let rest = ", 8 to be sent, 0 rejected, 0 dead-lettered, 3 removed by retention meanwhile, 1 damaged";
        assert!(totals.sentence(true).ends_with(rest), "{}", totals.sentence(true));
        assert_eq!(totals.json()["removed_meanwhile"], 3);
    }

    #[test]
    fn sizes_are_shown_in_the_unit_they_fill() {
        for (bytes, shown) in [(0, "0.0 KiB"), (4096, "4.0 KiB"), (3 << 19, "1.5 MiB"), (5 << 31, "10.0 GiB")] {
            assert_eq!(size(bytes), shown);
        }
    }

    #[test]
    fn times_are_shown_with_what_they_need() {
        assert_eq!(time(1_769_860_800_000_000_000), "2026-01-31T12:00:00Z");
        assert_eq!(time(1_769_860_800_000_000_007), "2026-01-31T12:00:00.000000007Z");
    }
}
