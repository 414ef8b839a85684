//! Logs: to stderr, at the level of `-v` or `MILLRACE_LOG`.

use std::io::{self, IsTerminal};

use anyhow::anyhow;
use tracing_subscriber::EnvFilter;

/// The environment variable that sets the filter of the log, in the syntax of `EnvFilter`: `debug`,
/// `warn,millrace::source=trace`.
pub const VARIABLE: &str = "MILLRACE_LOG";

/// Starts the log. `verbosity` counts the `-v`; the environment overrides it.
pub fn start(verbosity: u8) -> anyhow::Result<()> {
    let filter = match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => {
            EnvFilter::try_new(&text).map_err(|error| anyhow!("{VARIABLE}={text}: {error}"))?
        }
        // Libraries log their details at the highest level only. The API client's messages about a failed
        // request only repeat the agent's own.
        _ => EnvFilter::new(match verbosity {
            0 => "warn,millrace=info,kube_client=off",
            1 => "info,millrace=debug",
            2 => "info,millrace=trace",
            _ => "trace",
        }),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(verbosity > 0)
        .init();
    Ok(())
}
