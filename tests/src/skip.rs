//! Skipping a test is a result: it prints the reason. If `MILLRACE_SKIPS` names a file, the reason is added
//! to that file. So the run can fail when a skip was not expected on that machine.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::process::Command;

use nix::unistd::geteuid;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::cgroup;

/// Records that a test is skipped, and the reason.
#[track_caller]
pub fn skip(test: &str, reason: &str) {
    eprintln!("skipped {test}: {reason}");
    let Some(path) = env::var_os("MILLRACE_SKIPS") else {
        return;
    };
    let line = format!("{}\n", json!({"test": test, "reason": reason}));
    // One write of less than a page to a file opened for appending: lines of parallel tests do not mix.
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        panic!("recording a skipped test in {}: {error}", path.display());
    }
}

/// The reason why this machine cannot make worlds, if there is one.
pub fn missing() -> Option<String> {
    if !geteuid().is_root() {
        return Some("needs root: makes network namespaces and loads BPF programs".to_owned());
    }
    cgroup::mount_point().err().map(|error| format!("{error:#}"))
}

/// The reason why SCTP sockets do not work here, if they do not. The check loads the module if there is one.
pub fn no_sctp() -> Option<String> {
    let error = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::SCTP)).err()?;
    Some(format!("no SCTP sockets: {error}"))
}

/// The reason why nftables rules do not work here, if they do not.
pub fn no_nft() -> Option<String> {
    let Ok(output) = Command::new("nft").args(["list", "tables"]).output() else {
        return Some("no `nft`: install nftables".to_owned());
    };
    let error = String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| format!("the kernel has no nftables: {error}"))
}

/// The reason why tables of the legacy iptables do not work here, if they do not. The check creates some, in
/// a namespace of its own.
pub fn no_legacy_iptables() -> Option<String> {
    let mut list = Command::new("unshare");
    let Ok(output) = list.args(["--net", "--", "iptables-legacy", "-S"]).output() else {
        return Some("no `iptables-legacy`: install iptables".to_owned());
    };
    let error = String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| format!("no tables of the legacy iptables: {error}"))
}

/// The path of the enclosing function: the test's file and name.
#[macro_export]
macro_rules! current_test {
    () => {{
        fn here() {}
        ::std::any::type_name_of_val(&here).trim_end_matches("::here")
    }};
}

/// Returns from the test and records a skip, if an expression gives a reason.
#[macro_export]
macro_rules! skip_if {
    ($reason:expr) => {
        if let Some(reason) = $reason {
            $crate::skip::skip($crate::current_test!(), &reason);
            return;
        }
    };
}

/// Returns from the test and records a skip, unless this machine can make worlds.
#[macro_export]
macro_rules! require_root {
    () => {
        $crate::skip_if!($crate::skip::missing())
    };
}
