//! The verdict of a run: failed tests, skipped tests with reasons, and the counts in the last line.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};

/// The outcome of one test.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Passed,
    /// The test failed, then passed when it ran again with no other test beside it.
    PassedAgain,
    /// The test failed, with its output or the error.
    Failed(String),
    /// The test was skipped, with the reason.
    Skipped(String),
}

struct Entry {
    program: String,
    test: String,
    outcome: Outcome,
}

/// A test that failed.
pub struct Failed<'a> {
    pub program: &'a str,
    pub test: &'a str,
    pub outcome: &'a mut Outcome,
}

/// All tests that ran, or should have run.
#[derive(Default)]
pub struct Summary {
    entries: Vec<Entry>,
}

/// The numbers of passed, failed and skipped tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

impl Counts {
    /// Counts one more outcome.
    pub fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Passed | Outcome::PassedAgain => self.passed += 1,
            Outcome::Failed(_) => self.failed += 1,
            Outcome::Skipped(_) => self.skipped += 1,
        }
    }
}

impl Summary {
    pub fn add(&mut self, program: impl Into<String>, test: impl Into<String>, outcome: Outcome) {
        self.entries.push(Entry {
            program: program.into(),
            test: test.into(),
            outcome,
        });
    }

    /// The program, test and outcome of each entry.
    pub fn into_entries(self) -> impl Iterator<Item = (String, String, Outcome)> {
        self.entries
            .into_iter()
            .map(|entry| (entry.program, entry.test, entry.outcome))
    }

    /// The failed tests, for another run.
    pub fn failed(&mut self) -> impl Iterator<Item = Failed<'_>> {
        let failed = self.entries.iter_mut();
        failed
            .filter(|entry| matches!(entry.outcome, Outcome::Failed(_)))
            .map(|entry| Failed {
                program: &entry.program,
                test: &entry.test,
                outcome: &mut entry.outcome,
            })
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether no test failed, and none was skipped for a reason that does not hold here.
    pub fn is_success(&self, is_expected: impl Fn(&str) -> bool) -> bool {
        self.entries.iter().all(|entry| match &entry.outcome {
            Outcome::Passed | Outcome::PassedAgain => true,
            Outcome::Failed(_) => false,
            Outcome::Skipped(reason) => is_expected(reason),
        })
    }

    /// The text at the end of a run.
    pub fn render(&self, is_expected: impl Fn(&str) -> bool) -> String {
        let mut text = String::new();
        let mut counts = Counts::default();
        let (mut failed, mut again) = (Vec::new(), Vec::new());
        let mut skipped: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for entry in &self.entries {
            counts.add(&entry.outcome);
            let name = format!("{}: {}", entry.program, entry.test);
            match &entry.outcome {
                Outcome::Passed => {}
                Outcome::PassedAgain => again.push(name),
                Outcome::Failed(_) => failed.push(name),
                Outcome::Skipped(reason) => skipped.entry(reason).or_default().push(name),
            }
        }
        for (title, names) in [
            (
                "Passed only when run again, alone: each is a fault to repair",
                &again,
            ),
            ("Failed", &failed),
        ] {
            if !names.is_empty() {
                let _ = writeln!(text, "\n{title}:");
            }
            for name in names {
                indent(&mut text, name);
            }
        }
        if !skipped.is_empty() {
            text.push_str("\nSkipped:\n");
        }
        for (reason, names) in skipped {
            if is_expected(reason) {
                indent(&mut text, &format!("{} × {reason}", names.len()));
            } else {
                indent(
                    &mut text,
                    &format!("{} × {reason} — NOT EXPECTED on this machine:", names.len()),
                );
                for name in names {
                    indent(&mut text, &format!("  {name}"));
                }
            }
        }
        let _ = writeln!(text, "\n{counts}");
        text
    }
}

fn indent(text: &mut String, line: &str) {
    text.push_str("  ");
    text.push_str(line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Summary};

    fn summary(outcomes: impl IntoIterator<Item = Outcome>) -> Summary {
        let mut summary = Summary::default();
        for (number, outcome) in outcomes.into_iter().enumerate() {
            summary.add("tests/world", format!("t{number}"), outcome);
        }
        summary
    }

    fn skipped(reason: &str) -> Outcome {
        Outcome::Skipped(reason.to_owned())
    }

    #[test]
    fn the_last_line_is_the_counts_and_nothing_else() {
        let failed = Outcome::Failed("why".to_owned());
        let summary = summary([Outcome::Passed, failed, skipped("needs root"), Outcome::Passed]);
        let text = summary.render(|_| true);
        assert_eq!(text.lines().last(), Some("2 passed, 1 failed, 1 skipped"));
        assert!(text.contains("Failed:\n  tests/world: t1\n"), "{text}");
        assert!(text.contains("Skipped:\n  1 × needs root\n"), "{text}");
        assert_eq!(
            Summary::default().render(|_| true),
            "\n0 passed, 0 failed, 0 skipped\n"
        );
    }

    #[test]
    fn a_test_that_passes_when_run_again_is_counted_and_named() {
        let summary = summary([Outcome::Passed, Outcome::PassedAgain]);
        assert!(summary.is_success(|_| false));
        let text = summary.render(|_| true);
        assert_eq!(text.lines().last(), Some("2 passed, 0 failed, 0 skipped"));
        assert!(
            text.contains("each is a fault to repair:\n  tests/world: t1\n"),
            "{text}"
        );
    }

    #[test]
    fn a_failure_fails_the_run() {
        assert!(summary([Outcome::Passed]).is_success(|_| false));
        assert!(!summary([Outcome::Failed(String::new())]).is_success(|_| true));
    }

    #[test]
    fn a_skip_fails_the_run_unless_it_is_expected_and_is_named_then() {
        let summary = summary([
            Outcome::Passed,
            skipped("needs root"),
            skipped("no fq"),
            skipped("no fq"),
        ]);
        assert!(summary.is_success(|_| true));
        let expected = |reason: &str| reason == "needs root";
        assert!(!summary.is_success(expected));
        let text = summary.render(expected);
        assert!(
            text.contains("2 × no fq — NOT EXPECTED on this machine:\n    tests/world: t2\n"),
            "{text}"
        );
    }
}
