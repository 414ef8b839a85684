//! What is checked about the source itself: each check counts as one test.

use crate::{
    command,
    step::Step,
    test::summary::{Outcome, Summary},
};

/// Name and cargo command of each check. The eBPF crate builds for its own target only; the compiler's
/// warnings about it come with the agent's build.
const CHECKS: &[(&str, &[&str])] = &[
    // Only the names of files: what to do about them is `cargo fmt` either way.
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

/// Runs them all; a failed one shows its output and does not keep the others from running.
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
