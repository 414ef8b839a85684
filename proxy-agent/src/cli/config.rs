//! `millrace config check`: reports the errors of a configuration file before an agent reads it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;

use super::output::{self, OutputFormat};
use super::text::{BAD, GOOD, WARNING, line, styled};
use crate::config::{ConfigError, Configuration, Settings, read_file};

/// `millrace config`
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Report the errors of a configuration file; succeed if there are none
    Check {
        /// The configuration file
        file: PathBuf,
    },
}

/// The result of `millrace config check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigCheck {
    /// The path of the file.
    pub file: String,
    /// Whether an agent would accept the file.
    pub valid: bool,
    /// All errors of the file.
    pub errors: Vec<ConfigError>,
    /// Settings that are valid and most likely not intended.
    pub warnings: Vec<String>,
}

/// Prints the errors; true if there are none.
pub fn run(format: OutputFormat, verb: &ConfigVerb) -> anyhow::Result<bool> {
    let ConfigVerb::Check { file } = verb;
    let check = check(file);
    output::print(format, &check, || render(file, &check))?;
    Ok(check.valid)
}

fn check(file: &Path) -> ConfigCheck {
    let report = read_file(file);
    let mut warnings = report.warnings;
    if report.errors.is_empty() {
        let settings: Vec<_> = report.kube_proxy.into_iter().chain(report.own).collect();
        warnings.extend(Configuration::of(&settings, &Settings::default()).warnings());
    }
    ConfigCheck {
        file: file.display().to_string(),
        valid: report.errors.is_empty(),
        errors: report.errors,
        warnings,
    }
}

fn render(file: &Path, check: &ConfigCheck) -> String {
    let mut text = String::new();
    for error in &check.errors {
        let _ = writeln!(text, "{} {}", styled(BAD, "error:"), line(error.to_string()));
    }
    for warning in &check.warnings {
        let _ = writeln!(text, "{} {}", styled(WARNING, "warning:"), line(warning.as_str()));
    }
    if check.valid {
        let _ = writeln!(
            text,
            "{}: {}",
            line(file.display().to_string()),
            styled(GOOD, "valid")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> (ConfigCheck, String) {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("agent.yaml");
        std::fs::write(
            &file,
            format!("apiVersion: millrace.dev/v1alpha1\nkind: AgentConfiguration\n{text}"),
        )
        .unwrap();
        let check = check(&file);
        let text = anstream::adapter::strip_str(&render(&file, &check)).to_string();
        (check, text.replace(&root.path().display().to_string(), "DIR"))
    }

    #[test]
    fn a_good_file() {
        let (check, text) = checked("socketLB: host\n");
        assert!(check.valid);
        assert_eq!(text, "DIR/agent.yaml: valid\n");
        assert_eq!(
            serde_json::to_value(&check).unwrap(),
            serde_json::json!({"file": check.file, "valid": true, "errors": [], "warnings": []})
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let check = check(Path::new("/nonexistent/agent.yaml"));
        assert_eq!((check.valid, check.errors.len()), (false, 1));
        assert_eq!(check.file, "/nonexistent/agent.yaml");
    }

    #[test]
    fn a_good_file_with_a_doubtful_value() {
        let (check, text) = checked("serviceCIDRs: [10.0.0.0/8]\nclusterCIDRs: [10.244.0.0/16]\n");
        assert!(check.valid);
        assert!(
            text.starts_with("warning: serviceCIDRs 10.0.0.0/8 and clusterCIDRs 10.244.0.0/16 overlap"),
            "{text}"
        );
        let (check, text) = checked("masqueradePorts: 20000-31000\nvxlan: {port: 10256}\n");
        assert!(check.valid);
        assert_eq!(text.matches("warning: ").count(), 2, "{text}");
    }

    #[test]
    fn a_bad_file() {
        let (check, text) = checked("nodeAddresses: [127.0.0.1, '::1']\n");
        assert!(!check.valid);
        assert_eq!(
            text,
            "\
error: DIR/agent.yaml: document 1: nodeAddresses[0]: 127.0.0.1 cannot be the address of a node
error: DIR/agent.yaml: document 1: nodeAddresses[1]: ::1 cannot be the address of a node
"
        );
        assert_eq!(
            serde_json::to_value(&check.errors[0]).unwrap(),
            serde_json::json!({
                "document": 1, "line": null, "field": "nodeAddresses[0]",
                "message": "127.0.0.1 cannot be the address of a node",
            })
        );
    }
}
