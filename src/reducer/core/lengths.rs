//! The lengths of windows that are closed, and which window a time falls into.

use super::{InstanceKey, Settings};
use metricstream_shards::window::protocol::{SECOND_NS, align_down};
use std::collections::BTreeSet;

/// Distinct window lengths, rules included.
pub const LENGTHS_MAX: usize = 16;

pub(super) struct Length {
    pub(super) window_s: u32,
    pub(super) length_ns: i64,
    pub(super) per_series: bool,
    /// By rule
    pub(super) rules: Vec<bool>,
}

impl Length {
    pub(super) fn instance_at(&self, t_ns: i64) -> InstanceKey {
        InstanceKey { end_ns: align_down(t_ns, self.length_ns) + self.length_ns, length_ns: self.length_ns }
    }
}

pub(super) fn lengths(settings: &Settings) -> Vec<Length> {
    let mut all: BTreeSet<u32> = settings.rules.iter().flat_map(|rule| rule.windows_s.iter().copied()).collect();
    if settings.per_series {
        all.extend(&settings.windows_s);
    }
    assert!(all.len() <= LENGTHS_MAX, "the configuration bounds the number of window lengths");
    all.into_iter()
        .map(|window_s| {
            assert!(window_s > 0 && window_s % settings.base_s == 0, "windows are multiples of the base window");
            Length {
                window_s,
                length_ns: seconds(window_s),
                per_series: settings.per_series && settings.windows_s.contains(&window_s),
                rules: settings.rules.iter().map(|rule| rule.windows_s.contains(&window_s)).collect(),
            }
        })
        .collect()
}

pub(super) fn seconds(s: u32) -> i64 {
    i64::from(s) * SECOND_NS
}

pub(super) fn least_common_multiple(a: i64, b: i64) -> i64 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}
