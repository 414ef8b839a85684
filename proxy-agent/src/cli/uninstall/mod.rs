//! `millrace uninstall`: removes all parts of Millrace from this node, and nothing else.
//!
//! Programs and maps live as long as their pins, so the removal of the pins below the bpf root detaches and
//! frees them. Then it removes the routes, the devices and the files. Foreign files stay where they are and
//! are reported. It removes nothing while an agent runs, since the agent would restore it. So it holds the
//! locks of the run directory and of the bpf root. With `--wait` it holds the lock of the run directory until
//! a signal ends it. This is for pods, since a DaemonSet counts only pods that stay.
//!
//! Invariant: it can be repeated; the next run removes the rest that an interrupted run left.

mod devices;
mod files;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;

use super::Global;
use super::output;
use super::table::{Align, Table};
use super::text::{WARNING, line, styled};
use crate::bpf::pins::{self, Owned, Pins, Removed};
use crate::bpf::{BpfError, clsact};
use crate::control::{RunDir, RunDirError};

/// `millrace uninstall`
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// The directory of the agent's files that outlive a boot
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/millrace",
        env = "MILLRACE_STATE_DIR"
    )]
    state_dir: PathBuf,
    /// When everything is removed, wait for SIGTERM or SIGINT, as a pod of a DaemonSet must
    #[arg(long)]
    wait: bool,
}

/// The result of `millrace uninstall`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Uninstalled {
    /// The removed objects.
    pub removed: Vec<Removed>,
    /// Foreign objects in our places.
    pub left: Vec<Left>,
}

/// An object that was not removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Its path or name.
    pub name: String,
    /// The reason why it was left.
    pub reason: String,
}

/// Removes all of our objects and prints them.
pub fn run(global: &Global, args: &UninstallArgs) -> anyhow::Result<bool> {
    let (uninstalled, run_dir) = uninstall(global, args)?;
    output::print(global.output, &uninstalled, || render(&uninstalled))?;
    if args.wait {
        wait_for_signal()?;
    }
    // The lock was held until here, so no agent has started, unless the directory itself is gone.
    drop(run_dir);
    Ok(true)
}

/// Sleeps until a signal ends it. The first process of a container has no default action for signals, but
/// receives blocked ones too.
fn wait_for_signal() -> anyhow::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("blocking signals")?;
    eprintln!("done; waiting for SIGTERM");
    signals.wait().context("waiting for a signal")?;
    Ok(())
}

/// Also returns the lock of the run directory, if that directory exists.
fn uninstall(global: &Global, args: &UninstallArgs) -> anyhow::Result<(Uninstalled, Option<RunDir>)> {
    let run_dir = RunDir::existing(&global.run_dir).map_err(|error| match error {
        RunDirError::Taken(path) => anyhow::anyhow!(
            "an agent is running with --run-dir {}: stop it first (systemctl stop, or delete its DaemonSet), else it would \
             put everything back",
            path.display()
        ),
        other => other.into(),
    })?;
    let mut uninstalled = Uninstalled::default();
    let bpf_root = &global.bpf_root;
    // Filters keep their programs loaded without a pin.
    let is_bpffs = files::is_bpffs(bpf_root)?;
    // An agent with another run directory may work with this root.
    let _owned = is_bpffs.then(|| own(bpf_root)).transpose()?;
    let qdiscs = is_bpffs.then(|| pins::qdiscs(bpf_root));
    uninstalled.removed =
        clsact::remove_all(qdiscs.as_deref()).context("removing filters from interfaces")?;
    if is_bpffs {
        let removed = pins::remove_all(bpf_root);
        uninstalled
            .removed
            .extend(removed.with_context(|| format!("removing the pins below {}", bpf_root.display()))?);
        let foreign = pins::foreign(bpf_root).into_iter().map(|path| Left {
            name: path.display().to_string(),
            reason: "not ours".to_owned(),
        });
        uninstalled.left.extend(foreign);
    } else {
        files::report_left(
            bpf_root,
            "not on a bpf file system, so nothing of ours is pinned there",
            &mut uninstalled,
        )?;
    }
    devices::remove(&mut uninstalled)?;
    files::remove_installed(&args.state_dir, &mut uninstalled)?;
    files::remove_directory(&args.state_dir, files::STATE, &mut uninstalled)?;
    files::remove_directory(&global.run_dir, files::RUN, &mut uninstalled)?;
    Ok((uninstalled, run_dir))
}

/// Keeps agents from an existing bpf root.
fn own(root: &Path) -> anyhow::Result<Option<Owned>> {
    let owned = Pins::existing(root).map(|pins| pins.own()).transpose();
    owned.map_err(|error| match error {
        BpfError::Taken(path) => {
            let process = pins::lock_holder(root).map_or_else(String::new, |process| format!(" (process {process})"));
            anyhow::anyhow!(
                "an agent{process} is running with --bpf-root {} and another --run-dir: stop it first (systemctl stop, or \
                 delete its DaemonSet), else it would put everything back",
                path.display()
            )
        }
        other => other.into(),
    })
}

/// The result as text for people.
pub fn render(uninstalled: &Uninstalled) -> String {
    let mut text = String::new();
    if uninstalled.removed.is_empty() {
        text.push_str("There was nothing of Millrace to remove.\n");
    } else {
        let mut table = Table::new(&[("REMOVED", Align::Left), ("", Align::Left)]);
        // They were removed in the order of the file system, which means nothing.
        for alike in uninstalled.removed.chunk_by(|one, other| one.kind == other.kind) {
            let mut names: Vec<_> = alike.iter().map(|removed| removed.name.as_str()).collect();
            names.sort_unstable();
            for name in names {
                table.row([alike[0].kind.as_str().into(), name.into()]);
            }
        }
        let _ = write!(text, "{table}");
    }
    for Left { name, reason } in &uninstalled.left {
        let _ = writeln!(
            text,
            "{} {}",
            styled(WARNING, "left alone:"),
            line(format!("{name}: {reason}"))
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(uninstalled: &Uninstalled) -> String {
        anstream::adapter::strip_str(&render(uninstalled)).to_string()
    }

    #[test]
    fn what_went_and_what_stayed() {
        let uninstalled = Uninstalled {
            removed: vec![
                Removed {
                    kind: "link".into(),
                    name: "cgroup-connect6".into(),
                },
                Removed {
                    kind: "link".into(),
                    name: "cgroup-connect4".into(),
                },
                Removed {
                    kind: "device".into(),
                    name: "millrace0".into(),
                },
            ],
            left: vec![Left {
                name: "/sys/fs/bpf/millrace/other".into(),
                reason: "not ours".into(),
            }],
        };
        assert_eq!(
            plain(&uninstalled),
            "\
REMOVED
link     cgroup-connect4
link     cgroup-connect6
device   millrace0
left alone: /sys/fs/bpf/millrace/other: not ours
"
        );
        assert_eq!(
            plain(&Uninstalled::default()),
            "There was nothing of Millrace to remove.\n"
        );
    }
}
