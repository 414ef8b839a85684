//! The errors of the kernel side, with messages that tell an operator what to do.

use std::io;
use std::path::PathBuf;

use super::capabilities;

/// An error of the kernel side.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The bpf root is not on a bpffs.
    #[error(
        "{0}: not on a bpf file system: mount one with `mount -t bpf bpf /sys/fs/bpf`, or name another with --bpf-root"
    )]
    NotBpffs(PathBuf),
    /// The parent directory of the bpf root does not exist.
    #[error(
        "{path}: {error}: mount a bpf file system with `mount -t bpf bpf /sys/fs/bpf`, or name another with --bpf-root"
    )]
    NoBpffs {
        /// The directory.
        path: PathBuf,
        /// The error of the kernel.
        error: io::Error,
    },
    /// The cgroup directory is not on a cgroup2 file system.
    #[error(
        "{0}: not on a cgroup2 file system: name the cgroup v2 root, or a directory below it, with --cgroup"
    )]
    NotCgroup2(PathBuf),
    /// There is no such cgroup.
    #[error("{path}: {error}: name the cgroup v2 root, or a directory below it, with --cgroup")]
    NoCgroup {
        /// The directory.
        path: PathBuf,
        /// The error of the kernel.
        error: io::Error,
    },
    /// Another agent works with the bpf root.
    #[error(
        "another agent is running with --bpf-root {}: stop it first, or give this one a bpf root of its own",
        .0.display()
    )]
    Taken(PathBuf),
    /// A file at a path of ours was not made by Millrace.
    #[error(
        "{path}: not made by Millrace ({what}): move it away or choose another --bpf-root; nothing was changed"
    )]
    Foreign {
        /// The path.
        path: PathBuf,
        /// A description of the file.
        what: String,
    },
    /// Another filter has the position of ours.
    #[error(
        "interface {interface}: a filter `{name}` of another program has priority {priority} and our handle: give it another priority"
    )]
    ForeignFilter {
        /// The interface.
        interface: u32,
        /// The filter's name.
        name: String,
        /// Its priority.
        priority: u16,
    },
    /// A qdisc without filters for the egress direction.
    #[error(
        "interface {interface}: has a qdisc `ingress` of another program, so no program sees the packets that leave there: replace it by `clsact`"
    )]
    ForeignQdisc {
        /// The interface.
        interface: u32,
    },
    /// A newer agent made the pins.
    #[error(
        "{path}: pinned by an agent with layout {found}, this one knows {known}: run that agent, or `millrace uninstall` first; the data plane was not touched"
    )]
    NewerLayout {
        /// The pin directory.
        path: PathBuf,
        /// Its layout version.
        found: u32,
        /// The version this agent knows.
        known: u32,
    },
    /// A file operation failed.
    #[error("{what} {path}: {error}")]
    File {
        /// The operation.
        what: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The error of the kernel.
        error: io::Error,
    },
    /// A bpf(2) command failed.
    #[error("{what}: {error}{}", hint(.error))]
    Syscall {
        /// The command and its object.
        what: String,
        /// The error of the kernel.
        error: io::Error,
    },
    /// The object could not be loaded.
    #[error("loading {program}: {message}")]
    Load {
        /// The program, or `maps`.
        program: String,
        /// The error. If the verifier refused a program, its last line comes first.
        message: String,
    },
}

/// A hint for an error, if a usual cause is known.
pub fn hint(error: &io::Error) -> String {
    let missing = || capabilities::missing().join(", ");
    match error.raw_os_error() {
        Some(libc::EPERM) if missing().is_empty() => {
            ": needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (before Linux 5.11 also CAP_SYS_RESOURCE)"
                .to_owned()
        }
        // The verifier returns this error where CAP_PERFMON is missing.
        Some(libc::EPERM | libc::EACCES) if !missing().is_empty() => {
            format!(": needs {}, which this process lacks", missing())
        }
        Some(libc::EINVAL) => ": the kernel may be too old, 5.10 or newer is needed".to_owned(),
        _ => String::new(),
    }
}

impl BpfError {
    /// A function for `map_err` on file operations.
    pub fn file(what: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |error| Self::File { what, path, error }
    }

    /// A function for `map_err` on system calls.
    pub fn syscall(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Syscall { what, error }
    }
}
