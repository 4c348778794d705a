//! One self-contained page: nothing is loaded from outside, which its own Content-Security-Policy forbids as well. Whatever
//! comes from a result (labels, commands, host names) passes [`escape`].

mod plot;
mod plots;
mod tables;

use self::plot::put;
use super::{describe, generator_warnings};
use crate::result::RunResult;
use crate::units;

/// Colours of the style sheet, `c0` and on.
const COLORS: usize = 7;

/// A result under the name that tells it from others on the page.
pub struct Labelled<'a> {
    pub label: String,
    pub result: &'a RunResult,
}

impl Labelled<'_> {
    pub fn alone(result: &RunResult) -> Labelled<'_> {
        Labelled { label: "this run".into(), result }
    }
}

pub fn page(results: &[Labelled]) -> String {
    let title = title(results);
    let mut out = String::with_capacity(256 << 10);
    put(
        &mut out,
        format_args!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
             script-src 'unsafe-inline'; img-src data:\">\n<link rel=\"icon\" href=\"data:,\">\n\
             <title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n",
            title = escape(&title),
            style = include_str!("style.css"),
        ),
    );
    put(&mut out, format_args!("<p class=\"soft\">{}</p>\n", escape(&subtitle(results))));
    for labelled in results {
        for warning in generator_warnings(labelled.result).iter().chain(&labelled.result.notes) {
            let of = if results.len() > 1 { format!("{}: ", labelled.label) } else { String::new() };
            put(&mut out, format_args!("<p class=\"warning\">{}</p>\n", escape(&format!("{of}{warning}"))));
        }
    }
    if let [only] = results {
        tables::tiles(&mut out, only.result);
    }
    out.push_str("<div class=\"grid-2\">\n");
    plots::draw(&mut out, results);
    out.push_str("</div>\n");
    tables::figures(&mut out, results);
    tables::steps(&mut out, results);
    tables::circumstances(&mut out, results);
    put(&mut out, format_args!("</main>\n<script>\n{}</script>\n</body>\n</html>\n", include_str!("hover.js")));
    out
}

fn title(results: &[Labelled]) -> String {
    match results {
        [only] => format!("Load on {}", only.result.target),
        _ => results.iter().map(|labelled| labelled.label.as_str()).collect::<Vec<_>>().join(" · "),
    }
}

fn subtitle(results: &[Labelled]) -> String {
    match results {
        [only] => {
            let (load, started) = (describe::load(only.result), utc(only.result.started_unix_ms));
            format!("{load}; started {started}; measured by {}", only.result.tool)
        }
        _ => format!("{} results compared", results.len()),
    }
}

/// Text for elements and for attributes in double quotes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Control characters are not allowed in the document.
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// `2026-01-31 12:34:56 UTC`. Days to a date as in <https://howardhinnant.github.io/date_algorithms.html>.
fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", rest / 3_600, rest / 60 % 60, rest % 60)
}

/// A time on an axis: `500 us`, `20 ms`, `3 s`.
fn axis_time(us: f64) -> String {
    match us {
        _ if us < 1e3 => format!("{} us", plot::trimmed(us)),
        _ if us < 1e6 => format!("{} ms", plot::trimmed(us / 1e3)),
        _ => format!("{} s", units::short(us / 1e6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::fixture;

    #[test]
    fn a_page_is_whole_and_loads_nothing() {
        let result = fixture::sweep("a");
        let text = page(&[Labelled::alone(&result)]);
        assert!(text.starts_with("<!doctype html>") && text.ends_with("</html>\n"));
        for forbidden in ["src=", "@import", "url(", "<link rel=\"stylesheet\""] {
            assert!(!text.contains(forbidden), "{forbidden}");
        }
        // The only addresses are those of the target, as text.
        assert_eq!(
            text.matches("http").count(),
            text.matches("http://127.0.0.1:8186").count() + text.matches("http-equiv").count()
        );
        assert!(!text.contains("NaN") && !text.contains("inf "), "no figure is lost");
    }

    #[test]
    fn what_a_result_brings_stays_text() {
        let evil = "</title><script>alert(1)</script>\"'&\u{1}|";
        let mut result = fixture::sweep("a");
        result.command = evil.into();
        result.target = evil.into();
        result.tool = evil.into();
        result.machine.host = evil.into();
        result.machine.cpu = evil.into();
        result.machine.kernel = evil.into();
        result.plan.transport.path = evil.into();
        result.totals.unknown = [(evil.to_string(), 3)].into();
        let text =
            page(&[Labelled { label: evil.into(), result: &result }, Labelled { label: evil.into(), result: &result }]);
        assert!(text.contains("&lt;script&gt;"));
        assert_eq!(text.matches("<script").count(), 1, "only our own");
        assert_eq!(
            text.matches("alert(1)").count(),
            text.matches("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;").count()
        );
    }

    #[test]
    fn results_with_nothing_in_them_still_make_a_page() {
        let mut result = fixture::steady("a", 1);
        result.histograms = crate::result::Histograms::default();
        result.totals = crate::result::Totals::default();
        result.seconds.clear();
        result.server.as_mut().unwrap().acknowledge.clear();
        let text = page(&[Labelled::alone(&result)]);
        assert!(!text.contains("NaN"), "{text}");
    }

    #[test]
    fn moments_are_dates() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_826_029_000), "2000-02-29 12:07:09 UTC");
        assert_eq!(utc(1_767_225_599_000), "2025-12-31 23:59:59 UTC");
    }
}
