//! Licences and versions of what is linked in.

use std::collections::{BTreeMap, BTreeSet};

use crate::{assert_none, output_of};

/// Licences that allow what this project does with the code.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates of which two versions are linked in, since two dependencies ask for different ones.
const TWICE: &[&str] = &["base64", "getrandom", "syn"];

/// The packages that are linked in on Linux: name, version, licence.
fn packages() -> BTreeSet<(String, String, String)> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let target = "x86_64-unknown-linux-gnu";
    let arguments = [
        "tree",
        "--workspace",
        "--locked",
        "--offline",
        "--edges=normal",
        "--prefix=none",
        "--format={p}|{l}",
        "--target",
        target,
    ];
    let tree = output_of(&cargo, &arguments);
    let lines = tree.lines().filter_map(|line| line.split_once('|'));
    lines
        .map(|(package, licence)| {
            let mut words = package.split(' ');
            let mut word = || words.next().unwrap_or_default().to_owned();
            // A package that the tree repeats has a mark behind it.
            (word(), word(), licence.trim_end_matches(" (*)").to_owned())
        })
        .collect()
}

/// Whether an SPDX expression can be met by the licences that are allowed.
fn is_allowed(expression: &str) -> bool {
    let plain = expression
        .replace(['(', ')'], "")
        .replace(" / ", " OR ")
        .replace('/', " OR ");
    // Without knowledge of brackets: each part of AND needs one of its alternatives.
    plain.split(" AND ").all(|part| {
        part.split(" OR ")
            .any(|licence| LICENCES.contains(&licence.trim()))
    })
}

#[test]
fn licences_allow_the_use() {
    let refused = packages()
        .into_iter()
        .filter(|(.., licence)| !is_allowed(licence));
    let findings: Vec<_> = refused
        .map(|(name, version, licence)| format!("{name} {version}: {licence}"))
        .collect();
    assert_none(&findings, "licences that are not allowed");
}

#[test]
fn an_expression_needs_each_of_its_parts() {
    for allowed in [
        "MIT",
        "GPL-2.0-only OR MIT",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "Apache-2.0/MIT",
    ] {
        assert!(is_allowed(allowed), "{allowed}");
    }
    for refused in ["", "GPL-3.0-only", "MIT AND GPL-3.0-only"] {
        assert!(!is_allowed(refused), "{refused}");
    }
}

#[test]
fn crates_are_linked_in_once() {
    let mut versions: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (name, version, _) in packages() {
        versions.entry(name).or_default().insert(version);
    }
    let twice: BTreeSet<_> = versions
        .iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, _)| name.as_str())
        .collect();
    let known: BTreeSet<_> = TWICE.iter().copied().collect();
    assert_eq!(
        twice, known,
        "crates of which two versions are linked in; the list names those that are known"
    );
}
