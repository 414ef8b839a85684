//! Running other programs: every failure names the command, its exit, and its last output.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result, bail};

use crate::{paths, step::Step};

/// The number of output lines of a failed command that an error repeats.
const LINES_IN_ERROR: usize = 100;

/// The cargo that runs this program, for the workspace of this program.
///
/// Cargo describes the package it runs in environment variables, and build scripts of dependencies react to
/// them. If a build inherited them, `cargo xtask build` and `cargo build` would each invalidate the other's
/// cache.
pub fn cargo() -> Result<Command> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(paths::repository()?);
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    Ok(cargo)
}

/// Runs a command without output on the terminal and returns its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", describe(command)))?;
    if !output.status.success() {
        let printed = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{}` {}: {}",
            describe(command),
            ending(output.status),
            printed.trim()
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` wrote bytes that are no text", describe(command)))
}

/// Runs a slow command: its last line is the step's detail, its last lines are the error's.
pub fn run_in(step: &Step, command: &mut Command) -> Result<()> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start `{}`", describe(command)))?;
    let (sender, lines) = mpsc::channel();
    follow(child.stdout.take(), sender.clone());
    follow(child.stderr.take(), sender);
    let mut printed: Vec<String> = Vec::new();
    for line in lines {
        step.note(line.trim());
        printed.push(line);
    }
    let status = child
        .wait()
        .with_context(|| format!("waiting for `{}`", describe(command)))?;
    if !status.success() {
        let tail = &printed[printed.len().saturating_sub(LINES_IN_ERROR)..];
        bail!("`{}` {}:\n{}", describe(command), ending(status), tail.join("\n"));
    }
    Ok(())
}

/// Sends every line of a stream; the channel closes with the last stream.
fn follow(stream: Option<impl Read + Send + 'static>, sender: mpsc::Sender<String>) {
    let Some(stream) = stream else { return };
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
}

/// The command as a user types it.
pub fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn ending(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("failed with exit status {code}"),
        None => format!("was ended by a signal ({status})"),
    }
}
