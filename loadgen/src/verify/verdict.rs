//! What a comparison came to: totals, faults by kind, and the first of each named.

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Acknowledged, and not there
    Missing,
    /// There more often than it was sent
    Doubled,
    /// There with another value, or under another client
    Altered,
    /// There before one that came first
    OutOfOrder,
    /// There, and never sent
    Foreign,
    /// There, though every request with it was refused
    Refused,
}

const KINDS: [(FaultKind, &str); 6] = [
    (FaultKind::Missing, "missing"),
    (FaultKind::Doubled, "doubled"),
    (FaultKind::Altered, "altered"),
    (FaultKind::OutOfOrder, "out of order"),
    (FaultKind::Foreign, "foreign"),
    (FaultKind::Refused, "refused but there"),
];

/// One fault, named.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    pub kind: FaultKind,
    pub client: String,
    /// `name{key="value",…}`
    pub series: String,
    pub timestamp_ns: i64,
    pub expected: String,
    pub found: String,
    /// All of it in words
    pub sentence: String,
}

impl Fault {
    pub fn new(
        kind: FaultKind,
        client: String,
        series: String,
        timestamp_ns: i64,
        expected: String,
        found: String,
    ) -> Fault {
        let (_, word) = KINDS[kind as usize];
        let sentence = format!("{word}: {series} of {client} at {timestamp_ns}: expected {expected}, found {found}");
        Fault { kind, client, series, timestamp_ns, expected, found, sentence }
    }
}

/// One line of the totals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Total {
    pub name: &'static str,
    pub count: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// What was compared with the ledgers
    pub comparison: &'static str,
    pub ok: bool,
    pub totals: Vec<Total>,
    pub faults: Vec<Total>,
    /// The first of each kind
    pub first: Vec<Fault>,
    /// Whatever else the reader should know
    pub notes: Vec<String>,
}

impl Verdict {
    pub fn new(comparison: &'static str) -> Verdict {
        let faults = KINDS.iter().map(|(_, name)| Total { name, count: 0 }).collect();
        Verdict { comparison, ok: true, totals: Vec::new(), faults, first: Vec::new(), notes: Vec::new() }
    }

    pub fn total(&mut self, name: &'static str, count: u64) {
        self.totals.push(Total { name, count });
    }

    pub fn count_of(&self, kind: FaultKind) -> u64 {
        self.faults[kind as usize].count
    }

    /// Of totals, by name; 0 when there is none.
    pub fn total_of(&self, name: &str) -> u64 {
        self.totals.iter().find(|total| total.name == name).map_or(0, |total| total.count)
    }

    /// Counts a fault; `name` is asked only for the first of its kind.
    pub fn fault(&mut self, kind: FaultKind, name: impl FnOnce() -> Fault) {
        self.ok = false;
        self.faults[kind as usize].count += 1;
        if self.faults[kind as usize].count == 1 {
            self.first.push(name());
        }
    }

    /// For people: what was compared, the first fault of each kind, totals, and the judgement last.
    pub fn to_text(&self) -> String {
        let mut out = format!("{}:\n", self.comparison);
        let width = self.totals.iter().map(|total| total.name.len()).max().unwrap_or(0);
        for total in &self.totals {
            out.push_str(&format!("  {:width$}  {:>15}\n", total.name, grouped(total.count)));
        }
        for note in &self.notes {
            out.push_str(&format!("  note: {note}\n"));
        }
        for fault in &self.first {
            let more = self.faults[fault.kind as usize].count - 1;
            let more = if more > 0 { format!(" (and {} more)", grouped(more)) } else { String::new() };
            out.push_str(&format!("  {}{more}\n", fault.sentence));
        }
        let faults: Vec<String> = self
            .faults
            .iter()
            .filter(|total| total.count > 0)
            .map(|total| format!("{} {}", grouped(total.count), total.name))
            .collect();
        out.push_str(&match self.ok {
            true => "  equal: all that was acknowledged is there, and nothing else\n".to_string(),
            false => format!("  DIFFERENT: {}\n", faults.join(", ")),
        });
        out
    }
}

/// With commas between thousands.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        for (count, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345_678, "12,345,678")] {
            assert_eq!(grouped(count), text);
        }
    }

    #[test]
    fn kinds_stand_at_their_places() {
        assert!(KINDS.iter().enumerate().all(|(n, (kind, _))| *kind as usize == n));
    }
}
