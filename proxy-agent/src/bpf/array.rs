//! Array maps that the agent writes by stores to memory in place of system calls.
//!
//! A store into a mmapped array takes less than a nanosecond, a bpf(2) call about a thousand. Elements are
//! written word by word in ascending order. A later store or system call publishes them to readers (see
//! `apply`).

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, OwnedFd};

use proxy_common::Plain;

use super::sys::{self, SharedWords};

/// The size of the largest element.
const LARGEST: usize = 1280;

/// A mmapped array map of `T`.
pub struct MappedArray<T> {
    words: SharedWords,
    len: u32,
    element: PhantomData<T>,
}

impl<T: Plain> MappedArray<T> {
    const WORDS: usize = size_of::<T>() / 8;

    /// Maps an array map.
    pub fn new(map: &OwnedFd) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let info = sys::map_info(map.as_fd())?;
        if info.value_size as usize != size_of::<T>() {
            let message = format!(
                "the values have {} bytes instead of {}",
                info.value_size,
                size_of::<T>()
            );
            return Err(io::Error::other(message));
        }
        let words = SharedWords::map(map.as_fd(), info.max_entries as usize * size_of::<T>())?;
        Ok(Self {
            words,
            len: info.max_entries,
            element: PhantomData,
        })
    }

    /// The number of elements.
    pub fn capacity(&self) -> u32 {
        self.len
    }

    /// Reads an element.
    pub fn get(&self, index: u32) -> Option<T> {
        if index >= self.len {
            return None;
        }
        let start = index as usize * Self::WORDS;
        if Self::WORDS == 1 {
            return T::from_bytes(&self.words.load(start).to_ne_bytes());
        }
        const { assert!(size_of::<T>() <= LARGEST) };
        let mut bytes = [0_u8; LARGEST];
        for word in 0..Self::WORDS {
            bytes[word * 8..word * 8 + 8].copy_from_slice(&self.words.load(start + word).to_ne_bytes());
        }
        T::from_bytes(&bytes)
    }

    /// Writes an element; an index beyond the end is ignored (allocators never give one out).
    pub fn set(&self, index: u32, value: &T) {
        if index >= self.len {
            return;
        }
        let start = index as usize * Self::WORDS;
        for (word, bytes) in value.as_bytes().chunks_exact(8).enumerate() {
            let mut buffer = [0_u8; 8];
            buffer.copy_from_slice(bytes);
            self.words.store(start + word, u64::from_ne_bytes(buffer));
        }
    }

    /// Copies all elements of a smaller array.
    pub fn copy_from(&self, other: &Self) {
        for (index, word) in other
            .words
            .words()
            .iter()
            .enumerate()
            .take(self.words.words().len())
        {
            self.words
                .store(index, word.load(std::sync::atomic::Ordering::Relaxed));
        }
    }
}
