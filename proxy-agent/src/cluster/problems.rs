//! What is wrong with the input, by object, as `millrace status` shows it.
//!
//! One bad field spoils the place it stands in and nothing else, so the object goes on being served and its problems stand
//! here until a good version of it arrives or it goes. Problems of files and documents, which have no object, are
//! kept beside them under their own names.

use std::collections::BTreeMap;

use crate::source::{Kind, ObjectId, ObjectIdMap};
use crate::trouble::Trouble;

/// More lines than this about one object help nobody.
const MAX_MESSAGES: usize = 8;

/// The messages about one object or file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its kind.
    pub code: Trouble,
    /// As a person names it: `Service shop/cart`.
    pub object: String,
    /// One line for each thing that is wrong: which field, what it says, what becomes of it.
    pub messages: Vec<String>,
}

/// Collects the messages while one object is read.
#[derive(Debug, Default)]
pub struct Findings {
    messages: Vec<String>,
    left_out: usize,
}

impl Findings {
    /// Notes one thing that is wrong. The text is made only if it will be shown.
    pub fn add(&mut self, message: impl FnOnce() -> String) {
        if self.messages.len() < MAX_MESSAGES {
            self.messages.push(message());
        } else {
            self.left_out += 1;
        }
    }

    /// The messages, with a last line that counts those left out.
    pub fn into_messages(mut self) -> Vec<String> {
        if self.left_out > 0 {
            self.messages.push(format!("and {} more", self.left_out));
        }
        self.messages
    }
}

/// Everything that is wrong at the moment.
#[derive(Debug, Default)]
pub struct Problems {
    objects: ObjectIdMap<Row>,
    inputs: BTreeMap<String, Problem>,
}

/// What is wrong with an object of this kind.
pub(super) const fn code_of(kind: Kind) -> Trouble {
    match kind {
        Kind::Service => Trouble::ServiceInvalid,
        Kind::EndpointSlice => Trouble::EndpointsInvalid,
        Kind::Node | Kind::ServiceCidr | Kind::Namespace | Kind::Pod => Trouble::ObjectInvalid,
    }
}

/// What is wrong with an object.
#[derive(Debug)]
struct Row {
    problem: Problem,
    /// Whether the object could not be read at all.
    unreadable: bool,
    /// Whether the full list under way has named the object.
    seen: bool,
}

impl Problems {
    /// Replaces what is wrong with an object; nothing wrong removes it. `object` names it when something is.
    pub fn set(&mut self, id: ObjectId, messages: Vec<String>, object: impl FnOnce() -> String) {
        if messages.is_empty() {
            self.clear(id);
        } else {
            self.insert(id, object(), messages, false);
        }
    }

    /// The object cannot be read.
    pub fn set_unreadable(&mut self, id: ObjectId, object: String, message: String) {
        self.insert(id, object, vec![message], true);
    }

    fn insert(&mut self, id: ObjectId, object: String, messages: Vec<String>, unreadable: bool) {
        let row = Row {
            problem: Problem {
                code: code_of(id.kind()),
                object,
                messages,
            },
            unreadable,
            seen: true,
        };
        self.objects.insert(id, row);
    }

    /// A full list of this kind begins: none of its objects was named yet.
    pub fn forget_seen(&mut self, kind: Kind) {
        let rows = self.objects.iter_mut();
        rows.filter(|(id, _)| id.kind() == kind)
            .for_each(|(_, row)| row.seen = false);
    }

    /// The full list of this kind is complete: what it did not name has no problems any more.
    pub fn drop_unseen(&mut self, kind: Kind) {
        self.objects.retain(|id, row| row.seen || id.kind() != kind);
    }

    /// Whether the object is there and cannot be read.
    pub fn is_unreadable(&self, id: ObjectId) -> bool {
        self.objects
            .get(&id)
            .is_some_and(|row| row.unreadable && row.seen)
    }

    /// What is wrong with an object.
    pub fn of(&self, id: ObjectId) -> &[String] {
        self.objects.get(&id).map_or(&[], |row| &row.problem.messages)
    }

    /// The object is good, or gone.
    pub fn clear(&mut self, id: ObjectId) {
        if !self.objects.is_empty() {
            self.objects.remove(&id);
        }
    }

    /// Replaces what is wrong with an input that is no object.
    pub fn set_input(&mut self, code: Trouble, subject: String, messages: Vec<String>) {
        if messages.is_empty() {
            self.inputs.remove(&subject);
        } else {
            let problem = Problem {
                code,
                object: subject.clone(),
                messages,
            };
            self.inputs.insert(subject, problem);
        }
    }

    /// Every problem, inputs first, in the order of their names.
    pub fn list(&self) -> Vec<Problem> {
        let mut objects: Vec<_> = self.objects.values().map(|row| row.problem.clone()).collect();
        objects.sort_unstable_by(|a, b| a.object.cmp(&b.object));
        self.inputs.values().cloned().chain(objects).collect()
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.inputs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Kind;

    #[test]
    fn many_findings_are_counted_not_listed() {
        let mut findings = Findings::default();
        for i in 0..5000 {
            findings.add(|| format!("endpoints[{i}] is bad"));
        }
        let messages = findings.into_messages();
        assert_eq!(messages.len(), MAX_MESSAGES + 1);
        assert_eq!(messages[MAX_MESSAGES], "and 4992 more");
    }

    #[test]
    fn a_good_version_clears_the_problem() {
        let mut problems = Problems::default();
        let id = ObjectId::new(Kind::Service, "a", "b");
        problems.set(id, vec!["bad".into()], || "Service a/b".into());
        problems.set_input(Trouble::FileInvalid, "file x.yaml".into(), vec!["worse".into()]);
        assert_eq!(
            problems
                .list()
                .iter()
                .map(|p| (p.code, p.object.as_str()))
                .collect::<Vec<_>>(),
            [
                (Trouble::FileInvalid, "file x.yaml"),
                (Trouble::ServiceInvalid, "Service a/b")
            ]
        );
        problems.set(id, vec![], || unreachable!("named only when bad"));
        problems.set_input(Trouble::FileInvalid, "file x.yaml".into(), vec![]);
        assert!(problems.is_empty());
    }
}
