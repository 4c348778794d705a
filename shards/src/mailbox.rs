//! The bounded hand-off out of a shard, and the bell that wakes who reads it.
//!
//! A full mailbox gives the message back: the sender decides (the fold stops, the log goes on). Nobody waits here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;

/// Wakes one sleeping thread. Ringing costs a load and a store while the thread is awake.
#[derive(Default)]
pub struct Doorbell {
    asleep: AtomicBool,
    sleeper: OnceLock<Thread>,
}

impl Doorbell {
    pub fn new() -> Arc<Doorbell> {
        Arc::new(Doorbell::default())
    }

    /// Called once by the thread that will sleep.
    pub fn own(&self) {
        self.sleeper.set(std::thread::current()).expect("one thread sleeps on a doorbell");
    }

    pub fn ring(&self) {
        if self.asleep.load(Ordering::SeqCst)
            && self.asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.sleeper.get()
        {
            thread.unpark();
        }
    }

    /// Sleeps until rung or `at_most` has passed, unless `ready` already holds (asked after a ring would be seen).
    pub fn sleep(&self, at_most: Duration, ready: impl Fn() -> bool) {
        self.asleep.store(true, Ordering::SeqCst);
        if !ready() {
            std::thread::park_timeout(at_most);
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

pub struct Mailbox<T> {
    queue: ArrayQueue<T>,
    bell: Arc<Doorbell>,
}

impl<T> Mailbox<T> {
    pub fn new(capacity: usize, bell: Arc<Doorbell>) -> Arc<Mailbox<T>> {
        Arc::new(Mailbox { queue: ArrayQueue::new(capacity), bell })
    }

    /// Gives the message back when the mailbox is full.
    pub fn send(&self, message: T) -> Result<(), T> {
        self.queue.push(message)?;
        self.bell.ring();
        Ok(())
    }

    pub fn receive(&self) -> Option<T> {
        self.queue.pop()
    }

    /// Messages waiting.
    pub fn depth(&self) -> usize {
        self.queue.len()
    }

    pub fn capacity(&self) -> usize {
        self.queue.capacity()
    }

    pub fn room(&self) -> usize {
        self.queue.capacity() - self.queue.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_mailbox_gives_the_message_back_and_keeps_order() {
        let mailbox = Mailbox::new(2, Doorbell::new());
        assert_eq!((mailbox.send(1), mailbox.send(2), mailbox.send(3)), (Ok(()), Ok(()), Err(3)));
        assert_eq!((mailbox.receive(), mailbox.receive(), mailbox.receive()), (Some(1), Some(2), None));
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn a_message_wakes_the_sleeper() {
        let bell = Doorbell::new();
        let mailbox = Mailbox::new(4, bell.clone());
        let other = mailbox.clone();
        let reader = std::thread::spawn(move || {
            bell.own();
            loop {
                if let Some(message) = other.receive() {
                    return message;
                }
                bell.sleep(Duration::from_secs(10), || other.depth() > 0);
            }
        });
        std::thread::sleep(Duration::from_millis(20));
        mailbox.send(7).expect("room");
        assert_eq!(reader.join().expect("reader"), 7);
    }
}
