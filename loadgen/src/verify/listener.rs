//! Source of windows: the operators' listener, page by page.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Options;
use super::expected::Expected;
use super::lines;
use super::progress::Progress;
use super::verdict::Verdict;
use super::windows::Windows;
use crate::commands::Failure;

const PAGE_LIMIT: u32 = 10_000;

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    windows: Vec<&'a RawValue>,
    next: Option<String>,
}

/// `url` is the listener's base, or the whole path.
pub fn compare_windows(expected: &Expected, options: &Options, url: &str) -> Result<Verdict, Failure> {
    let base = url.split('?').next().unwrap_or(url).trim_end_matches('/');
    let base = match base.splitn(4, '/').nth(3) {
        Some(path) if !path.is_empty() => base.to_string(),
        _ => format!("{base}/api/v1/windows"),
    };
    let mut windows = Windows::new(expected, options, "windows");
    let mut progress = Progress::new("windows read", options.progress);
    for (n, length_s) in options.window_lengths_s.iter().enumerate() {
        let start = format!("{base}?window={length_s}s&limit={PAGE_LIMIT}");
        pages(&mut windows, &start, &mut progress)?;
        // Windows of one end close together, but the last pages may have been read in the midst of it.
        if let Some(end_ms) = windows.last_end_ms(n) {
            let since = end_ms - i64::from(*length_s) * 1_000;
            pages(&mut windows, &format!("{start}&since={since}"), &mut progress)?;
        }
    }
    Ok(windows.finish())
}

fn pages(windows: &mut Windows<'_>, start: &str, progress: &mut Progress) -> Result<(), Failure> {
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
            lines::take_window(windows, window.get().as_bytes()).map_err(told)?;
        }
        match page.next {
            None => return Ok(()),
            next => cursor = next,
        }
    }
}
