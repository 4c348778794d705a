//! A byte buffer that starts at a 4 KiB boundary, as O_DIRECT asks, and does not move while an operation uses it.
//!
//! The one place of the log with `unsafe`. A buffer grows by moving to a larger allocation, like a `Vec`; the writer
//! never grows one that an operation refers to.

use super::{PAGE_BYTES, pages};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Invariant: every byte below `capacity` is initialised (allocations are zeroed), so any length may be shown.
pub struct AlignedBuf {
    start: NonNull<u8>,
    capacity: usize,
    len: usize,
}

// SAFETY: the buffer owns its allocation and has no interior mutability; it is a `Vec<u8>` with another alignment.
unsafe impl Send for AlignedBuf {}
// SAFETY: as above; `&AlignedBuf` only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    pub fn with_capacity(bytes: usize) -> AlignedBuf {
        let capacity = pages(bytes.max(1));
        let layout = layout(capacity);
        // SAFETY: the layout has a non-zero size.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        AlignedBuf { start, capacity, len: 0 }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Shows `len` bytes; those not written before are zero or old contents of this buffer.
    pub fn set_len(&mut self, len: usize) {
        self.reserve(len.saturating_sub(self.len));
        self.len = len;
    }

    pub fn reserve(&mut self, more: usize) {
        let need = self.len + more;
        if need > self.capacity {
            let mut larger = AlignedBuf::with_capacity(need.max(self.capacity * 2));
            larger.len = self.len;
            larger.copy_from_slice(self);
            *self = larger;
        }
    }

    #[inline]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        let at = self.len;
        self.len += bytes.len();
        self[at..].copy_from_slice(bytes);
    }

    /// Appends zeros until the length is a multiple of `to`.
    pub fn pad_to(&mut self, to: usize) {
        let at = self.len;
        self.set_len(at.next_multiple_of(to));
        self[at..].fill(0);
    }
}

impl std::ops::Deref for AlignedBuf {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: `len <= capacity` bytes from `start` are allocated and initialised (type invariant).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl std::ops::DerefMut for AlignedBuf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `with_capacity` with the same layout, freed once.
        unsafe { dealloc(self.start.as_ptr(), layout(self.capacity)) }
    }
}

impl rkyv::ser::Positional for AlignedBuf {
    fn pos(&self) -> usize {
        self.len
    }
}

impl<E> rkyv::ser::Writer<E> for AlignedBuf {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), E> {
        self.extend_from_slice(bytes);
        Ok(())
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} of {} bytes)", self.len, self.capacity)
    }
}

fn layout(capacity: usize) -> Layout {
    Layout::from_size_align(capacity, PAGE_BYTES).expect("a page-aligned capacity below isize::MAX")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_keeps_its_bytes_and_alignment_when_it_grows() {
        let mut buf = AlignedBuf::with_capacity(10);
        for n in 0..10_000u32 {
            buf.extend_from_slice(&n.to_le_bytes());
        }
        assert_eq!(buf.as_ptr() as usize % PAGE_BYTES, 0);
        assert_eq!(buf[4 * 9_999..], 9_999u32.to_le_bytes());
        buf.extend_from_slice(&[1]);
        buf.pad_to(8);
        assert_eq!((buf.len(), buf[40_000], buf[40_007]), (40_008, 1, 0));
    }
}
