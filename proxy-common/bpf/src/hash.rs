//! Hash maps by bpf(2): one call for one element, or one call for many.
//!
//! Writes are counted, so that tests can check that unchanged elements are not written again.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, OwnedFd};

use proxy_common::Plain;

use super::sys;

/// Elements per batch call: enough to make the cost of the call negligible, and few enough for a short
/// buffer.
const BATCH: usize = 4096;

/// The kernel's error where a type of map has no batch operations. Tries have them since Linux 5.14.
const ENOTSUPP: i32 = 524;

/// A hash map, LRU hash map or LPM trie of the agent.
pub struct HashTable<K, V> {
    fd: OwnedFd,
    capacity: u32,
    writes: Cell<u64>,
    types: PhantomData<(K, V)>,
}

impl<K: Plain, V: Plain> HashTable<K, V> {
    /// Takes a map. Fails if its key or value size is wrong.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let info = sys::map_info(fd.as_fd())?;
        if (info.key_size as usize, info.value_size as usize) != (size_of::<K>(), size_of::<V>()) {
            let message = format!(
                "keys and values have {} and {} bytes",
                info.key_size, info.value_size
            );
            return Err(io::Error::other(message));
        }
        Ok(Self {
            fd,
            capacity: info.max_entries,
            writes: Cell::new(0),
            types: PhantomData,
        })
    }

    /// A second handle of the same map, for another thread.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
            capacity: self.capacity,
            writes: Cell::new(0),
            types: PhantomData,
        })
    }

    /// The most elements that the map may hold.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The number of elements written or removed through this value.
    pub fn writes(&self) -> u64 {
        self.writes.get()
    }

    fn note_writes(&self, count: usize) {
        self.writes.set(self.writes.get() + count as u64);
    }

    /// Reads an element.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = vec![0_u8; size_of::<V>()];
        match sys::map_lookup(self.fd.as_fd(), key.as_bytes(), &mut value) {
            Ok(()) => Ok(V::from_bytes(&value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes an element.
    pub fn set(&self, key: &K, value: &V) -> io::Result<()> {
        self.note_writes(1);
        sys::map_update(self.fd.as_fd(), key.as_bytes(), value.as_bytes())
    }

    /// Removes an element. A missing element is no error.
    pub fn remove(&self, key: &K) -> io::Result<()> {
        self.note_writes(1);
        match sys::map_delete(self.fd.as_fd(), key.as_bytes()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }

    /// Writes many elements. An error has the index of the element that failed; the elements before it are
    /// written.
    pub fn set_all(&self, elements: &[(K, V)]) -> Result<(), (usize, io::Error)> {
        if let [(key, value)] = elements {
            return self.set(key, value).map_err(|error| (0, error));
        }
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (chunk, elements) in elements.chunks(BATCH).enumerate() {
            keys.clear();
            values.clear();
            for (key, value) in elements {
                keys.extend_from_slice(key.as_bytes());
                values.extend_from_slice(value.as_bytes());
            }
            self.note_writes(elements.len());
            let (done, result) =
                sys::map_update_batch(self.fd.as_fd(), &keys, &values, elements.len() as u32);
            result.map_err(|error| (chunk * BATCH + done as usize, error))?;
        }
        Ok(())
    }

    /// Removes many elements, each of which may be missing.
    pub fn remove_all(&self, elements: &[K]) -> Result<(), (usize, io::Error)> {
        for (index, key) in elements.iter().enumerate() {
            self.remove(key).map_err(|error| (index, error))?;
        }
        Ok(())
    }

    /// Calls `each` with every element, in batches.
    pub fn for_each(&self, mut each: impl FnMut(K, V)) -> io::Result<()> {
        let mut keys = vec![0_u8; size_of::<K>() * BATCH];
        let mut values = vec![0_u8; size_of::<V>() * BATCH];
        let mut position = Vec::new();
        loop {
            let batch = sys::map_lookup_batch(
                self.fd.as_fd(),
                &mut position,
                size_of::<K>(),
                &mut keys,
                &mut values,
                BATCH as u32,
            );
            let (count, end) = match batch {
                Err(error) if error.raw_os_error() == Some(ENOTSUPP) => return self.for_each_singly(each),
                batch => batch?,
            };
            let found = keys
                .chunks_exact(size_of::<K>())
                .zip(values.chunks_exact(size_of::<V>()));
            for (key, value) in found.take(count as usize) {
                if let (Some(key), Some(value)) = (K::from_bytes(key), V::from_bytes(value)) {
                    each(key, value);
                }
            }
            if end {
                return Ok(());
            }
        }
    }

    /// As [`Self::for_each`], one element at a time.
    fn for_each_singly(&self, mut each: impl FnMut(K, V)) -> io::Result<()> {
        let (mut key, mut next) = (None, vec![0_u8; size_of::<K>()]);
        while sys::map_next_key(self.fd.as_fd(), key.as_deref(), &mut next)? {
            // An element that was removed meanwhile is left out.
            if let Some(found) = K::from_bytes(&next)
                && let Some(value) = self.get(&found)?
            {
                each(found, value);
            }
            key = Some(next.clone());
        }
        Ok(())
    }

    /// The number of elements, by a batch walk.
    pub fn count(&self) -> io::Result<u64> {
        let mut count = 0;
        self.for_each(|_, _| count += 1)?;
        Ok(count)
    }
}
