//! How commits are named.

use crate::{assert_none, git};

/// Characters of a subject.
const WIDTH: usize = 72;
/// The last commit whose subject was written before this rule.
const BEFORE: &str = "24948f6";
/// Where that commit is not in the history that is here, so many of the newest commits are looked at.
const NEWEST: &str = "-8";

#[test]
fn subjects_fit_into_a_line() {
    let known = git(&["rev-list", "--abbrev-commit", "--abbrev=7", "HEAD"]);
    let range = format!("{BEFORE}..HEAD");
    let is_known = known.lines().any(|commit| commit == BEFORE);
    let which = if is_known { range.as_str() } else { NEWEST };
    let log = git(&["log", "--no-merges", "--format=%h %s", which]);
    let mut findings = Vec::new();
    for line in log.lines() {
        let (_, subject) = line.split_once(' ').expect("a hash and a subject");
        let width = subject.chars().count();
        if width > WIDTH {
            findings.push(format!("{line}: {width} characters"));
        }
        if subject.ends_with('.') {
            findings.push(format!("{line}: ends with a full stop"));
        }
    }
    assert_none(&findings, "subjects of commits");
}
