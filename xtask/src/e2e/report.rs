//! Reading ginkgo's report: the specs that ran, their times, and the messages of failed ones.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::table::{Outcome, Row};

/// The length of a failure's message in a row, in characters.
const NOTE: usize = 200;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    /// The time in nanoseconds.
    run_time: u64,
    failure: Option<Failure>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

/// The rows of all specs that were not left out.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| format!("reading {}", path.display()))
}

fn parse(text: &str) -> Result<Vec<Row>> {
    let reports: Vec<Report> = serde_json::from_str(text)?;
    let mut rows = Vec::new();
    for spec in reports
        .into_iter()
        .flat_map(|report| report.spec_reports.unwrap_or_default())
    {
        let message = spec.failure.unwrap_or_default().message;
        let outcome = match spec.state.as_str() {
            "passed" => Outcome::Pass,
            // A spec that was not selected has no result.
            "skipped" | "pending" if message.is_empty() => continue,
            "skipped" => Outcome::Skip,
            _ => Outcome::Fail,
        };
        if spec.leaf_node_type != "It" {
            if outcome == Outcome::Fail && spec.leaf_node_type.contains("BeforeSuite") {
                bail!("the suite's preparations failed: {}", shorten(&message));
            }
            continue;
        }
        let mut texts = spec.container_hierarchy_texts.unwrap_or_default();
        texts.push(spec.leaf_node_text);
        rows.push(Row {
            spec: texts.join(" "),
            outcome,
            tenths: spec.run_time / 100_000_000,
            note: if outcome == Outcome::Pass {
                String::new()
            } else {
                shorten(&message)
            },
        });
    }
    rows.sort_by(|a, b| a.spec.cmp(&b.spec));
    Ok(rows)
}

/// The message on one line of bounded length.
fn shorten(message: &str) -> String {
    let words: Vec<_> = message.split_whitespace().map(without_folder).collect();
    words.join(" ").chars().take(NOTE).collect()
}

/// Removes the folder from an absolute path, which is specific to this machine: `--flag=/a/b` becomes
/// `--flag=b`.
fn without_folder(word: &str) -> String {
    let start = word.find("=/").map_or(0, |equals| equals + 1);
    let (flag, path) = word.split_at(start);
    match path.rsplit_once('/') {
        Some((folder, name)) if folder.starts_with('/') => format!("{flag}{name}"),
        _ => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::e2e::table::Outcome;

    #[test]
    fn a_spec_that_was_not_selected_has_no_row() {
        let spec = |state: &str, text: &str, failure: &str| {
            format!(
                r#"{{"ContainerHierarchyTexts": ["[sig-network] Services"], "LeafNodeType": "It",
                "LeafNodeText": "{text}", "State": "{state}", "RunTime": 1540000000{failure}}}"#
            )
        };
        let failure = |message: &str| format!(r#", "Failure": {{"Message": "{message}"}}"#);
        let text = format!(
            r#"[{{"SpecReports": [{}, {}, {}, {}]}}]"#,
            spec("skipped", "elsewhere", ""),
            spec("skipped", "itself", &failure("skipped - no zones")),
            spec("passed", "works", ""),
            spec("timedout", "hangs", &failure("a\\n  /b/c/d https://e/f --g=/h/i")),
        );
        let rows = parse(&text).expect("it is a report");
        let outcomes: Vec<_> = rows.iter().map(|row| (row.spec.as_str(), row.outcome)).collect();
        assert_eq!(
            outcomes,
            [
                ("[sig-network] Services hangs", Outcome::Fail),
                ("[sig-network] Services itself", Outcome::Skip),
                ("[sig-network] Services works", Outcome::Pass),
            ]
        );
        assert_eq!(
            (rows[0].note.as_str(), rows[0].tenths),
            ("a d https://e/f --g=i", 15)
        );
    }
}
