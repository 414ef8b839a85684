//! `millrace completions SHELL`: the script that completes our command lines.

use std::io::{self, Write};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// `millrace completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell that the script is for
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &CompletionsArgs) -> anyhow::Result<bool> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "millrace", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_know_the_verbs() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "millrace", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(
                script.contains("uninstall") && script.contains("bpf-root"),
                "{shell}"
            );
        }
    }
}
