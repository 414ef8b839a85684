//! The program `millrace`: the agent of a node and the operator's command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    millrace::cli::main(millrace::agent::run)
}
