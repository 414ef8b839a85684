//! The direction of imports: ARCHITECTURE's order of stages, as a table.

use std::collections::{BTreeMap, BTreeSet};

use crate::{assert_none, files};

/// A module of the agent, and the modules of the agent that it may import.
const AGENT: &[(&str, &[&str])] = &[
    ("private_dir", &[]),
    ("trouble", &[]),
    ("bpf", &[]),
    ("source", &[]),
    ("cluster", &["source", "trouble"]),
    ("plan", &["cluster", "source", "trouble"]),
    ("apply", &["bpf", "cluster", "plan", "source", "trouble"]),
    ("config", &["cluster"]),
    ("network", &["bpf", "config", "trouble"]),
    ("control", &["private_dir", "trouble"]),
    ("pods", &["cluster", "control", "network", "trouble"]),
    ("flows", &["bpf"]),
    ("cni", &["private_dir"]),
    ("events", &["source"]),
    ("http", &["trouble"]),
    ("metrics", &["cluster", "http"]),
    ("health", &["cluster", "events", "http", "metrics", "source"]),
    (
        "agent",
        &[
            "apply", "bpf", "cluster", "cni", "config", "control", "events", "flows", "health", "http",
            "metrics", "network", "plan", "pods", "source", "trouble",
        ],
    ),
    (
        "cli",
        &["bpf", "cni", "config", "control", "network", "pods", "trouble"],
    ),
];

/// A crate of the workspace, and the crates of the workspace that its sources may name. Tests are free.
const CRATES: &[(&str, &[&str])] = &[
    ("proxy-common/src", &[]),
    ("proxy-ebpf/src", &["proxy_common"]),
    ("proxy-common/bpf/src", &["proxy_common"]),
    ("cni-plugin/src", &["proxy_bpf", "proxy_common"]),
    ("proxy-agent/src", &["cni_plugin", "proxy_bpf", "proxy_common"]),
    ("xtask/src", &[]),
];

/// Other things that a folder never names, and the reason.
const ABSENT: &[(&str, &str, &str)] = &[
    ("proxy-common/src", "std::", "decisions run in the kernel too"),
    ("proxy-agent/src/plan", "tokio::", "planning does no I/O"),
    ("proxy-agent/src/plan", "std::fs", "planning does no I/O"),
    (
        "proxy-agent/src/cluster",
        "tokio::",
        "the cluster's state does no I/O",
    ),
    (
        "proxy-agent/src",
        "std::process::Command",
        "the agent starts no other program",
    ),
    ("cni-plugin/src", "tokio", "ADD starts no runtime"),
];

/// The paths behind `prefix` that a source names outside of comments, up to the first character that is not
/// part of a name.
fn named(source: &str, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in source.lines() {
        let code = line.split("//").next().unwrap_or_default();
        for (at, _) in code.match_indices(prefix) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let rest = &code[at + prefix.len()..];
            let end = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            found.insert(rest[..end].to_owned());
        }
    }
    found
}

/// Whether the file holds tests only, which may import what they like.
fn is_test(path: &str) -> bool {
    path.contains("/tests/")
        || path.contains("_tests/")
        || path.ends_with("tests.rs")
        || path.ends_with("testing.rs")
}

/// The source up to its `mod tests {`, if it has one.
fn without_tests(source: &str) -> &str {
    source.split("#[cfg(test)]\nmod tests {").next().unwrap_or(source)
}

#[test]
fn modules_of_the_agent_import_in_one_direction() {
    let allowed: BTreeMap<_, _> = AGENT.iter().copied().collect();
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for (path, source) in files(".rs") {
        let Some(inner) = path.strip_prefix("proxy-agent/src/") else {
            continue;
        };
        let module = inner.split(['/', '.']).next().unwrap_or_default().to_owned();
        if is_test(&path) || matches!(module.as_str(), "lib" | "main") {
            continue;
        }
        let Some(allowed) = allowed.get(module.as_str()) else {
            findings.push(format!("{path}: the module {module} is not in the table"));
            continue;
        };
        for import in named(without_tests(&source), "crate::") {
            if import != module && !allowed.contains(&import.as_str()) {
                findings.push(format!("{path}: {module} imports {import}"));
            }
            seen.insert((module.clone(), import));
        }
    }
    for (module, allowed) in AGENT {
        for import in *allowed {
            if !seen.contains(&((*module).to_owned(), (*import).to_owned())) {
                findings.push(format!(
                    "the table lets {module} import {import}, which it does not"
                ));
            }
        }
    }
    assert_none(&findings, "imports against the table of allowed directions");
}

#[test]
fn the_table_of_directions_has_no_circle() {
    let allowed: BTreeMap<_, _> = AGENT.iter().copied().collect();
    let mut ordered: BTreeSet<&str> = BTreeSet::new();
    while ordered.len() < allowed.len() {
        let next = allowed.iter().find(|(module, imports)| {
            !ordered.contains(*module) && imports.iter().all(|import| ordered.contains(import))
        });
        let Some((module, _)) = next else {
            let left: Vec<_> = allowed
                .keys()
                .filter(|module| !ordered.contains(*module))
                .collect();
            panic!("these import each other: {left:?}");
        };
        ordered.insert(module);
    }
}

#[test]
fn crates_import_in_one_direction() {
    let ours = [
        "proxy_common",
        "proxy_bpf",
        "cni_plugin",
        "proxy_agent",
        "millrace_tests",
    ];
    let mut findings = Vec::new();
    for (path, source) in files(".rs") {
        let Some((folder, allowed)) = CRATES.iter().find(|(folder, _)| path.starts_with(*folder)) else {
            continue;
        };
        for krate in ours.iter().filter(|krate| !allowed.contains(krate)) {
            // A binary names the library of its own package.
            let is_own = folder.split('/').next() == Some(krate.replace('_', "-").as_str());
            if !is_own && !named(&source, &format!("{krate}::")).is_empty() {
                findings.push(format!("{path}: names {krate}"));
            }
        }
    }
    assert_none(&findings, "crates against the table of allowed directions");
}

#[test]
fn folders_import_none_of_their_forbidden_names() {
    let mut findings = Vec::new();
    for (path, source) in files(".rs") {
        for (_, name, reason) in ABSENT.iter().filter(|(folder, ..)| path.starts_with(*folder)) {
            if !is_test(&path) && !named(without_tests(&source), name).is_empty() {
                findings.push(format!("{path}: names {name}, but {reason}"));
            }
        }
    }
    assert_none(&findings, "names that are absent on purpose");
}
