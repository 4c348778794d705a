//! What of the logs a replay is about: a range of the points' own times, and of windows the latest revisions.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::forward::unit::{Choice, Item, Window};

/// Of a window's place: series, rule, length and start. A hash, because keys are long and windows many: about 50 bytes
/// of memory for each window in the range.
type Place = [u8; 16];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Latest {
    era: u32,
    revision: u32,
    /// In the aggregate log
    number: u64,
}

pub struct Selection {
    range_ns: Range<i64>,
    latest: HashMap<Place, Latest>,
}

impl Selection {
    pub fn new(range_ns: Range<i64>) -> Selection {
        Selection { range_ns, latest: HashMap::new() }
    }

    /// To be shown every window before it is chosen from.
    pub fn learn(&mut self, window: &Window<'_>) {
        if !self.range_ns.contains(&start_ns(window)) {
            return;
        }
        let view = &window.view;
        let found = Latest { era: view.era, revision: view.revision, number: window.number };
        match self.latest.entry(place(window)) {
            Entry::Vacant(entry) => {
                entry.insert(found);
            }
            Entry::Occupied(mut entry) => {
                let known = entry.get_mut();
                // The same revision twice, after a crash, says the same twice: the later one goes.
                let newer = (found.era, found.revision, found.number) > (known.era, known.revision, known.number);
                if newer {
                    *known = found;
                }
            }
        }
    }

    pub fn choose(&self, item: &Item<'_>) -> Choice {
        if !self.range_ns.contains(&time_ns(item)) {
            return Choice::Outside;
        }
        match item {
            Item::Point(_) => Choice::Take,
            Item::Window(window) => match self.latest.get(&place(window)) {
                Some(latest) if latest.number != window.number => Choice::Superseded,
                _ => Choice::Take,
            },
        }
    }
}

/// By which it is in the range or not.
pub fn time_ns(item: &Item<'_>) -> i64 {
    match item {
        Item::Point(point) => point.timestamp_ns,
        Item::Window(window) => start_ns(window),
    }
}

fn start_ns(window: &Window<'_>) -> i64 {
    window.view.start_ms.saturating_mul(1_000_000)
}

fn place(window: &Window<'_>) -> Place {
    let view = &window.view;
    let mut hash = Sha256::new();
    hash.update(view.start_ms.to_le_bytes());
    hash.update(view.window_s.to_le_bytes());
    let rule = view.rule.map_or(u32::MAX, |rule| rule.len() as u32);
    hash.update(rule.to_le_bytes());
    hash.update(view.rule.unwrap_or(""));
    hash.update(view.key);
    let hash = hash.finalize();
    std::array::from_fn(|n| hash[n])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reducer::encode::RecordView;
    use crate::reducer::record::Flags;
    use metricstream_shards::window::summary::{Aggregates, Detail};

    fn window(number: u64, start_s: i64, rule: Option<&'static str>, era: u32, revision: u32) -> Window<'static> {
        let view = RecordView {
            key: b"c\xFFn",
            rule,
            window_s: 10,
            start_ms: start_s * 1000,
            aggregates: Aggregates::of(&mut [1.0], Detail::Quantiles).expect("a value"),
            series: 1,
            era,
            revision,
            flags: Flags::default(),
            state: None,
        };
        Window { number, epoch: 1, view }
    }

    #[test]
    fn of_each_window_in_the_range_the_latest_revision_is_taken() {
        let windows = [
            window(0, 100, None, 0, 0),
            window(1, 100, None, 0, 1),
            window(2, 100, Some("r"), 0, 0),
            window(3, 110, None, 0, 3),
            // Of a later era, although its revisions began anew
            window(4, 110, None, 1, 0),
            // Written twice
            window(5, 100, None, 0, 1),
            window(6, 90, None, 0, 0),
            window(7, 120, None, 0, 0),
        ];
        let mut selection = Selection::new(100_000_000_000..120_000_000_000);
        windows.iter().for_each(|window| selection.learn(window));
        let choices: Vec<Choice> = windows.into_iter().map(|window| selection.choose(&Item::Window(window))).collect();
        use Choice::{Outside, Superseded, Take};
        assert_eq!(choices, [Superseded, Superseded, Take, Superseded, Take, Take, Outside, Outside]);
    }
}
