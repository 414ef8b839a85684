//! What is wrong with ports, for `millrace status`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Faults by what they are about; clones show the same ones.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<BTreeMap<String, String>>>);

impl Faults {
    /// Notes what is wrong with `subject`; true if that is news.
    pub fn set(&self, subject: &str, message: String) -> bool {
        let mut faults = self.lock();
        let news = faults.get(subject) != Some(&message);
        faults.insert(subject.to_owned(), message);
        news
    }

    /// Nothing is wrong with `subject` any more.
    pub fn clear(&self, subject: &str) {
        self.lock().remove(subject);
    }

    /// Everything that is wrong, as pairs of what and how.
    pub fn list(&self) -> Vec<(String, String)> {
        let faults = self.lock();
        let pairs = faults.iter();
        pairs
            .map(|(subject, message)| (subject.clone(), message.clone()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        // Every change is one call, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_news_once() {
        let faults = Faults::default();
        assert!(faults.set("port 1", "in use".to_owned()));
        assert!(!faults.set("port 1", "in use".to_owned()));
        assert!(faults.set("port 1", "not allowed".to_owned()));
        assert_eq!(faults.list(), [("port 1".to_owned(), "not allowed".to_owned())]);
        faults.clear("port 1");
        assert!(faults.list().is_empty());
    }
}
