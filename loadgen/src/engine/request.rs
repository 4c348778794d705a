//! A request on its way through the engine, and where it goes.

use std::cmp::Ordering;

use crate::workload::Batch;

/// A batch that became due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    pub batch: Batch,
    pub due_ns: u64,
}

/// One to be sent, or under way: the newest batch, and the older ones of the same client that were joined with it.
#[derive(Debug)]
pub struct Request {
    pub newest: Pending,
    /// Oldest first; empty but for `Retry::Joined`.
    pub older: Vec<Pending>,
    /// Times it was sent before.
    pub attempt: u32,
    /// In the ledger; a new one for each attempt.
    pub id: u64,
    /// When the ring got it.
    pub sent_ns: u64,
    /// Its connection was free when it became due, so what passes until the send is the generator's own delay.
    pub was_free: bool,
    /// That a server should keep.
    pub good_points: u32,
    /// How many of its batches, from the oldest, the ledger knows.
    pub noted: usize,
    /// The connection it was first queued at.
    pub slot: u32,
}

/// `sent_ns` of a request that is rendered but not yet handed over.
pub const NOT_SENT: u64 = u64::MAX;

impl Request {
    pub fn new(newest: Pending, slot: u32) -> Request {
        Request {
            newest,
            older: Vec::new(),
            attempt: 0,
            id: 0,
            sent_ns: NOT_SENT,
            was_free: false,
            good_points: 0,
            noted: 0,
            slot,
        }
    }

    pub fn batches(&self) -> impl Iterator<Item = &Pending> {
        self.older.iter().chain(std::iter::once(&self.newest))
    }

    pub fn batch_count(&self) -> u64 {
        self.older.len() as u64 + 1
    }

    pub fn join(&mut self, newer: Pending) {
        self.older.push(std::mem::replace(&mut self.newest, newer));
    }
}

/// Something to be done at a moment, earliest first in a `BinaryHeap`.
#[derive(Debug)]
pub struct Later {
    pub at_ns: u64,
    /// Keeps the order of those for the same moment.
    pub order: u64,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    Send(Request),
    /// Try the connection of this slot again.
    Connect(u32),
}

impl Ord for Later {
    fn cmp(&self, other: &Later) -> Ordering {
        (other.at_ns, other.order).cmp(&(self.at_ns, self.order))
    }
}

impl PartialOrd for Later {
    fn partial_cmp(&self, other: &Later) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Later {
    fn eq(&self, other: &Later) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Later {}

/// Which connections carry a client's batches. With more connections than clients each client has several, taken in
/// turn; with fewer, clients share.
#[derive(Clone, Copy, Debug)]
pub struct Lanes {
    pub clients: u32,
    pub connections: u32,
    /// A client keeps to its first connection: it has one request under way at a time.
    pub single: bool,
}

impl Lanes {
    pub fn connection(&self, client: u32, number: u64) -> u32 {
        if self.clients >= self.connections {
            return client % self.connections;
        }
        if self.single {
            return client;
        }
        let lanes = (self.connections - client - 1) / self.clients + 1;
        client + self.clients * (number % u64::from(lanes)) as u32
    }

    /// The client that a connection speaks for: the only one, or the first of those that share it.
    pub fn client(&self, connection: u32) -> u32 {
        connection % self.clients
    }

    /// In a closed loop: whom the connection speaks for after `client`.
    pub fn next_client(&self, connection: u32, client: u32) -> u32 {
        match client + self.connections {
            next if self.clients > self.connections && next < self.clients => next,
            _ => self.client(connection),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_s_connections_are_its_own_when_there_are_enough() {
        for (clients, connections) in [(1, 32), (3, 4), (7, 7), (5, 64), (10, 3), (1000, 1)] {
            let lanes = Lanes { clients, connections, single: false };
            for client in 0..clients {
                for number in 0..200 {
                    let connection = lanes.connection(client, number);
                    assert!(connection < connections);
                    if clients <= connections {
                        assert_eq!(lanes.client(connection), client);
                    }
                }
            }
            // Every connection carries someone.
            let used: std::collections::BTreeSet<u32> =
                (0..clients).flat_map(|c| (0..200).map(move |n| lanes.connection(c, n))).collect();
            assert_eq!(used.len() as u32, connections, "{lanes:?}");
        }
    }

    #[test]
    fn a_closed_loop_s_connection_goes_round_its_clients() {
        let lanes = Lanes { clients: 7, connections: 3, single: false };
        let mut seen = vec![lanes.client(1)];
        for _ in 0..3 {
            seen.push(lanes.next_client(1, *seen.last().expect("one")));
        }
        assert_eq!(seen, [1, 4, 1, 4]);
    }

    #[test]
    fn the_earliest_comes_first() {
        let mut heap = std::collections::BinaryHeap::new();
        for (order, at_ns) in [(0, 30), (1, 10), (2, 20), (3, 10)] {
            heap.push(Later { at_ns, order, what: What::Connect(order as u32) });
        }
        let order: Vec<u64> = std::iter::from_fn(|| heap.pop().map(|later: Later| later.order)).collect();
        assert_eq!(order, [1, 3, 2, 0]);
    }
}
