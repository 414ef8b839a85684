//! Checks of the repository itself: which module may import which, how sources are written, what is linked
//! in, and how commits are named. Each promise of ARCHITECTURE and CONTRIBUTING that a machine can read is
//! one test here.

mod commits;
mod dependencies;
mod imports;
mod text;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the workspace.
fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    Path::new(&package)
        .parent()
        .expect("xtask lies in the workspace")
        .to_owned()
}

/// The output of a program that runs in the workspace's folder. Panics if the program fails.
fn output_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(root()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("output is UTF-8")
}

/// The output of git, also where another user owns the clone.
fn git(arguments: &[&str]) -> String {
    output_of("git", &[&["-c", "safe.directory=*"], arguments].concat())
}

/// The files under version control whose names end so: path from the workspace's folder, and content.
fn files(ending: &str) -> Vec<(String, String)> {
    let names = git(&["ls-files", "-z", &format!("*{ending}")]);
    let names = names
        .split_terminator('\0')
        .filter(|name| root().join(name).exists());
    let files: Vec<_> = names
        .map(|name| {
            let content = fs::read_to_string(root().join(name));
            (
                name.to_owned(),
                content.unwrap_or_else(|error| panic!("{name}: {error}")),
            )
        })
        .collect();
    assert!(!files.is_empty(), "git knows no file that ends in {ending}");
    files
}

/// Fails with one line for each finding.
fn assert_none(findings: &[String], rule: &str) {
    assert!(findings.is_empty(), "{rule}:\n{}", findings.join("\n"));
}
