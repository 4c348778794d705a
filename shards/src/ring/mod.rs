//! The seam: everything a shard knows of the world goes through [`Io`].
//!
//! A shard pushes operations with a token, takes one turn, and gets completions as values. Nothing in a shard reads
//! time, sockets or files past this trait, so that a seeded simulator can stand behind it as well as the ring.

pub mod buffers;
pub mod probe;
pub mod uring;

use std::io;
use std::net::IpAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

/// Names the operation a completion belongs to. The generation makes a stale completion recognisable after its slot
/// has been given to another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    pub kind: TokenKind,
    /// Only the low 24 bits are kept.
    pub generation: u32,
    pub index: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TokenKind {
    Accept = 1,
    Receive = 2,
    ReceiveInto = 3,
    Send = 4,
    Close = 5,
    Cancel = 6,
    LogWrite = 7,
    LogFlush = 8,
    LogRead = 9,
    Wake = 10,
    Shutdown = 11,
}

impl Token {
    pub const GENERATION_MASK: u32 = 0x00FF_FFFF;

    pub const fn new(kind: TokenKind, generation: u32, index: u32) -> Token {
        Token { kind, generation: generation & Self::GENERATION_MASK, index }
    }

    pub const fn to_u64(self) -> u64 {
        ((self.kind as u64) << 56) | ((self.generation as u64) << 32) | self.index as u64
    }

    pub fn from_u64(bits: u64) -> Token {
        let kind = match (bits >> 56) as u8 {
            1 => TokenKind::Accept,
            2 => TokenKind::Receive,
            3 => TokenKind::ReceiveInto,
            4 => TokenKind::Send,
            5 => TokenKind::Close,
            6 => TokenKind::Cancel,
            7 => TokenKind::LogWrite,
            8 => TokenKind::LogFlush,
            9 => TokenKind::LogRead,
            10 => TokenKind::Wake,
            11 => TokenKind::Shutdown,
            other => unreachable!("the kernel gave back a token we never made: kind {other}"),
        };
        Token::new(kind, (bits >> 32) as u32, bits as u32)
    }
}

/// Memory the log owns and will not move or free before the operation on it has completed.
#[derive(Clone, Copy, Debug)]
pub struct DiskIo {
    pub file: RawFd,
    pub offset_bytes: u64,
    pub pointer: *mut u8,
    pub len_bytes: u32,
    /// Write only: also make it durable (RWF_DSYNC).
    pub dsync: bool,
}

#[derive(Debug)]
pub enum Op {
    /// Multishot: every completion with `result >= 0` is a new socket, until one says `more == false`.
    Accept {
        listener: RawFd,
    },
    /// Multishot, into the ring's own buffers: see [`Payload::Buffer`]. Ends with `more == false`, by an error, end
    /// of stream (0), -ENOBUFS or a cancel.
    Receive {
        socket: RawFd,
    },
    /// Once, appended to `bytes` within its spare capacity; for bodies too large for the ring's buffers.
    ReceiveInto {
        socket: RawFd,
        bytes: Vec<u8>,
    },
    /// The bytes from `from` on. Comes back with the buffer; a short count is for the caller to continue.
    Send {
        socket: RawFd,
        bytes: Vec<u8>,
        from: usize,
    },
    /// Ends our sending side; what the client still sends can be read and thrown away.
    Shutdown {
        socket: RawFd,
    },
    Close {
        socket: RawFd,
    },
    /// Asks for the operation of that token to end early; it still completes by itself.
    Cancel {
        target: Token,
    },
    Write(DiskIo),
    /// fdatasync
    Flush {
        file: RawFd,
    },
    Read(DiskIo),
    /// Completes when another thread rings this eventfd.
    Wake {
        eventfd: RawFd,
        bytes: Vec<u8>,
    },
}

#[derive(Debug)]
pub enum Payload {
    None,
    /// `result` bytes in the ring's buffer of this number; give it back with [`Io::release`].
    Buffer(u16),
    /// The buffer that came with the operation.
    Bytes(Vec<u8>),
}

#[derive(Debug)]
pub struct Completion {
    pub token: Token,
    /// What the system call would have returned, errors as negative errno.
    pub result: i32,
    /// The multishot operation is still armed.
    pub more: bool,
    pub payload: Payload,
}

/// The world as a shard sees it.
pub trait Io {
    /// Monotonic time in ns, read once a turn.
    fn now_ns(&self) -> u64;

    /// Queues an operation; it reaches the kernel with the next turn.
    ///
    /// At most one `Send` and one `ReceiveInto` may be under way per token index.
    fn push(&mut self, token: Token, op: Op);

    /// One enter: submits what is queued, waits until something completes or `deadline_ns` has passed (0: do not
    /// wait), and appends what completed.
    fn turn(&mut self, deadline_ns: u64, completions: &mut Vec<Completion>);

    /// The bytes of a [`Payload::Buffer`].
    fn buffer(&self, id: u16, len: usize) -> &[u8];

    /// Gives a ring buffer back to the kernel.
    fn release(&mut self, id: u16);

    /// Who is at the other end of a connection; `None` when it is gone already.
    fn peer(&mut self, socket: RawFd) -> Option<IpAddr>;

    /// A file this shard wrote earlier, to be read again. Rare: it may block.
    fn open_for_reading(&mut self, path: &Path) -> io::Result<OwnedFd>;

    /// Ring buffers not lent out. Receives that ended with -ENOBUFS are armed again when this grows.
    fn buffers_free(&self) -> usize;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_kernel() {
        let token = Token::new(TokenKind::LogFlush, 0xABCDEF, u32::MAX - 1);
        assert_eq!(Token::from_u64(token.to_u64()), token);
    }
}
