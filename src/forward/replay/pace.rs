//! At what pace points go: `--rate`. Time is an argument.
//!
//! A unit is cut so that no slice of it holds more than may go in a tenth of a second, and a bucket says when the next may go.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

const SLICES_PER_S: u64 = 10;

/// Lets so many points a second through.
pub struct Bucket {
    points_per_s: u64,
    /// May be below zero: what was sent is waited for afterwards
    points: f64,
    at: Instant,
}

impl Bucket {
    pub fn new(points_per_s: u64, now: Instant) -> Bucket {
        Bucket { points_per_s, points: 0.0, at: now }
    }
    pub fn slice(&self) -> usize {
        (self.points_per_s / SLICES_PER_S).max(1) as usize
    }
    /// How long to wait before a slice.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        let rate = self.points_per_s as f64;
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        self.points = (self.points + earned).min(self.slice() as f64);
        self.at = now;
        (self.points < 0.0).then(|| Duration::from_secs_f64(-self.points / rate))
    }
    pub fn take(&mut self, points: u64) {
        self.points -= points as f64;
    }
}

/// Parts of `whole` with at most `most` of the passing points each.
pub fn cut(passing: &[u64], most: usize, whole: &Range<u64>) -> VecDeque<Range<u64>> {
    let mut slices = VecDeque::new();
    let mut from = whole.start;
    let mut chunks = passing.chunks(most.min(passing.len().max(1))).peekable();
    while let Some(chunk) = chunks.next() {
        let to = if chunks.peek().is_none() { whole.end } else { chunk[chunk.len() - 1] + 1 };
        slices.push_back(from..to);
        from = to;
    }
    if slices.is_empty() {
        slices.push_back(whole.clone());
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_cut_so_that_each_slice_has_its_share_of_what_passes() {
        for (passing, most, ends) in [
            (&[][..], 2, &[10][..]),
            (&[3], 2, &[10]),
            (&[3, 4], 2, &[10]),
            (&[3, 4, 5], 2, &[5, 10]),
            (&[0, 1, 2], 1, &[1, 2, 10]),
            (&[7, 8, 9], usize::MAX, &[10]),
        ] {
            let slices = cut(passing, most, &(0..10));
            assert!(slices.iter().map(|slice| slice.end).eq(ends.iter().copied()), "{passing:?} by {most}: {slices:?}");
            let mut from = 0;
            for slice in slices {
                assert_eq!(std::mem::replace(&mut from, slice.end), slice.start, "without gaps");
            }
        }
    }

    #[test]
    fn a_bucket_lets_its_rate_through() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, start);
        let (mut now, mut sent) = (start, 0);
        while now < start + Duration::from_secs(10) {
            match bucket.wait(now) {
                None => {
                    bucket.take(100);
                    sent += 100;
                }
                Some(wait) => now += wait + Duration::from_micros(1),
            }
        }
        assert!((9_900..=10_200).contains(&sent), "{sent}");
        assert_eq!(Bucket::new(3, start).slice(), 1);
    }
}
