//! The identity of an object, in 16 bytes.
//!
//! Kind, namespace and name identify an object, and every table and every source needs that identity. The
//! strings in each of them would cost more memory than the objects. An [`ObjectId`] is their keyed 128-bit
//! hash instead. Each process draws the key at random, so an attacker that chooses names cannot make two ids
//! equal. By chance, two of a million objects have the same id with a probability of 10⁻²⁶. So the code
//! compares ids and never checks them against the names.
//!
//! Invariant: an id has no meaning outside the process that made it. The agent never writes it to a map, a
//! pin or a file.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::OnceLock;

use siphasher::sip128::{Hasher128, SipHasher13};

use super::Kind;

/// The bits of an id that hold its kind.
const KIND_BITS: u64 = 0b111;
const _: () = assert!(Kind::ALL.len() <= KIND_BITS as usize + 1);

/// The identity of an object: a keyed hash of its kind, namespace and name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectId {
    // Two words instead of a u128, which would align every table entry to 16 bytes.
    high: u64,
    low: u64,
}

/// A map keyed by objects. An id is already a hash, so the map does not hash it again.
pub type ObjectIdMap<V> = HashMap<ObjectId, V, BuildHasherDefault<IdHasher>>;
/// A set of objects.
pub type ObjectIdSet = HashSet<ObjectId, BuildHasherDefault<IdHasher>>;

impl ObjectId {
    /// The identity of the object of `kind` called `namespace/name`; `namespace` is empty for a kind without
    /// namespaces.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        static KEY: OnceLock<SipHasher13> = OnceLock::new();
        let mut hasher = *KEY.get_or_init(|| {
            // `RandomState` is the access of the standard library to the system's random numbers.
            let random = || RandomState::new().hash_one(0u8);
            SipHasher13::new_with_keys(random(), random())
        });
        hasher.write_u8(kind as u8);
        hasher.write(namespace.as_bytes());
        // No namespace contains a slash, so two pairs never have the same text.
        hasher.write_u8(b'/');
        hasher.write(name.as_bytes());
        let hash = hasher.finish128();
        // Three bits of 128 hold the kind.
        Self {
            high: hash.h1 & !KIND_BITS | kind as u64,
            low: hash.h2,
        }
    }

    /// The smallest id.
    pub const LEAST: Self = Self { high: 0, low: 0 };

    /// The kind of the object.
    pub const fn kind(self) -> Kind {
        Kind::ALL[(self.high & KIND_BITS) as usize]
    }

    /// A hash for a table that is indexed by ids.
    pub const fn hash(self) -> u64 {
        self.low
    }
}

impl Hash for ObjectId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.low);
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectId({:016x}{:016x})", self.high, self.low)
    }
}

/// Passes an [`ObjectId`] through unchanged.
#[derive(Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // `ObjectId` writes one u64 and nothing else; this keeps other keys correct.
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_name_is_the_same_object() {
        assert_eq!(
            ObjectId::new(Kind::Service, "shop", "cart"),
            ObjectId::new(Kind::Service, "shop", "cart")
        );
    }

    #[test]
    fn kind_namespace_and_name_all_count() {
        let id = ObjectId::new(Kind::Service, "a", "b");
        assert_ne!(id, ObjectId::new(Kind::EndpointSlice, "a", "b"));
        assert_ne!(id, ObjectId::new(Kind::Service, "b", "a"));
        assert_ne!(id, ObjectId::new(Kind::Service, "", "ab"));
        for kind in Kind::ALL {
            assert_eq!(ObjectId::new(kind, "a", "b").kind(), kind);
        }
    }
}
