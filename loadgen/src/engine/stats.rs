//! What is counted while a run goes on: totals, histograms, a row for each second, a stretch for each step.
//!
//! A request's latency enters when its fate is known. Acknowledged: from the due moment to the last byte of the answer
//! (of the last attempt). Never answered or never sent: up to the moment when it was given up, so that an outage is not
//! hidden. Refused for good: not at all; it is counted by status instead, for a fast "no" is no fast answer. Service
//! time is recorded for every answer, whatever it says.

use hdrhistogram::Histogram;

use crate::ledger::NoAnswer;
use crate::plan::Shape;
use crate::result::{Histograms, Recorded, Second, Stretch, Totals, histogram};

const SECOND_NS: u64 = 1_000_000_000;

/// Why a request came to no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It left.
    Unanswered(NoAnswer),
    /// It waited behind others until the run was over.
    NeverSent,
}

const LOSSES: [(Loss, &str); 6] = [
    (Loss::Unanswered(NoAnswer::Timeout), "timeout"),
    (Loss::Unanswered(NoAnswer::Reset), "reset"),
    (Loss::Unanswered(NoAnswer::RefusedConnection), "refused_connection"),
    (Loss::Unanswered(NoAnswer::Closed), "closed"),
    (Loss::Unanswered(NoAnswer::BadAnswer), "bad_answer"),
    (Loss::NeverSent, "never_sent"),
];

pub struct Stats {
    pub totals: Totals,
    lost: [u64; LOSSES.len()],
    latency: Histogram<u64>,
    service: Histogram<u64>,
    lateness: Histogram<u64>,
    second_latency: Histogram<u64>,
    second_lateness: Histogram<u64>,
    second: Second,
    second_end_ns: u64,
    seconds: Vec<Second>,
    stretches: Vec<Stretch>,
    each_ns: u64,
    /// Sentences for people that belong to the figures.
    pub notes: Vec<String>,
}

/// What a run came to.
pub struct Finished {
    pub totals: Totals,
    pub histograms: Histograms,
    pub seconds: Vec<Second>,
    pub steps: Vec<Stretch>,
    pub notes: Vec<String>,
}

fn us(ns: u64) -> u64 {
    (ns + 500) / 1000
}

impl Stats {
    pub fn new(shape: &Shape) -> Stats {
        let mut each_ns = u64::MAX;
        let stretches = match shape {
            Shape::Steps { rates, each_ms } => {
                each_ns = (each_ms * 1_000_000).max(1);
                let each_s = *each_ms as f64 / 1e3;
                (0..rates.len())
                    .map(|step| Stretch {
                        rate: rates[step],
                        from_s: step as f64 * each_s,
                        to_s: (step + 1) as f64 * each_s,
                        due: 0,
                        acknowledged: 0,
                        errors: 0,
                        latency_us: Recorded(histogram()),
                    })
                    .collect()
            }
            _ => Vec::new(),
        };
        Stats {
            totals: Totals::default(),
            lost: [0; LOSSES.len()],
            latency: histogram(),
            service: histogram(),
            lateness: histogram(),
            second_latency: histogram(),
            second_lateness: histogram(),
            second: Second::default(),
            second_end_ns: SECOND_NS,
            seconds: Vec::new(),
            stretches,
            each_ns,
            notes: Vec::new(),
        }
    }

    fn stretch(&mut self, due_ns: u64) -> Option<&mut Stretch> {
        if self.each_ns == u64::MAX {
            return None;
        }
        let last = self.stretches.len().checked_sub(1)?;
        self.stretches.get_mut(((due_ns / self.each_ns) as usize).min(last))
    }

    pub fn due(&mut self, due_ns: u64) {
        self.totals.due += 1;
        self.second.due += 1;
        if let Some(stretch) = self.stretch(due_ns) {
            stretch.due += 1;
        }
    }

    pub fn sent(&mut self, points: u32, bytes: usize, is_retry: bool) {
        self.totals.sent += 1;
        self.second.sent += 1;
        self.totals.points_sent += u64::from(points);
        self.totals.sent_bytes += bytes as u64;
        self.totals.retries += u64::from(is_retry);
    }

    pub fn late(&mut self, ns: u64) {
        self.second_lateness.saturating_record(us(ns));
    }

    pub fn service(&mut self, ns: u64) {
        self.service.saturating_record(us(ns));
    }

    fn latency(&mut self, due_ns: u64, now_ns: u64) {
        let latency_us = us(now_ns.saturating_sub(due_ns));
        self.second_latency.saturating_record(latency_us);
        if let Some(stretch) = self.stretch(due_ns) {
            stretch.latency_us.0.saturating_record(latency_us);
        }
    }

    /// A request was acknowledged; [`Stats::batch_acknowledged`] follows for each batch in it.
    pub fn acknowledged(&mut self, points: u32) {
        self.totals.acknowledged += 1;
        self.second.acknowledged += 1;
        self.totals.points_acknowledged += u64::from(points);
    }

    pub fn batch_acknowledged(&mut self, due_ns: u64, now_ns: u64) {
        self.latency(due_ns, now_ns);
        if let Some(stretch) = self.stretch(due_ns) {
            stretch.acknowledged += 1;
        }
    }

    pub fn refused(&mut self, status: u16) {
        *self.totals.refused.entry(status).or_default() += 1;
        self.second.refused += 1;
    }

    pub fn lost(&mut self, loss: Loss) {
        let at = LOSSES.iter().position(|(this, _)| *this == loss).expect("all losses are listed");
        self.lost[at] += 1;
        self.second.unknown += 1;
    }

    /// A batch has no attempt left. `answered`: its last attempt was refused, not lost.
    pub fn batch_given_up(&mut self, due_ns: u64, now_ns: u64, answered: bool) {
        self.totals.given_up += 1;
        if !answered {
            self.latency(due_ns, now_ns);
        }
        if let Some(stretch) = self.stretch(due_ns) {
            stretch.errors += 1;
        }
    }

    pub fn second_end_ns(&self) -> u64 {
        self.second_end_ns
    }

    /// Closes the current second's row when it is over; true when one was.
    pub fn turn_second(&mut self, now_ns: u64) -> bool {
        if now_ns < self.second_end_ns {
            return false;
        }
        while now_ns >= self.second_end_ns {
            self.close_second();
            self.second_end_ns += SECOND_NS;
        }
        true
    }

    fn close_second(&mut self) {
        let mut second = std::mem::take(&mut self.second);
        second.at_s = (self.second_end_ns / SECOND_NS - 1) as f64;
        second.p50_us = self.second_latency.value_at_quantile(0.5);
        second.p99_us = self.second_latency.value_at_quantile(0.99);
        second.max_us = self.second_latency.max();
        second.lateness_p99_us = self.second_lateness.value_at_quantile(0.99);
        self.latency.add(&self.second_latency).expect("the same bounds");
        self.lateness.add(&self.second_lateness).expect("the same bounds");
        self.second_latency.reset();
        self.second_lateness.reset();
        self.seconds.push(second);
    }

    /// Of the last second that was closed.
    pub fn last_second(&self) -> Option<&Second> {
        self.seconds.last()
    }

    /// Errors so far by kind, for a person: `503 ×12, timeout ×3`; empty without any.
    pub fn errors(&self) -> String {
        let refused = self.totals.refused.iter().map(|(status, count)| format!("{status} ×{count}"));
        let lost = LOSSES.iter().zip(self.lost).filter(|(_, count)| *count > 0);
        refused.chain(lost.map(|((_, name), count)| format!("{name} ×{count}"))).collect::<Vec<_>>().join(", ")
    }

    pub fn finish(mut self, now_ns: u64, duration_s: f64, generator_cpu_s: f64) -> Finished {
        self.turn_second(now_ns);
        let is_empty = self.second.due + self.second.sent + self.second.acknowledged == 0
            && self.second.refused + self.second.unknown == 0
            && self.second_latency.is_empty();
        if !is_empty {
            self.close_second();
        }
        self.totals.duration_s = duration_s;
        self.totals.generator_cpu_s = generator_cpu_s;
        let lost = LOSSES.iter().zip(self.lost).filter(|(_, count)| *count > 0);
        self.totals.unknown = lost.map(|((_, name), count)| ((*name).to_owned(), count)).collect();
        Finished {
            totals: self.totals,
            histograms: Histograms {
                latency_us: Recorded(self.latency),
                service_us: Recorded(self.service),
                lateness_us: Recorded(self.lateness),
            },
            seconds: self.seconds,
            steps: self.stretches,
            notes: self.notes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_owns_what_became_due_in_it_however_late_it_ends() {
        let mut stats = Stats::new(&Shape::Steps { rates: vec![10.0, 20.0], each_ms: 1000 });
        stats.due(999_999_999);
        stats.due(1_000_000_000);
        stats.due(1_900_000_000);
        stats.batch_acknowledged(999_999_999, 3_000_000_000);
        stats.batch_acknowledged(1_000_000_000, 1_001_000_000);
        stats.batch_given_up(1_900_000_000, 2_000_000_000, true);
        let steps = stats.finish(3_000_000_000, 2.0, 0.0).steps;
        assert_eq!((steps[0].due, steps[0].acknowledged, steps[0].errors), (1, 1, 0));
        assert_eq!((steps[1].due, steps[1].acknowledged, steps[1].errors), (2, 1, 1));
        assert!(steps[0].latency_us.0.max() > 1_990_000 && steps[1].latency_us.0.max() < 1010);
    }

    #[test]
    fn seconds_add_up_to_the_whole() {
        let mut stats = Stats::new(&Shape::Closed { duration_ms: 3000 });
        for k in 0..30u64 {
            let now_ns = k * 100_000_000;
            stats.turn_second(now_ns);
            stats.due(now_ns);
            stats.sent(2, 100, false);
            stats.acknowledged(2);
            stats.batch_acknowledged(now_ns, now_ns + k * 1000);
            stats.late(1000);
        }
        let finished = stats.finish(2_950_000_000, 3.0, 0.1);
        assert_eq!(finished.seconds.len(), 3);
        assert!(finished.seconds.iter().all(|second| second.due == 10 && second.acknowledged == 10));
        assert_eq!(finished.histograms.latency_us.0.len(), 30);
        assert_eq!(finished.histograms.lateness_us.0.len(), 30);
        assert_eq!(finished.seconds[2].max_us, 29);
        assert_eq!((finished.totals.points_acknowledged, finished.totals.sent_bytes), (60, 3000));
    }

    #[test]
    fn what_was_never_answered_counts_its_waiting_and_a_refusal_does_not() {
        let mut stats = Stats::new(&Shape::Closed { duration_ms: 1000 });
        stats.lost(Loss::Unanswered(NoAnswer::Timeout));
        stats.batch_given_up(0, 500_000_000, false);
        stats.refused(503);
        stats.batch_given_up(0, 1000, true);
        assert_eq!(stats.errors(), "503 ×1, timeout ×1");
        let finished = stats.finish(600_000_000, 1.0, 0.0);
        assert_eq!(finished.histograms.latency_us.0.len(), 1);
        assert!(finished.histograms.latency_us.0.max() >= 500_000);
        assert_eq!(finished.totals.unknown["timeout"], 1);
    }
}
