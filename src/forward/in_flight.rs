//! The units of one log that a sink has been sent and has not settled: the books between "sent" and "settled".
//!
//! Promises, asserted: a unit is settled once; every point of it that the sink was shown is delivered, refused or
//! dead-lettered; units leave in the order they were sent, behind the longest run of settled ones, whatever order the
//! sink settles them in. What there is to remember of a unit, and what its settling moves, is the owner's: the courier's
//! cursor ([`super::courier`]), a replay's totals ([`super::replay`]).

use std::collections::VecDeque;

use super::sink::{Report, Settled, UnitId};

/// `T`: what the owner wants to know of a unit when it is settled.
#[derive(Debug)]
pub struct InFlight<T> {
    units: VecDeque<Sent<T>>,
}

#[derive(Debug)]
struct Sent<T> {
    unit: UnitId,
    /// Points that the sink was shown
    passed: u64,
    settled: Option<Settled>,
    what: T,
}

impl<T> Default for InFlight<T> {
    fn default() -> InFlight<T> {
        InFlight { units: VecDeque::new() }
    }
}

impl<T> InFlight<T> {
    /// The next unit; numbers rise. One of which the sink was shown nothing is settled, and no sink settles it.
    pub fn sent(&mut self, unit: UnitId, passed: u64, what: T) {
        let settled = (passed == 0).then(Settled::default);
        self.push(Sent { unit, passed, settled, what });
    }

    /// A unit that no sink is asked for.
    pub fn sent_and_settled(&mut self, unit: UnitId, settled: Settled, what: T) {
        self.push(Sent { unit, passed: accounted(&settled), settled: Some(settled), what });
    }

    fn push(&mut self, sent: Sent<T>) {
        assert!(self.units.back().is_none_or(|last| last.unit < sent.unit), "units are numbered in their order");
        self.units.push_back(sent);
    }

    /// False: it is not one of these.
    fn settle(&mut self, unit: UnitId, settled: Settled) -> bool {
        let Ok(at) = self.units.binary_search_by_key(&unit, |sent| sent.unit) else { return false };
        let sent = &mut self.units[at];
        assert!(sent.settled.is_none(), "a sink settles a unit once");
        assert_eq!(accounted(&settled), sent.passed, "a sink accounts for every point it was shown");
        sent.settled = Some(settled);
        true
    }

    /// The oldest unit, when it is settled.
    pub fn take_settled(&mut self) -> Option<(T, Settled)> {
        let settled = self.units.front()?.settled?;
        self.units.pop_front().map(|sent| (sent.what, settled))
    }

    pub fn oldest(&self) -> Option<&T> {
        self.units.front().map(|sent| &sent.what)
    }

    pub fn len(&self) -> usize {
        self.units.len()
    }

    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// They come again, under other unit numbers.
    pub fn forget(&mut self) {
        self.units.clear();
    }
}

fn accounted(settled: &Settled) -> u64 {
    settled.delivered + settled.refused + settled.dead_lettered
}

/// Enters what a sink reports into the books of its logs: `units` finds those of a log.
pub fn settle<L, T>(report: Report, logs: &mut [L], units: impl Fn(&mut L) -> &mut InFlight<T>) {
    for (unit, settled) in report.settled {
        let found = logs.iter_mut().any(|log| units(log).settle(unit, settled));
        assert!(found, "a sink settles units that are in flight");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(points: u64) -> Settled {
        Settled { delivered: points, ..Settled::default() }
    }

    /// Units 1 and 4 of one log, 2 and 3 of another; of 3 nothing was shown.
    fn logs() -> [InFlight<&'static str>; 2] {
        let mut logs = [InFlight::default(), InFlight::default()];
        logs[0].sent(1, 10, "first");
        logs[1].sent(2, 5, "second");
        logs[1].sent(3, 0, "third");
        logs[0].sent(4, 7, "fourth");
        logs
    }

    fn report(settled: &[(UnitId, Settled)]) -> Report {
        Report { settled: settled.to_vec() }
    }

    #[test]
    fn units_leave_in_their_order_whatever_the_order_they_are_settled_in() {
        let mut logs = logs();
        assert!(logs.iter_mut().all(|log| log.take_settled().is_none()));
        let mixed = Settled { delivered: 8, refused: 1, dead_lettered: 1 };
        settle(report(&[(4, delivered(7)), (2, delivered(5))]), &mut logs, |log| log);
        assert_eq!((logs[0].take_settled(), logs[0].oldest()), (None, Some(&"first")));
        assert_eq!(logs[1].take_settled(), Some(("second", delivered(5))));
        assert_eq!(logs[1].take_settled(), Some(("third", Settled::default())));
        settle(report(&[(1, mixed)]), &mut logs, |log| log);
        assert_eq!(logs[0].take_settled(), Some(("first", mixed)));
        assert_eq!(logs[0].take_settled(), Some(("fourth", delivered(7))));
        assert!(logs.iter().all(InFlight::is_empty));
    }

    #[test]
    fn a_unit_that_no_sink_is_asked_for_leaves_at_once() {
        let mut log = InFlight::default();
        log.sent_and_settled(1, delivered(3), "counted");
        assert_eq!((log.len(), log.take_settled()), (1, Some(("counted", delivered(3)))));
    }

    #[test]
    fn a_sink_that_accounts_wrongly_is_found_out() {
        for wrong in [&[(1, delivered(9))][..], &[(4, delivered(7)), (4, delivered(7))], &[(9, delivered(1))]] {
            let caught = std::panic::catch_unwind(|| settle(report(wrong), &mut logs(), |log| log));
            assert!(caught.is_err(), "{wrong:?}");
        }
        let mut forgotten = logs();
        forgotten[0].forget();
        let late = std::panic::catch_unwind(move || settle(report(&[(1, delivered(10))]), &mut forgotten, |log| log));
        assert!(late.is_err(), "after a reset nothing of before is settled");
    }
}
