//! How sources and documents are written, as far as a machine can tell.

use crate::{assert_none, files};

/// Columns of a comment line.
const WIDTH: usize = 110;
/// Lines of a source file.
const LINES: usize = 450;
/// Words that name no thing.
const INDEFINITE: &[&str] = &[
    "anybody",
    "anyone",
    "everybody",
    "everyone",
    "nobody",
    "somebody",
    "someone",
    "whatever",
    "whichever",
    "whoever",
    "whom",
];
/// Indefinite words in ten thousand words of comments and documents.
const INDEFINITE_IN_10_000: usize = 5;
/// Lines of a document.
const DOCUMENTS: &[(&str, usize)] = &[("README.md", 150), ("ARCHITECTURE.md", 350)];

/// The text of each comment line, with the line's number.
fn comments(source: &str) -> impl Iterator<Item = (usize, &str)> {
    source.lines().enumerate().filter_map(|(index, line)| {
        let comment = line.trim_start().strip_prefix("//")?;
        Some((index + 1, comment.trim_start_matches(['/', '!'])))
    })
}

#[test]
fn comments_keep_within_their_width() {
    let mut findings = Vec::new();
    for (path, source) in files(".rs") {
        let mut in_example = false;
        for (index, line) in source.lines().enumerate() {
            let is_comment = line.trim_start().starts_with("//");
            let is_fence = is_comment && line.contains("```");
            in_example = is_comment && (in_example != is_fence);
            // A table's row and an address cannot be broken.
            let breaks = !in_example && !line.contains("| ") && !line.contains("://");
            let width = line.chars().count();
            if is_comment && breaks && width > WIDTH {
                findings.push(format!("{path}:{}: {width} columns", index + 1));
            }
        }
    }
    assert_none(&findings, "comments of more than 110 columns");
}

#[test]
fn files_are_short() {
    let files = files(".rs")
        .into_iter()
        .map(|(path, source)| (path, source.lines().count()));
    let long = files.filter(|(_, lines)| *lines > LINES);
    let findings: Vec<_> = long
        .map(|(path, lines)| format!("{path}: {lines} lines"))
        .collect();
    assert_none(&findings, "files of more than 450 lines");
}

#[test]
fn files_open_with_what_they_are_for() {
    let files = files(".rs").into_iter();
    let without = files.filter(|(_, source)| !source.starts_with("//!"));
    let findings: Vec<_> = without.map(|(path, _)| path).collect();
    assert_none(&findings, "files without a paragraph of their own");
}

#[test]
fn documents_are_short() {
    let documents = files(".md");
    let mut findings = Vec::new();
    for (name, most) in DOCUMENTS {
        let (_, text) = documents
            .iter()
            .find(|(path, _)| path == name)
            .expect("the document exists");
        let lines = text.lines().count();
        if lines > *most {
            findings.push(format!("{name}: {lines} lines, of {most}"));
        }
    }
    assert_none(&findings, "documents that are too long to be read");
}

#[test]
fn sentences_name_their_subjects() {
    let mut words = 0;
    let mut findings = Vec::new();
    let mut look = |path: &str, line: usize, text: &str| {
        for word in text
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
        {
            words += 1;
            if INDEFINITE.contains(&word.to_lowercase().as_str()) {
                findings.push(format!("{path}:{line}: {word}"));
            }
        }
    };
    for (path, source) in files(".rs") {
        for (line, comment) in comments(&source) {
            look(&path, line, comment);
        }
    }
    for (path, document) in files(".md") {
        for (index, line) in document.lines().enumerate() {
            look(&path, index + 1, line);
        }
    }
    let most = words * INDEFINITE_IN_10_000 / 10_000;
    let found = findings.len();
    assert!(
        found <= most,
        "{found} indefinite words in {words}, of {most}:\n{}",
        findings.join("\n")
    );
}

#[test]
fn links_of_documents_name_files() {
    let mut findings = Vec::new();
    for (path, document) in files(".md") {
        let folder = std::path::Path::new(&path).parent().expect("a file has a folder");
        for (at, _) in document.match_indices("](") {
            let target = document[at + 2..].split(')').next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || target.contains("://") {
                continue;
            }
            if !crate::root().join(folder).join(file).exists() {
                findings.push(format!("{path}: {target}"));
            }
        }
    }
    assert_none(&findings, "links that lead nowhere");
}
