//! How one batch of lines gets to the server: what to send next, and what each answer does. Pure: verdicts in, actions out.
//!
//! A batch is sent whole. A verdict that says "a line in it is bad" or "too large" halves what was sent, until single lines
//! stand alone; those go to the dead letters with the reason. Halves are sent in order, so that points of one series
//! stay in order. What was delivered in one half may be sent again with no harm: the same point has the same key, time and
//! value.

use super::answer::Verdict;
use std::ops::Range;
use std::time::Duration;

/// What happened to a run of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Delivered,
    /// The server has counted them as refused
    Refused,
    DeadLettered,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Go on with `next`
    GoOn,
    /// This line will never be taken: put it among the dead letters, durably, then go on
    SetAside { line: usize, reason: String },
    /// Send the same again once an operator may have changed something
    Hold { reason: String },
    /// Send the same again later
    Wait { reason: String, retry_after: Option<Duration> },
}

#[derive(Debug)]
pub struct Delivery {
    /// What is left to send, the next one last
    left: Vec<Range<usize>>,
    fates: Vec<(Range<usize>, Fate)>,
    halvings: u64,
}

impl Delivery {
    pub fn new(lines: usize) -> Delivery {
        let whole = 0..lines;
        Delivery { left: if whole.is_empty() { Vec::new() } else { vec![whole] }, fates: Vec::new(), halvings: 0 }
    }

    /// The lines to send now; `None`: each line has its fate.
    pub fn next(&self) -> Option<Range<usize>> {
        self.left.last().cloned()
    }

    /// What came of sending `next`.
    pub fn answered(&mut self, verdict: Verdict) -> Action {
        let range = self.left.last().cloned().expect("something was sent");
        match verdict {
            Verdict::Written => self.placed(range, Fate::Delivered),
            Verdict::Partial { dropped, .. } => {
                // Which ones is not said. The server may count more than it was sent: never more than that.
                let split = range.end - usize::try_from(dropped).unwrap_or(usize::MAX).min(range.len());
                self.left.pop();
                for (part, fate) in [(range.start..split, Fate::Delivered), (split..range.end, Fate::Refused)] {
                    if !part.is_empty() {
                        self.fates.push((part, fate));
                    }
                }
                Action::GoOn
            }
            Verdict::BadLine { reason } | Verdict::TooLarge { reason } if range.len() == 1 => {
                let line = range.start;
                self.placed(range, Fate::DeadLettered);
                Action::SetAside { line, reason }
            }
            Verdict::BadLine { .. } | Verdict::TooLarge { .. } => {
                let middle = range.start + range.len() / 2;
                self.left.pop();
                self.left.push(middle..range.end);
                self.left.push(range.start..middle);
                self.halvings += 1;
                Action::GoOn
            }
            Verdict::Held { reason } => Action::Hold { reason },
            Verdict::Later { reason, retry_after } => Action::Wait { reason, retry_after },
        }
    }

    fn placed(&mut self, range: Range<usize>, fate: Fate) -> Action {
        self.left.pop();
        self.fates.push((range, fate));
        Action::GoOn
    }

    /// Every line once, when `next` is `None`.
    pub fn fates(&self) -> &[(Range<usize>, Fate)] {
        &self.fates
    }

    pub const fn halvings(&self) -> u64 {
        self.halvings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn bad() -> Verdict {
        Verdict::BadLine { reason: "bad".into() }
    }
    fn ended(delivery: &Delivery) -> Vec<Fate> {
        assert_eq!(delivery.next(), None);
        let mut fates = delivery.fates().to_vec();
        fates.sort_by_key(|(range, _)| range.start);
        let mut end = 0;
        let mut out = Vec::new();
        for (range, fate) in fates {
            assert_eq!(range.start, end, "every line once");
            end = range.end;
            out.extend(range.map(|_| fate));
        }
        out
    }

    #[test]
    fn each_verdict_does_one_thing() {
        use Fate::*;
        let reason = || "r".to_owned();
        for (lines, verdict, action, next, fates) in [
            (3, Verdict::Written, Action::GoOn, None, vec![(0..3, Delivered)]),
            (3, Verdict::Partial { dropped: 0, reason: reason() }, Action::GoOn, None, vec![(0..3, Delivered)]),
            (
                3,
                Verdict::Partial { dropped: 1, reason: reason() },
                Action::GoOn,
                None,
                vec![(0..2, Delivered), (2..3, Refused)],
            ),
            (3, Verdict::Partial { dropped: 9, reason: reason() }, Action::GoOn, None, vec![(0..3, Refused)]),
            (3, bad(), Action::GoOn, Some(0..1), vec![]),
            (1, bad(), Action::SetAside { line: 0, reason: "bad".into() }, None, vec![(0..1, DeadLettered)]),
            (5, Verdict::TooLarge { reason: reason() }, Action::GoOn, Some(0..2), vec![]),
            (
                1,
                Verdict::TooLarge { reason: reason() },
                Action::SetAside { line: 0, reason: reason() },
                None,
                vec![(0..1, DeadLettered)],
            ),
            (3, Verdict::Held { reason: reason() }, Action::Hold { reason: reason() }, Some(0..3), vec![]),
            (
                3,
                Verdict::Later { reason: reason(), retry_after: Some(Duration::from_secs(2)) },
                Action::Wait { reason: reason(), retry_after: Some(Duration::from_secs(2)) },
                Some(0..3),
                vec![],
            ),
        ] {
            let mut delivery = Delivery::new(lines);
            assert_eq!(delivery.answered(verdict.clone()), action, "{verdict:?}");
            assert_eq!((delivery.next(), delivery.fates()), (next, &fates[..]), "{verdict:?}");
        }
    }

    #[test]
    fn an_empty_batch_is_through_at_once() {
        assert_eq!(ended(&Delivery::new(0)), []);
    }

    #[test]
    fn one_bad_line_of_5000_is_found_with_two_dozen_calls() {
        let mut delivery = Delivery::new(5000);
        let mut calls = 0;
        while let Some(range) = delivery.next() {
            calls += 1;
            delivery.answered(if range.contains(&1234) { bad() } else { Verdict::Written });
        }
        assert!(calls <= 27, "{calls}");
        let fates = ended(&delivery);
        assert_eq!(fates.iter().filter(|fate| **fate == Fate::DeadLettered).count(), 1);
        assert_eq!(fates[1234], Fate::DeadLettered);
    }

    proptest! {
        /// A server that takes what holds no bad line and is not too large, and fails at random before it answers.
        #[test]
        fn whatever_is_bad_is_set_aside_and_the_rest_arrives_in_order(
            lines in 1usize..300,
            bad_lines in prop::collection::btree_set(0usize..300, 0..20),
            limit in 1usize..300,
            failures in prop::collection::vec(any::<bool>(), 64),
        ) {
            let bad_lines: BTreeSet<usize> = bad_lines.into_iter().filter(|n| *n < lines).collect();
            let mut delivery = Delivery::new(lines);
            let (mut arrived, mut aside, mut fails) = (Vec::new(), BTreeSet::new(), failures.into_iter());
            while let Some(range) = delivery.next() {
                let verdict = if fails.next() == Some(true) {
                    Verdict::Later { reason: "busy".into(), retry_after: None }
                } else if range.len() > limit {
                    Verdict::TooLarge { reason: "413".into() }
                } else if bad_lines.range(range.clone()).next().is_some() {
                    bad()
                } else {
                    arrived.extend(range);
                    Verdict::Written
                };
                if let Action::SetAside { line, .. } = delivery.answered(verdict) {
                    aside.insert(line);
                }
            }
            prop_assert!(arrived.is_sorted());
            let expected: Vec<usize> = (0..lines).filter(|n| !bad_lines.contains(n)).collect();
            prop_assert_eq!(arrived, expected);
            prop_assert_eq!(&aside, &bad_lines);
            let fates = ended(&delivery);
            prop_assert_eq!(fates.len(), lines);
        }
    }
}
