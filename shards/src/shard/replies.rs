//! The replies of one connection, in the order of its requests, some of them not yet allowed to leave.
//!
//! A reply is rendered when its request was served and leaves when the commit it waits for is durable. What waits
//! holds back what comes after it: HTTP/1.1 answers in order.

use std::collections::VecDeque;

/// "Waits for nothing."
pub const NOW: u64 = 0;

#[derive(Default, Debug)]
pub struct Replies {
    /// Rendered, not yet handed to a send
    bytes: Vec<u8>,
    /// How much of the front of `bytes` may leave
    released: usize,
    /// Ends of waiting replies in `bytes`, with the commit each waits for
    waiting: VecDeque<(u64, usize)>,
}

impl Replies {
    /// Renders a reply that may leave once `commit` is durable ([`NOW`]: at once, after those before it).
    pub fn push(&mut self, commit: u64, render: impl FnOnce(&mut Vec<u8>)) {
        render(&mut self.bytes);
        if commit == NOW && self.waiting.is_empty() {
            self.released = self.bytes.len();
        } else {
            self.waiting.push_back((commit, self.bytes.len()));
        }
    }

    /// Commits up to `durable` are on disk.
    pub fn release(&mut self, durable: u64) {
        while let Some(&(commit, end)) = self.waiting.front() {
            if commit > durable {
                break;
            }
            self.released = end;
            self.waiting.pop_front();
        }
    }

    /// Moves what may leave into `out`, which is empty.
    pub fn take(&mut self, out: &mut Vec<u8>) {
        if self.released == self.bytes.len() {
            std::mem::swap(&mut self.bytes, out);
        } else {
            out.extend_from_slice(&self.bytes[..self.released]);
            self.bytes.drain(..self.released);
            for (_, end) in &mut self.waiting {
                *end -= self.released;
            }
        }
        self.released = 0;
    }

    pub fn can_send(&self) -> bool {
        self.released > 0
    }

    /// Requests served whose replies have not been handed to a send.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_waits_for_its_commit_and_holds_back_what_follows() {
        let mut replies = Replies::default();
        let mut out = Vec::new();
        replies.push(NOW, |b| b.push(b'a'));
        replies.push(2, |b| b.push(b'b'));
        replies.push(NOW, |b| b.push(b'c'));
        replies.push(3, |b| b.push(b'd'));
        replies.take(&mut out);
        assert_eq!(out, b"a");
        out.clear();
        replies.release(1);
        assert!(!replies.can_send());
        replies.release(2);
        replies.take(&mut out);
        assert_eq!(out, b"bc");
        out.clear();
        replies.release(9);
        replies.take(&mut out);
        assert_eq!(out, b"d");
        assert!(replies.is_empty() && !replies.can_send());
    }
}
