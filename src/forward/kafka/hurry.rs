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
/// The same while the sink has no room: then Kafka is behind, and its answers set the pace.
const QUIET_WHEN_FULL: Duration = Duration::from_millis(200);
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
}

impl Hurry {
    pub fn new(now: Instant) -> Hurry {
        Hurry { moved: now, last: now, between: QUIET }
    }

    /// A record was handed over, or a report has come.
    pub fn moved(&mut self, now: Instant) {
        self.moved = now;
        self.between = QUIET;
    }

    /// To be asked while records are on their way. `Some`: hurry them now, and for so long.
    pub fn due(&mut self, now: Instant, has_room: bool) -> Option<Duration> {
        let quiet = if has_room { QUIET } else { QUIET_WHEN_FULL };
        if now < self.moved + quiet || now < self.last + self.between {
            return None;
        }
        let within = (self.between / 8).clamp(WITHIN_MIN, WITHIN_MAX);
        self.last = now;
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

    #[test]
    fn a_kafka_that_is_behind_is_left_alone_as_long_as_it_answers() {
        let start = Instant::now();
        let mut hurry = Hurry::new(start);
        for n in 0..50 {
            hurry.moved(start + n * 150 * MS);
            assert_eq!(hurry.due(start + (n * 150 + 149) * MS, false), None);
        }
        assert!(hurry.due(start + (49 * 150 + 200) * MS, false).is_some());
    }
}
