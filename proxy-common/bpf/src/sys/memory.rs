//! Array maps in the agent's own memory: mmap(2).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// The words of a mmapped array map, shared with the kernel.
pub struct SharedWords {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the words are atomics in memory that lives as long as the value.
unsafe impl Send for SharedWords {}

impl SharedWords {
    /// Maps the first `bytes` of an array map made with `BPF_F_MMAPABLE`. `bytes` is a multiple of eight.
    pub fn map(map: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping; the kernel checks that the map is large enough.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self {
            start,
            words: bytes / 8,
        })
    }

    /// The words. Kernel programs read them at any time, hence atomics.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has this length, is page-aligned, zero-initialised by the kernel, and lives as
        // long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }

    /// Stores a word so that a reader that sees it also sees all earlier stores.
    pub fn store(&self, index: usize, value: u64) {
        self.words()[index].store(value, Ordering::Release);
    }

    /// Loads a word.
    pub fn load(&self, index: usize) -> u64 {
        self.words()[index].load(Ordering::Acquire)
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, of the same length; `words` cannot outlive `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.words * 8) };
    }
}
