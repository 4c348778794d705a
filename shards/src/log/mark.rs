//! How far a log is durable, published by its writer for readers on other threads.
//!
//! One writer, any number of readers, no lock: a sequence lock over four words. A reader that meets the writer in the
//! middle looks again; the writer never waits. What is read is always one whole mark that was true at some moment.

use super::writer::Position;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering, fence};

/// What is durable: everything below `end`, in points all that are numbered below `next_point`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Mark {
    /// Behind the last durable block; segment 0: there is none
    pub end: Position,
    pub next_point: u64,
    /// Receive stamp of the last durable record; `i64::MIN`: not known
    pub last_stamp_ns: i64,
}

#[derive(Debug, Default)]
pub struct DurableMark {
    /// Odd while the words below are being written
    version: AtomicU64,
    segment_id: AtomicU64,
    offset: AtomicU64,
    next_point: AtomicU64,
    last_stamp_ns: AtomicI64,
}

impl DurableMark {
    pub fn new(mark: Mark) -> DurableMark {
        let published = DurableMark::default();
        published.publish(mark);
        published
    }

    /// Only the log's writer calls this.
    pub fn publish(&self, mark: Mark) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.segment_id.store(mark.end.segment_id, Ordering::Relaxed);
        self.offset.store(mark.end.offset, Ordering::Relaxed);
        self.next_point.store(mark.next_point, Ordering::Relaxed);
        self.last_stamp_ns.store(mark.last_stamp_ns, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    pub fn get(&self) -> Mark {
        loop {
            let before = self.version.load(Ordering::Acquire);
            let mark = Mark {
                end: Position {
                    segment_id: self.segment_id.load(Ordering::Relaxed),
                    offset: self.offset.load(Ordering::Relaxed),
                },
                next_point: self.next_point.load(Ordering::Relaxed),
                last_stamp_ns: self.last_stamp_ns.load(Ordering::Relaxed),
            };
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return mark;
            }
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_reader_never_sees_half_a_mark() {
        let of = |n: u64| Mark {
            end: Position { segment_id: n, offset: n * 3 },
            next_point: n * 5,
            last_stamp_ns: n as i64 * 7,
        };
        let published = DurableMark::new(of(1));
        let done = AtomicBool::new(false);
        let begin = Barrier::new(3);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut last = 0;
                    begin.wait();
                    while !done.load(Ordering::Relaxed) {
                        let mark = published.get();
                        assert_eq!(mark, of(mark.end.segment_id));
                        assert!(mark.end.segment_id >= last, "marks do not go back");
                        last = mark.end.segment_id;
                    }
                });
            }
            begin.wait();
            for n in 2..200_000 {
                published.publish(of(n));
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(published.get(), of(199_999));
    }
}
