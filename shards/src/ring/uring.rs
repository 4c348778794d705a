//! The ring behind the seam: one io_uring, owned by one thread.
//!
//! Flags, sizes and habits are those of ARCHITECTURE.md ("A shard"). Buffers that travel with an operation are kept
//! here, by token index, until its completion hands them back, so nobody can free or move what the kernel writes to.

use std::io;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Instant;

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::buffers::ProvidedBuffers;
use super::{Completion, DiskIo, Io, Op, Payload, Token, TokenKind};

pub const SQ_ENTRIES: u32 = 1024;
pub const CQ_ENTRIES: u32 = 4096;
pub const BUFFER_ENTRIES: u16 = 1024;
pub const BUFFER_BYTES: usize = 16 * 1024;
const BUFFER_GROUP: u16 = 0;
/// FSYNC and buffered fallbacks run on kernel workers; a shard never needs more.
const WORKERS_MAX: [u32; 2] = [4, 4];

pub struct Ring {
    ring: IoUring,
    /// Dropped after `ring`: the kernel is done with it by then.
    buffers: ProvidedBuffers,
    sending: Vec<Option<Vec<u8>>>,
    receiving: Vec<Option<Vec<u8>>>,
    origin: Instant,
    now_ns: u64,
}

impl Ring {
    /// `origin` is the process's zero of monotonic time, the same for all shards.
    pub fn new(origin: Instant) -> io::Result<Ring> {
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
        let _ = ring.submitter().register_iowq_max_workers(&mut WORKERS_MAX.clone());
        let mut this = Ring { ring, buffers, sending: Vec::new(), receiving: Vec::new(), origin, now_ns: 0 };
        this.read_clock();
        Ok(this)
    }

    /// Keeps this ring's kernel workers on one core, so that a shard's flushes do not wander.
    pub fn pin_workers(&self, core: usize) -> io::Result<()> {
        // SAFETY: an all-zero cpu_set_t is the empty set; `core` is checked against its size.
        let set = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            if core >= libc::CPU_SETSIZE as usize {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            libc::CPU_SET(core, &mut set);
            set
        };
        self.ring.submitter().register_iowq_aff(&set)
    }

    fn read_clock(&mut self) {
        self.now_ns = self.origin.elapsed().as_nanos() as u64;
    }

    fn keep(slots: &mut Vec<Option<Vec<u8>>>, index: u32, bytes: Vec<u8>) -> &mut Vec<u8> {
        let index = index as usize;
        if slots.len() <= index {
            slots.resize_with(index + 1, || None);
        }
        let slot = &mut slots[index];
        assert!(slot.is_none(), "one such operation at a time per token index");
        slot.insert(bytes)
    }

    fn entry(&mut self, token: Token, op: Op) -> squeue::Entry {
        let entry = match op {
            Op::Accept { listener } => opcode::AcceptMulti::new(Fd(listener)).flags(libc::SOCK_CLOEXEC).build(),
            Op::Receive { socket } => opcode::RecvMulti::new(Fd(socket), BUFFER_GROUP).build(),
            Op::ReceiveInto { socket, bytes } => {
                let bytes = Self::keep(&mut self.receiving, token.index, bytes);
                let spare = bytes.spare_capacity_mut();
                opcode::Recv::new(Fd(socket), spare.as_mut_ptr().cast(), spare.len().min(1 << 30) as u32).build()
            }
            Op::Send { socket, bytes, from } => {
                let bytes = Self::keep(&mut self.sending, token.index, bytes);
                let rest = &bytes[from..];
                // WAITALL: the kernel finishes what the socket's buffer could not take at once.
                opcode::Send::new(Fd(socket), rest.as_ptr(), rest.len() as u32)
                    .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
                    .build()
            }
            Op::Close { socket } => opcode::Close::new(Fd(socket)).build(),
            Op::Shutdown { socket } => opcode::Shutdown::new(Fd(socket), libc::SHUT_WR).build(),
            Op::Cancel { target } => opcode::AsyncCancel::new(target.to_u64()).build(),
            Op::Write(DiskIo { file, offset_bytes, pointer, len_bytes, dsync }) => {
                let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                opcode::Write::new(Fd(file), pointer.cast_const(), len_bytes)
                    .offset(offset_bytes)
                    .rw_flags(flags as _)
                    .build()
            }
            Op::Flush { file } => opcode::Fsync::new(Fd(file)).flags(FsyncFlags::DATASYNC).build(),
            Op::Read(DiskIo { file, offset_bytes, pointer, len_bytes, .. }) => {
                opcode::Read::new(Fd(file), pointer, len_bytes).offset(offset_bytes).build()
            }
            Op::Wake { eventfd, bytes } => {
                let bytes = Self::keep(&mut self.receiving, token.index, bytes);
                let spare = bytes.spare_capacity_mut();
                assert!(spare.len() >= 8, "an eventfd is read 8 bytes at a time");
                opcode::Read::new(Fd(eventfd), spare.as_mut_ptr().cast(), 8).offset(u64::MAX).build()
            }
        };
        entry.user_data(token.to_u64())
    }

    fn enter(&mut self, wait_ns: u64) {
        let timeout = Timespec::new().sec(wait_ns / 1_000_000_000).nsec((wait_ns % 1_000_000_000) as u32);
        let args = SubmitArgs::new().timespec(&timeout);
        // A want of 1 with a zero timeout is "do not wait, but do run deferred work": without it the library leaves
        // GETEVENTS out.
        match self.ring.submitter().submit_with_args(1, &args) {
            Ok(_) => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                _ => panic!("io_uring_enter failed in a way that no retry can mend: {error}"),
            },
        }
    }
}

impl Io for Ring {
    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn push(&mut self, token: Token, op: Op) {
        let entry = self.entry(token, op);
        loop {
            // SAFETY: every pointer in the entry stays valid until its completion: travelling buffers are kept in
            // `sending` and `receiving`, disk buffers by the log (`DiskIo`'s contract).
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.enter(0);
        }
    }

    fn turn(&mut self, deadline_ns: u64, completions: &mut Vec<Completion>) {
        let wait_ns = if self.ring.completion().is_empty() { deadline_ns.saturating_sub(self.now_ns) } else { 0 };
        self.enter(wait_ns);
        self.read_clock();
        let Ring { ring, buffers, sending, receiving, .. } = self;
        for cqe in ring.completion() {
            let token = Token::from_u64(cqe.user_data());
            let result = cqe.result();
            let payload = match token.kind {
                TokenKind::Receive => match cqueue::buffer_select(cqe.flags()) {
                    Some(id) => {
                        buffers.lend();
                        Payload::Buffer(id)
                    }
                    None => Payload::None,
                },
                TokenKind::Send => {
                    Payload::Bytes(sending[token.index as usize].take().expect("a send keeps its buffer"))
                }
                TokenKind::ReceiveInto | TokenKind::Wake => {
                    let mut bytes = receiving[token.index as usize].take().expect("a receive keeps its buffer");
                    if result > 0 {
                        let len = bytes.len() + result as usize;
                        assert!(len <= bytes.capacity(), "the kernel was told how much room there is");
                        // SAFETY: the kernel wrote `result` bytes behind the old length, within the capacity.
                        unsafe { bytes.set_len(len) };
                    }
                    Payload::Bytes(bytes)
                }
                _ => Payload::None,
            };
            completions.push(Completion { token, result, more: cqueue::more(cqe.flags()), payload });
        }
    }

    fn buffer(&self, id: u16, len: usize) -> &[u8] {
        self.buffers.bytes(id, len)
    }

    fn release(&mut self, id: u16) {
        self.buffers.release(id);
    }

    fn peer(&mut self, socket: RawFd) -> Option<IpAddr> {
        // SAFETY: the descriptor is an open socket of ours for as long as the borrow lasts.
        let socket = unsafe { BorrowedFd::borrow_raw(socket) };
        match socket2::SockRef::from(&socket).peer_addr().ok()?.as_socket()?.ip() {
            // An IPv4 client of a dual-stack socket is the same client.
            IpAddr::V6(address) => Some(address.to_canonical()),
            address => Some(address),
        }
    }

    fn open_for_reading(&mut self, path: &Path) -> io::Result<OwnedFd> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = std::fs::OpenOptions::new();
        options.read(true);
        // Not every file system takes O_DIRECT.
        match options.clone().custom_flags(libc::O_DIRECT).open(path) {
            Ok(file) => Ok(file.into()),
            Err(_) => Ok(options.open(path)?.into()),
        }
    }

    fn buffers_free(&self) -> usize {
        self.buffers.free()
    }
}

/// For tests and the wake path: an eventfd that other threads ring.
pub fn eventfd() -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: plain system call; a non-negative answer is a descriptor that nobody else owns.
    let fd: RawFd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    fn until(ring: &mut Ring, kind: TokenKind) -> Completion {
        let mut completions = Vec::new();
        for _ in 0..100 {
            let deadline_ns = ring.now_ns() + 100_000_000;
            ring.turn(deadline_ns, &mut completions);
            if let Some(at) = completions.iter().position(|c| c.token.kind == kind) {
                return completions.swap_remove(at);
            }
        }
        panic!("no completion of {kind:?} within ten seconds");
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn bytes_come_in_through_a_ring_buffer_and_go_out_by_a_send() {
        let mut ring = Ring::new(Instant::now()).expect("io_uring works on this machine");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        ring.push(Token::new(TokenKind::Accept, 0, 0), Op::Accept { listener: listener.as_raw_fd() });
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let accepted = until(&mut ring, TokenKind::Accept);
        assert!(accepted.result >= 0 && accepted.more);
        let socket = accepted.result;

        ring.push(Token::new(TokenKind::Receive, 1, 5), Op::Receive { socket });
        client.write_all(b"hello").expect("sent");
        let received = until(&mut ring, TokenKind::Receive);
        assert_eq!(received.token, Token::new(TokenKind::Receive, 1, 5));
        let Payload::Buffer(id) = received.payload else { panic!("no buffer") };
        assert_eq!(ring.buffer(id, received.result as usize), b"hello");
        assert_eq!(ring.buffers_free(), usize::from(BUFFER_ENTRIES) - 1);
        ring.release(id);

        ring.push(Token::new(TokenKind::Send, 1, 5), Op::Send { socket, bytes: b"__world".to_vec(), from: 2 });
        assert_eq!(until(&mut ring, TokenKind::Send).result, 5);
        let mut answer = [0; 5];
        client.read_exact(&mut answer).expect("received");
        assert_eq!(&answer, b"world");
        ring.push(Token::new(TokenKind::Close, 1, 5), Op::Close { socket });
        until(&mut ring, TokenKind::Close);
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn a_turn_ends_at_its_deadline_when_nothing_happens() {
        let mut ring = Ring::new(Instant::now()).expect("io_uring works on this machine");
        let start_ns = ring.now_ns();
        ring.turn(start_ns + 20_000_000, &mut Vec::new());
        assert!(ring.now_ns() >= start_ns + 19_000_000);
    }
}
