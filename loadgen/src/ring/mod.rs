//! One io_uring, owned by one thread: sockets only. Both the engine and the null server stand on it.
//!
//! All unsafe code of the crate that talks to the ring is here and in [`buffers`]. A buffer that travels with a send is
//! kept here, by slot, until its completion hands it back, so that nobody can free or move what the kernel reads from.

mod buffers;

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::Instant;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use buffers::ProvidedBuffers;

pub const SQ_ENTRIES: u32 = 2048;
const CQ_ENTRIES: u32 = 16 * 1024;
/// An answer is a few hundred bytes; a longer one comes in several buffers.
const BUFFER_ENTRIES: u16 = 2048;
const BUFFER_BYTES: usize = 4 * 1024;
const BUFFER_GROUP: u16 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Accept = 1,
    Connect = 2,
    Receive = 3,
    Send = 4,
    Close = 6,
    Cancel = 7,
}

/// Names an operation: what, in which slot, of which life of the slot (stale completions are recognised by it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    /// Only the low 24 bits are kept.
    pub generation: u32,
    pub slot: u32,
}

impl Token {
    pub const GENERATION_MASK: u32 = 0x00FF_FFFF;

    pub const fn new(kind: Kind, generation: u32, slot: u32) -> Token {
        Token { kind, generation: generation & Self::GENERATION_MASK, slot }
    }

    const fn to_u64(self) -> u64 {
        ((self.kind as u64) << 56) | ((self.generation as u64) << 32) | self.slot as u64
    }

    fn from_u64(bits: u64) -> Token {
        let kind = match (bits >> 56) as u8 {
            1 => Kind::Accept,
            2 => Kind::Connect,
            3 => Kind::Receive,
            4 => Kind::Send,
            6 => Kind::Close,
            7 => Kind::Cancel,
            other => unreachable!("the kernel gave back a token we never made: kind {other}"),
        };
        Token::new(kind, (bits >> 32) as u32, bits as u32)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Completion {
    pub token: Token,
    /// What the system call would have returned, errors as negative errno.
    pub result: i32,
    /// The multishot operation is still armed.
    pub more: bool,
    /// `result` bytes are in this buffer; give it back with [`Ring::release`].
    pub buffer: Option<u16>,
}

pub struct Ring {
    ring: IoUring,
    /// Dropped after `ring`: the kernel is done with it by then.
    buffers: ProvidedBuffers,
    sending: Vec<Option<Vec<u8>>>,
    /// Where `connect` goes; the kernel reads it when the operation is submitted.
    peer: Box<socket2::SockAddr>,
    origin: Instant,
    queued: u32,
}

impl Ring {
    /// `origin` is the zero of [`Ring::now_ns`]; `peer` is where [`Ring::connect`] connects to.
    pub fn new(origin: Instant, peer: SocketAddr) -> io::Result<Ring> {
        let build = |no_sqarray: bool| {
            let mut builder = IoUring::builder();
            builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_coop_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all()
                .setup_cqsize(CQ_ENTRIES)
                .dontfork();
            if no_sqarray {
                builder.setup_no_sqarray();
            }
            builder.build(SQ_ENTRIES)
        };
        // NO_SQARRAY came with 6.6.
        let ring: IoUring = build(true).or_else(|_| build(false))?;
        let buffers = ProvidedBuffers::new(BUFFER_ENTRIES, BUFFER_BYTES)?;
        // SAFETY: the address is page-aligned memory of the stated number of entries that outlives the ring.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(buffers.ring_address(), buffers.entries(), BUFFER_GROUP, 0)
        }?;
        Ok(Ring { ring, buffers, sending: Vec::new(), peer: Box::new(peer.into()), origin, queued: 0 })
    }

    /// Monotonic, since `origin`.
    pub fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Operations pushed and not yet submitted. The caller submits before they come to [`SQ_ENTRIES`].
    pub fn queued(&self) -> u32 {
        self.queued
    }

    fn push(&mut self, entry: squeue::Entry, token: Token) {
        let entry = entry.user_data(token.to_u64());
        // SAFETY: every pointer in an entry stays valid until its completion: `peer` lives as long as the ring, sent
        // bytes are kept in `sending`.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the caller submits before the queue is full");
        self.queued += 1;
    }

    /// Multishot: every completion with `result >= 0` is a new socket, until one says `more == false`.
    pub fn accept(&mut self, token: Token, listener: RawFd) {
        self.push(opcode::AcceptMulti::new(Fd(listener)).flags(libc::SOCK_CLOEXEC).build(), token);
    }

    pub fn connect(&mut self, token: Token, socket: RawFd) {
        let entry = opcode::Connect::new(Fd(socket), self.peer.as_ptr().cast(), self.peer.len()).build();
        self.push(entry, token);
    }

    /// Multishot, into the ring's own buffers. Ends with `more == false`: an error, end of stream (0) or -ENOBUFS.
    pub fn receive(&mut self, token: Token, socket: RawFd) {
        self.push(opcode::RecvMulti::new(Fd(socket), BUFFER_GROUP).build(), token);
    }

    /// The bytes from `from` on, all of them unless the connection ends. At most one a slot; [`Ring::sent`] gives the
    /// buffer back once it completed.
    pub fn send(&mut self, token: Token, socket: RawFd, bytes: Vec<u8>) {
        let slot = token.slot as usize;
        if self.sending.len() <= slot {
            self.sending.resize_with(slot + 1, || None);
        }
        assert!(self.sending[slot].is_none(), "one send at a time a slot");
        let bytes = self.sending[slot].insert(bytes);
        // WAITALL: the kernel finishes what the socket's buffer could not take at once.
        let entry = opcode::Send::new(Fd(socket), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.push(entry, token);
    }

    /// The buffer of the slot's completed send.
    pub fn sent(&mut self, slot: u32) -> Vec<u8> {
        self.sending[slot as usize].take().expect("a send keeps its buffer")
    }

    /// Ends both directions; operations under way on the socket complete. At once, not through the ring: there a kernel
    /// worker would look the descriptor up later, when it may already be another connection's.
    pub fn shutdown(&self, socket: RawFd) {
        // SAFETY: plain system call on an open descriptor of the caller's. It fails only when the peer has gone, and then
        // the operations complete by themselves.
        unsafe { libc::shutdown(socket, libc::SHUT_RDWR) };
    }

    pub fn close(&mut self, token: Token, socket: RawFd) {
        self.push(opcode::Close::new(Fd(socket)).build(), token);
    }

    /// Asks for `target` to end early; it still completes by itself.
    pub fn cancel(&mut self, token: Token, target: Token) {
        self.push(opcode::AsyncCancel::new(target.to_u64()).build(), token);
    }

    /// Hands over what is queued and returns at once.
    pub fn submit(&mut self) {
        self.queued = 0;
        Self::check(self.ring.submit());
    }

    /// One enter: hands over what is queued, waits until something completes or `wait_ns` have passed, and appends
    /// what completed.
    pub fn turn(&mut self, wait_ns: u64, completions: &mut Vec<Completion>) {
        let wait_ns = if self.ring.completion().is_empty() { wait_ns } else { 0 };
        self.queued = 0;
        let timeout = Timespec::new().sec(wait_ns / 1_000_000_000).nsec((wait_ns % 1_000_000_000) as u32);
        let args = SubmitArgs::new().timespec(&timeout);
        // A want of 1 with a zero timeout is "do not wait, but do run deferred work": without it the library leaves
        // GETEVENTS out.
        Self::check(self.ring.submitter().submit_with_args(1, &args));
        self.take(completions);
    }

    /// As [`Ring::turn`] without waiting, and without the cost of a timer.
    pub fn poll(&mut self, completions: &mut Vec<Completion>) {
        const GETEVENTS: u32 = 1;
        let queued = std::mem::take(&mut self.queued);
        // SAFETY: no pointer is passed (no signal set); what is submitted was pushed under `push`'s contract.
        let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, GETEVENTS, None) };
        Self::check(entered);
        self.take(completions);
    }

    fn take(&mut self, completions: &mut Vec<Completion>) {
        for cqe in self.ring.completion() {
            let buffer = cqueue::buffer_select(cqe.flags());
            if buffer.is_some() {
                self.buffers.lend();
            }
            let token = Token::from_u64(cqe.user_data());
            completions.push(Completion { token, result: cqe.result(), more: cqueue::more(cqe.flags()), buffer });
        }
    }

    /// True when a turn would find something: looks at shared memory only.
    pub fn is_ready(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.ring.submission().taskrun()
    }

    fn check(entered: io::Result<usize>) {
        if let Err(error) = entered {
            match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                _ => panic!("io_uring_enter failed in a way that no retry can mend: {error}"),
            }
        }
    }

    /// The bytes of a completion's buffer.
    pub fn buffer(&self, id: u16, len: usize) -> &[u8] {
        self.buffers.bytes(id, len)
    }

    /// Gives a buffer back to the kernel.
    pub fn release(&mut self, id: u16) {
        self.buffers.release(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_kernel() {
        let token = Token::new(Kind::Send, 0xAB_CDEF, u32::MAX - 1);
        assert_eq!(Token::from_u64(token.to_u64()), token);
    }
}
