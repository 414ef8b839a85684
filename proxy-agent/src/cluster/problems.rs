//! Problems with the input, by object, as `millrace status` shows them.
//!
//! A bad field spoils the part that it stands in and no other, so the object goes on being served. Its
//! problems are kept here until a good version arrives or the object goes. Problems of files and documents,
//! which have no object, are kept beside them under their own names.

use std::collections::BTreeMap;

use crate::source::{Kind, ObjectId, ObjectIdMap};
use crate::trouble::Trouble;

/// The most messages about one object; more are no help.
const MAX_MESSAGES: usize = 8;

/// The messages about one object or file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The kind of the problem.
    pub code: Trouble,
    /// The object in the form for messages: `Service shop/cart`.
    pub object: String,
    /// One line for each error: the field, its value, and the effect.
    pub messages: Vec<String>,
}

/// Collects the messages while one object is read.
#[derive(Debug, Default)]
pub struct Findings {
    messages: Vec<String>,
    left_out: usize,
}

impl Findings {
    /// Adds a message. The text is made only if it will be shown.
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

/// All present problems.
#[derive(Debug, Default)]
pub struct Problems {
    objects: ObjectIdMap<Row>,
    inputs: BTreeMap<String, Problem>,
}

/// The code of the problems of this kind of object.
pub(super) const fn code_of(kind: Kind) -> Trouble {
    match kind {
        Kind::Service => Trouble::ServiceInvalid,
        Kind::EndpointSlice => Trouble::EndpointsInvalid,
        Kind::Node | Kind::ServiceCidr | Kind::Namespace | Kind::Pod => Trouble::ObjectInvalid,
    }
}

/// The problems of an object.
#[derive(Debug)]
struct Row {
    problem: Problem,
    /// Whether the object could not be read at all.
    unreadable: bool,
    /// Whether the running full list has named the object.
    seen: bool,
}

impl Problems {
    /// Replaces the problems of an object; without messages it removes them. `object` returns its name if
    /// there are messages.
    pub fn set(&mut self, id: ObjectId, messages: Vec<String>, object: impl FnOnce() -> String) {
        if messages.is_empty() {
            self.clear(id);
        } else {
            self.insert(id, object(), messages, false);
        }
    }

    /// Notes that the object cannot be read.
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

    /// Begins a full list of this kind: it has named none of its objects yet.
    pub fn forget_seen(&mut self, kind: Kind) {
        let rows = self.objects.iter_mut();
        rows.filter(|(id, _)| id.kind() == kind)
            .for_each(|(_, row)| row.seen = false);
    }

    /// Ends the full list of this kind: the objects that it did not name have no problems any more.
    pub fn drop_unseen(&mut self, kind: Kind) {
        self.objects.retain(|id, row| row.seen || id.kind() != kind);
    }

    /// Whether the object exists and cannot be read.
    pub fn is_unreadable(&self, id: ObjectId) -> bool {
        self.objects
            .get(&id)
            .is_some_and(|row| row.unreadable && row.seen)
    }

    /// The problems of an object.
    pub fn of(&self, id: ObjectId) -> &[String] {
        self.objects.get(&id).map_or(&[], |row| &row.problem.messages)
    }

    /// Removes the problems of an object that is good or gone.
    pub fn clear(&mut self, id: ObjectId) {
        if !self.objects.is_empty() {
            self.objects.remove(&id);
        }
    }

    /// Replaces the problems of an input that is no object.
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

    /// Whether there are no problems.
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
