//! One client connection, as the shard keeps it, and the table of them.

use std::net::IpAddr;
use std::os::fd::RawFd;

use crate::http::Assembler;
use crate::ring::{Token, TokenKind};

use super::caller::Caller;
use super::replies::Replies;

/// A connection's place; stale once its generation has moved on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub index: u32,
    pub generation: u32,
}

impl Key {
    pub fn token(self, kind: TokenKind) -> Token {
        Token::new(kind, self.generation, self.index)
    }
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Open,
    /// The replies owed still leave, then it is closed.
    Ending,
    /// The same after a refusal, but then it is half-closed first.
    Refusing,
    /// Half-closed by us; what comes is thrown away until the client closes or its time is up.
    Draining,
    /// Operations under way are being cancelled; closed when the last has completed.
    Closing,
}

pub struct Connection {
    pub key: Key,
    pub socket: RawFd,
    pub listener: u32,
    pub peer: IpAddr,
    pub assembler: Assembler,
    pub replies: Replies,
    /// Received, not yet pushed: while too many replies are unread
    pub pending: Vec<u8>,
    pub caller: Caller,
    pub life: Life,
    /// A multishot receive is armed in the kernel
    pub receiving: bool,
    /// Its cancel is under way
    pub cancelling: bool,
    pub cancelling_send: bool,
    /// A half-close is under way: kernel workers do it, and look the descriptor up only then
    pub shutting_down: bool,
    /// The client has sent all it will
    pub ended: bool,
    /// A receive ended for want of ring buffers; armed again when some are free
    pub starved: bool,
    /// Bytes handed to the send under way, 0 when there is none
    pub sending_bytes: usize,
    pub sending_since_ns: u64,
    /// Empty between sends: the buffer goes round
    pub spare: Vec<u8>,
    /// When this connection next comes up in the wheel
    pub timer_ns: u64,
    /// Stands in the list of connections with something to send
    pub dirty: bool,
}

impl Connection {
    /// Bytes of answers the client has not taken.
    pub fn unread_bytes(&self) -> usize {
        self.replies.len_bytes() + self.sending_bytes
    }

    pub fn owes_replies(&self) -> bool {
        !self.replies.is_empty() || self.sending_bytes > 0
    }

    pub fn is_quiet(&self) -> bool {
        !self.receiving && self.sending_bytes == 0 && !self.shutting_down
    }
}

/// Connections by slot. A slot's generation moves on when it is given away again.
#[derive(Default)]
pub struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    live: usize,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    connection: Option<Box<Connection>>,
}

impl Table {
    pub fn insert(&mut self, make: impl FnOnce(Key) -> Connection) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.generation = (slot.generation + 1) & Token::GENERATION_MASK;
        let key = Key { index, generation: slot.generation };
        slot.connection = Some(Box::new(make(key)));
        self.live += 1;
        key
    }

    /// Takes a connection out to work on it; `put` it back. `None` when it is gone.
    pub fn take(&mut self, key: Key) -> Option<Box<Connection>> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        slot.connection.take()
    }

    pub fn put(&mut self, connection: Box<Connection>) {
        let slot = &mut self.slots[connection.key.index as usize];
        debug_assert!(slot.connection.is_none() && slot.generation == connection.key.generation);
        slot.connection = Some(connection);
    }

    /// Gives the slot of a connection that was taken out to others.
    pub fn free(&mut self, connection: Box<Connection>) {
        self.free.push(connection.key.index);
        self.live -= 1;
    }

    pub fn live(&self) -> usize {
        self.live
    }

    pub fn keys(&self) -> Vec<Key> {
        self.slots.iter().filter_map(|slot| slot.connection.as_ref().map(|c| c.key)).collect()
    }
}
