//! Memory the kernel shares with us: the provided-buffer ring and the buffers behind it.
//!
//! One anonymous mapping, page-aligned, freed on drop. A buffer is the kernel's until a completion names it, ours until
//! [`ProvidedBuffers::release`].

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

pub struct ProvidedBuffers {
    /// `entries` ring entries, then (page-aligned) `entries` buffers.
    memory: NonNull<u8>,
    memory_bytes: usize,
    buffers_at: usize,
    entries: u16,
    buffer_bytes: usize,
    tail: u16,
    lent: usize,
}

const PAGE: usize = 4096;

impl ProvidedBuffers {
    /// `entries` must be a power of two of at most 32,768. The memory becomes resident as the kernel uses it.
    pub fn new(entries: u16, buffer_bytes: usize) -> io::Result<ProvidedBuffers> {
        assert!(entries.is_power_of_two() && entries <= 1 << 15, "the kernel takes powers of two up to 32,768");
        let ring_bytes = (usize::from(entries) * size_of::<BufRingEntry>()).next_multiple_of(PAGE);
        let memory_bytes = ring_bytes + usize::from(entries) * buffer_bytes;
        // SAFETY: an anonymous private mapping of a non-zero size, at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                memory_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(address.cast::<u8>()).expect("mmap never answers null without MAP_FIXED");
        let mut this =
            ProvidedBuffers { memory, memory_bytes, buffers_at: ring_bytes, entries, buffer_bytes, tail: 0, lent: 0 };
        this.lent = usize::from(entries);
        for id in 0..entries {
            this.release(id);
        }
        Ok(this)
    }

    pub fn ring_address(&self) -> u64 {
        self.memory.as_ptr() as u64
    }

    pub fn entries(&self) -> u16 {
        self.entries
    }

    /// A completion named a buffer: it is ours until released.
    pub fn lend(&mut self) {
        self.lent += 1;
    }

    /// The first `len` bytes of a lent buffer.
    pub fn bytes(&self, id: u16, len: usize) -> &[u8] {
        assert!(id < self.entries && len <= self.buffer_bytes, "the kernel named a buffer we never gave it");
        // SAFETY: in bounds of the mapping by the assertion; the kernel does not write to a buffer that it has handed
        // out until `release` puts it back, which needs `&mut self`.
        unsafe {
            std::slice::from_raw_parts(
                self.memory.as_ptr().add(self.buffers_at + usize::from(id) * self.buffer_bytes),
                len,
            )
        }
    }

    pub fn release(&mut self, id: u16) {
        assert!(id < self.entries && self.lent > 0, "only a lent buffer can be released");
        self.lent -= 1;
        let slot = usize::from(self.tail & (self.entries - 1));
        let address = self.ring_address() + (self.buffers_at + usize::from(id) * self.buffer_bytes) as u64;
        // SAFETY: the slot is in bounds (masked by a power of two), and beyond the tail the kernel has seen, so it
        // does not read it until the store of the new tail below.
        let entry = unsafe { &mut *self.memory.as_ptr().cast::<BufRingEntry>().add(slot) };
        entry.set_addr(address);
        entry.set_len(self.buffer_bytes as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry's reserved field, aligned for u16, shared with the kernel, which
        // only reads it; the release order makes the entry visible before it.
        unsafe {
            let tail = BufRingEntry::tail(self.memory.as_ptr().cast::<BufRingEntry>());
            AtomicU16::from_ptr(tail.cast_mut()).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for ProvidedBuffers {
    fn drop(&mut self) {
        // SAFETY: our own mapping, with its own length; the ring that used it is dropped before (field order in
        // `Ring`).
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.memory_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_is_given_to_the_kernel_at_first_and_comes_back() {
        let mut buffers = ProvidedBuffers::new(8, 4096).expect("memory");
        assert_eq!(buffers.lent, 0);
        buffers.lend();
        assert_eq!(buffers.lent, 1);
        buffers.release(3);
        assert_eq!(buffers.lent, 0);
        assert_eq!(buffers.bytes(7, 4096), &[0u8; 4096][..]);
    }
}
