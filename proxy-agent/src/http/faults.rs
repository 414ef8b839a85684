//! The faults of ports, for `millrace status`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::trouble::{Remark, Trouble};

/// Faults by their subject; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<BTreeMap<String, Remark>>>);

impl Faults {
    /// Notes a fault of `subject`; returns true if the fault is new.
    pub fn set(&self, code: Trouble, subject: &str, message: String) -> bool {
        let mut faults = self.lock();
        let fault = Remark { code, message };
        let is_new = faults.get(subject) != Some(&fault);
        faults.insert(subject.to_owned(), fault);
        is_new
    }

    /// Removes the fault of `subject`.
    pub fn clear(&self, subject: &str) {
        self.lock().remove(subject);
    }

    /// All faults, as pairs of the subject and the remark.
    pub fn list(&self) -> Vec<(String, Remark)> {
        let faults = self.lock();
        let pairs = faults.iter();
        pairs
            .map(|(subject, fault)| (subject.clone(), fault.clone()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Remark>> {
        // Every change is one call, so a panic elsewhere leaves no half-written state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_news_once() {
        let faults = Faults::default();
        let set = |message: &str| faults.set(Trouble::PortUnavailable, "port 1", message.to_owned());
        assert!(set("in use"));
        assert!(!set("in use"));
        assert!(set("not allowed"));
        let fault = Remark::new(Trouble::PortUnavailable, "not allowed");
        assert_eq!(faults.list(), [("port 1".to_owned(), fault)]);
        faults.clear("port 1");
        assert!(faults.list().is_empty());
    }
}
