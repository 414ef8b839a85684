//! The outcomes of the tests of one program, derived from its events.
//!
//! Every test that began gets exactly one outcome: its own, or a failure because its program died.

use std::collections::BTreeSet;

use super::{libtest::Event, summary::Outcome};

/// The known state of a program's tests.
#[derive(Default)]
pub struct Report {
    running: BTreeSet<String>,
    /// The outcomes of the tests that have ended.
    pub outcomes: Vec<(String, Outcome)>,
}

impl Report {
    /// Takes an event in; true if it was the last.
    pub fn take(&mut self, event: Event) -> bool {
        let (name, outcome) = match event {
            Event::Planned(_) => return false,
            Event::Finished => return true,
            Event::Started(name) => {
                self.running.insert(name);
                return false;
            }
            Event::Passed(name) => (name, Outcome::Passed),
            Event::Failed(name, output) => (name, Outcome::Failed(output)),
            Event::Ignored(name, reason) => (
                name,
                Outcome::Skipped(reason.unwrap_or_else(|| "ignored without a reason".to_owned())),
            ),
        };
        self.running.remove(&name);
        self.outcomes.push((name, outcome));
        false
    }

    pub fn running(&self) -> String {
        self.running
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Records that the program died before its end. The tests that were running have failed, or else the
    /// program as a whole.
    pub fn died(&mut self, why: &str) {
        let mut running = std::mem::take(&mut self.running);
        if running.is_empty() {
            running.insert("(the program as a whole)".to_owned());
        }
        self.outcomes.extend(
            running
                .into_iter()
                .map(|name| (name, Outcome::Failed(why.to_owned()))),
        );
    }

    /// Records the tests that skipped themselves, which look like passed ones. A skip under an unknown name
    /// is a mistake in that test and counts as a failure.
    pub fn skip(&mut self, reasons: impl IntoIterator<Item = (String, String)>) {
        for (test, reason) in reasons {
            // A test reports its path with the crate's name in front, libtest without.
            let within = test.split_once("::").map_or(test.as_str(), |(_, path)| path);
            match self
                .outcomes
                .iter_mut()
                .find(|(name, _)| *name == test || name == within)
            {
                Some((_, outcome @ Outcome::Passed)) => *outcome = Outcome::Skipped(reason),
                Some(_) => {}
                None => {
                    let why = format!("a skip names this, and no test has the name: {reason}");
                    self.outcomes.push((test, Outcome::Failed(why)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, Outcome, Report};

    fn report(events: impl IntoIterator<Item = Event>) -> Report {
        let mut report = Report::default();
        for event in events {
            report.take(event);
        }
        report
    }

    fn outcome<'a>(report: &'a Report, test: &str) -> &'a Outcome {
        let found = report.outcomes.iter().find(|(name, _)| name == test);
        &found.expect("the test has an outcome").1
    }

    #[test]
    fn only_what_was_running_fails_with_its_program() {
        let mut report = report([
            Event::Started("a".into()),
            Event::Started("b".into()),
            Event::Passed("a".into()),
        ]);
        report.died("killed");
        assert_eq!(*outcome(&report, "a"), Outcome::Passed);
        assert_eq!(*outcome(&report, "b"), Outcome::Failed("killed".into()));
        assert_eq!(report.outcomes.len(), 2);
    }

    #[test]
    fn a_program_that_dies_between_tests_is_a_failure_too() {
        let mut report = report([Event::Planned(1)]);
        report.died("killed");
        assert_eq!(report.outcomes.len(), 1);
    }

    #[test]
    fn a_skip_turns_a_pass_into_a_skip_but_hides_no_failure() {
        let mut report = report([Event::Passed("a".into()), Event::Failed("b".into(), "x".into())]);
        let skip = |test: &str| (test.to_owned(), "no SCTP".to_owned());
        report.skip([skip("a"), skip("program::b"), skip("main")]);
        assert_eq!(*outcome(&report, "a"), Outcome::Skipped("no SCTP".into()));
        assert_eq!(*outcome(&report, "b"), Outcome::Failed("x".into()));
        assert!(matches!(outcome(&report, "main"), Outcome::Failed(_)));
    }

    #[test]
    fn ignoring_needs_a_reason() {
        let report = report([Event::Ignored("a".into(), None)]);
        assert_eq!(
            *outcome(&report, "a"),
            Outcome::Skipped("ignored without a reason".into())
        );
    }
}
