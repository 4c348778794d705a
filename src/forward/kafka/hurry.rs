//! When batches that are not full have to leave.
//!
//! librdkafka sends one batch of a partition at a time, and lets a batch that is not full wait for `linger.ms`. While
//! records wait longer than that behind a batch that is on its way, its thread does not sleep but looks again and again: a
//! Kafka that is a little slower than this sink cost a whole core. So `linger.ms` is long ([`LINGER`]), full
//! batches leave by themselves, and when the end of the log is reached the rest is hurried along from here.
//!
//! Pure: time is an argument.

use std::time::{Duration, Instant};

/// What is left behind goes out after this time in any case.
pub const LINGER: Duration = Duration::from_millis(1000);

/// Nothing came from the log and nothing from Kafka for so long: no more company is to be expected.
const QUIET: Duration = Duration::from_millis(10);
/// The same while the sink has no room. Either Kafka is behind, and its answers set the pace; or what fills the sink is
/// spread over so many partitions that no batch is full, and nothing will move before it is hurried. Which of both it is,
/// the answer tells: where it follows soon, hurrying has helped.
const QUIET_WHEN_FULL_MIN: Duration = Duration::from_millis(20);
const QUIET_WHEN_FULL_MAX: Duration = Duration::from_millis(200);
/// A Kafka that stays silent is hurried less and less often.
const BETWEEN_MAX: Duration = Duration::from_millis(1000);
/// librdkafka's threads have to run within a call to notice it.
const WITHIN_MIN: Duration = Duration::from_millis(2);
const WITHIN_MAX: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct Hurry {
    /// The last time that a record was handed over or reported
    moved: Instant,
    last: Instant,
    /// Until the next time, if nothing moves
    between: Duration,
    quiet_when_full: Duration,
    /// When it was first hurried without room since something moved
    first_when_full: Option<Instant>,
}

impl Hurry {
    pub fn new(now: Instant) -> Hurry {
        Hurry { moved: now, last: now, between: QUIET, quiet_when_full: QUIET_WHEN_FULL_MIN, first_when_full: None }
    }

    /// A record was handed over, or a report has come.
    pub fn moved(&mut self, now: Instant) {
        self.moved = now;
        self.between = QUIET;
        if let Some(first) = self.first_when_full.take() {
            let has_helped = now < first + self.quiet_when_full / 2;
            let quiet = if has_helped { self.quiet_when_full / 2 } else { self.quiet_when_full * 2 };
            self.quiet_when_full = quiet.clamp(QUIET_WHEN_FULL_MIN, QUIET_WHEN_FULL_MAX);
        }
    }

    /// To be asked while records are on their way. `Some`: hurry them now, and for so long.
    pub fn due(&mut self, now: Instant, has_room: bool) -> Option<Duration> {
        let quiet = if has_room { QUIET } else { self.quiet_when_full };
        if now < self.moved + quiet || now < self.last + self.between {
            return None;
        }
        let within = (self.between / 8).clamp(WITHIN_MIN, WITHIN_MAX);
        self.last = now;
        if !has_room {
            self.first_when_full.get_or_insert(now);
        }
        self.between = (self.between * 2).min(BETWEEN_MAX);
        Some(within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_left_is_hurried_once_the_log_is_read_and_less_often_while_kafka_is_silent() {
        let start = Instant::now();
        let mut hurry = Hurry::new(start);
        // Units follow one another: they are company for each other.
        for n in 0..100 {
            hurry.moved(start + n * 5 * MS);
            assert_eq!(hurry.due(start + (n * 5 + 4) * MS, true), None);
        }
        let last = start + 495 * MS;
        let mut at = Vec::new();
        for ms in 0..10_000 {
            if hurry.due(last + ms * MS, true).is_some() {
                at.push(ms);
            }
        }
        assert_eq!(&at[..6], &[10, 30, 70, 150, 310, 630]);
        assert!(at[6..].windows(2).all(|pair| pair[1] - pair[0] == 1000), "{at:?}");
        // An answer begins anew.
        hurry.moved(last + 10_000 * MS);
        assert_eq!(hurry.due(last + 10_009 * MS, true), None);
        assert_eq!(hurry.due(last + 11_000 * MS, true), Some(WITHIN_MIN));
    }

    /// Times of hurrying, in ms, while Kafka answers `every` ms, or so long after it was hurried.
    fn while_full(hurry: &mut Hurry, start: Instant, answers: u32, every: u32, after_hurry: u32) -> Vec<u32> {
        let mut hurried_at = Vec::new();
        let (mut now, mut answered) = (0, 0);
        for _ in 0..answers {
            let mut answer_at = answered + every;
            while now < answer_at {
                if hurry.due(start + now * MS, false).is_some() {
                    hurried_at.push(now - answered);
                    answer_at = answer_at.min(now.saturating_add(after_hurry));
                }
                now += 1;
            }
            answered = now;
            hurry.moved(start + now * MS);
        }
        hurried_at
    }

    #[test]
    fn a_kafka_that_is_behind_is_soon_left_alone() {
        let start = Instant::now();
        for every in [30, 70, 150] {
            let mut hurry = Hurry::new(start);
            let hurried = while_full(&mut hurry, start, 20, every, u32::MAX);
            assert!(hurried.len() <= 12, "learned after a few answers: {every}: {hurried:?}");
            // Silence is another matter.
            assert!(hurry.due(start + (20 * every + 200) * MS, false).is_some());
        }
    }

    #[test]
    fn batches_that_cannot_become_full_do_not_wait() {
        let start = Instant::now();
        let mut hurry = Hurry::new(start);
        // Kafka was behind before.
        while_full(&mut hurry, start, 20, 150, u32::MAX);
        let later = start + Duration::from_secs(60);
        hurry.moved(later);
        let hurried = while_full(&mut hurry, later, 20, u32::MAX / 2, 5);
        assert!(hurried[..4].iter().all(|ms| *ms <= 200), "{hurried:?}");
        assert!(hurried[4..].iter().all(|ms| *ms == 20), "{hurried:?}");
    }
}
