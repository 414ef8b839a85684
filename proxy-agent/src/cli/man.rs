//! `millrace man`: the manual pages, made of the same definitions as `--help`.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory};
use clap_mangen::Man;

use super::Cli;

/// `millrace man`
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The directory for a page of each verb, or - to print the page of millrace
    #[arg(value_name = "DIR|-")]
    directory: PathBuf,
}

/// Writes the pages.
pub fn run(args: &ManArgs) -> anyhow::Result<bool> {
    let command = Cli::command();
    let directory = &args.directory;
    if directory.as_os_str() == "-" {
        let mut page = Vec::new();
        Man::new(command).render(&mut page)?;
        io::stdout().lock().write_all(&page)?;
    } else {
        let failed = || format!("writing manual pages to {}", directory.display());
        fs::create_dir_all(directory).with_context(failed)?;
        clap_mangen::generate_to(command, directory).with_context(failed)?;
        tracing::info!("wrote manual pages to {}", directory.display());
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page() {
        let root = tempfile::tempdir().unwrap();
        assert!(
            run(&ManArgs {
                directory: root.path().join("man1")
            })
            .unwrap()
        );
        let pages = fs::read_dir(root.path().join("man1")).unwrap();
        let mut names: Vec<_> = pages
            .map(|page| page.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        for page in [
            "millrace.1",
            "millrace-agent.1",
            "millrace-service-list.1",
            "millrace-uninstall.1",
        ] {
            assert!(names.iter().any(|name| name == page), "{names:?}");
        }
    }
}
