//! Long work says on standard error how far it is.

use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(2);

pub struct Progress {
    what: &'static str,
    on: bool,
    count: u64,
    next: Instant,
}

impl Progress {
    pub fn new(what: &'static str, on: bool) -> Progress {
        Progress { what, on, count: 0, next: Instant::now() + EVERY }
    }

    #[inline]
    pub fn add(&mut self, more: u64) {
        let before = self.count >> 14;
        self.count += more;
        if self.on && self.count >> 14 != before && Instant::now() >= self.next {
            eprintln!("{}: {}", self.what, super::verdict::grouped(self.count));
            self.next = Instant::now() + EVERY;
        }
    }
}
