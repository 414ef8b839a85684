//! The output of documents: to stdout, as JSON or as text.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

/// The format of a printed document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A table for people
    Table,
    /// JSON for programs: one document, whose keys are only ever added to
    Json,
}

/// Prints a document. `table` makes the text for people, with colours; these are left out if stdout is no
/// terminal.
pub fn print<T: Serialize + ?Sized>(
    format: OutputFormat,
    document: &T,
    table: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    match format {
        OutputFormat::Table => anstream::stdout().lock().write_all(table().as_bytes())?,
        OutputFormat::Json => {
            let stdout = io::stdout();
            let mut line = if stdout.is_terminal() {
                serde_json::to_vec_pretty(document)?
            } else {
                serde_json::to_vec(document)?
            };
            line.push(b'\n');
            stdout.lock().write_all(&line)?;
        }
    }
    Ok(())
}

/// Whether printing failed because the reader has closed the pipe.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
