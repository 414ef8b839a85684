//! `millrace-cni`: reads the environment and standard input, and writes a document to standard output.

use std::env;
use std::io::{self, Write as _};
use std::process::ExitCode;

fn main() -> ExitCode {
    let output = cni_plugin::call(|name| env::var_os(name), io::stdin().lock());
    let written = output.document.map_or(Ok(()), |document| {
        let mut out = io::stdout().lock();
        writeln!(out, "{document}").and_then(|()| out.flush())
    });
    // An unwritten result counts as failure: the runtime calls DEL then.
    if output.success && written.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
