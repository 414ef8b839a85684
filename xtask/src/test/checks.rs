//! Checks of the source itself: each check counts as one test.

use crate::{
    command,
    step::Step,
    test::summary::{Outcome, Summary},
};

/// Name and cargo command of each check. The eBPF crate builds for its own target only; the agent's build
/// shows its warnings.
const CHECKS: &[(&str, &[&str])] = &[
    // The check lists only file names; the remedy is `cargo fmt` in any case.
    ("format", &["fmt", "--check", "--", "--files-with-diff"]),
    (
        "lints",
        &[
            "clippy",
            "--quiet",
            "--workspace",
            "--exclude",
            "proxy-ebpf",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
    ),
    (
        "examples in documentation",
        &[
            "test",
            "--doc",
            "--quiet",
            "--workspace",
            "--exclude",
            "proxy-ebpf",
        ],
    ),
];

/// Runs all checks. A failed one shows its output and does not prevent the others.
pub fn run(summary: &mut Summary) {
    for (name, arguments) in CHECKS {
        let step = Step::start(format!("check: {name}"));
        let result = command::cargo().and_then(|mut cargo| command::run_in(&step, cargo.args(*arguments)));
        match result {
            Ok(()) => {
                step.done();
                summary.add("check", *name, Outcome::Passed);
            }
            Err(error) => {
                step.end('✘', &format!("check: {name}"));
                eprintln!("{error:#}");
                summary.add("check", *name, Outcome::Failed(format!("{error:#}")));
            }
        }
    }
}
