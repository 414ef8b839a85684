//! `millrace uninstall`: removes everything of ours from this node, and only that.
//!
//! Programs and maps live as long as their pins, so removing the pins below the bpf root detaches and frees them; then
//! the routes, the devices and the files go. What is not ours is left where it is and mentioned. While an agent runs nothing is removed, since it
//! would put everything back: the locks of the run directory and of the bpf root are held throughout. With
//! `--wait` the former is held until a signal ends the program, which is for pods: a DaemonSet counts only
//! those that stay.
//!
//! Invariant: it can be repeated; whatever an interrupted run left is removed by the next.

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
    /// What the agent keeps over a boot
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/millrace",
        env = "MILLRACE_STATE_DIR"
    )]
    state_dir: PathBuf,
    /// When everything is gone, stay until SIGTERM or SIGINT, as a pod of a DaemonSet has to
    #[arg(long)]
    wait: bool,
}

/// The answer to `millrace uninstall`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Uninstalled {
    /// What is gone.
    pub removed: Vec<Removed>,
    /// What stands in our places without being ours.
    pub left: Vec<Left>,
}

/// Something that was not removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Its path or name.
    pub name: String,
    /// Why it was left.
    pub reason: String,
}

/// Removes everything of ours and prints what it was.
pub fn run(global: &Global, args: &UninstallArgs) -> anyhow::Result<bool> {
    let (uninstalled, run_dir) = uninstall(global, args)?;
    output::print(global.output, &uninstalled, || render(&uninstalled))?;
    if args.wait {
        until_told_to_end()?;
    }
    // No agent has started until now, unless the directory itself is gone.
    drop(run_dir);
    Ok(true)
}

/// Sleeps until a signal ends it. Blocked signals reach the first process of a container too, which has no default for them.
fn until_told_to_end() -> anyhow::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("blocking signals")?;
    eprintln!("done; waiting for SIGTERM");
    signals.wait().context("waiting for a signal")?;
    Ok(())
}

/// Returns the lock too, where there is a directory to lock.
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
    // Filters hold their programs without a pin.
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

/// Keeps agents from a bpf root that is there.
fn own(root: &Path) -> anyhow::Result<Option<Owned>> {
    let owned = Pins::existing(root).map(|pins| pins.own()).transpose();
    owned.map_err(|error| match error {
        BpfError::Taken(path) => {
            let process = pins::holder(root).map_or_else(String::new, |process| format!(" (process {process})"));
            anyhow::anyhow!(
                "an agent{process} is running with --bpf-root {} and another --run-dir: stop it first (systemctl stop, or \
                 delete its DaemonSet), else it would put everything back",
                path.display()
            )
        }
        other => other.into(),
    })
}

/// What was done, for people.
pub fn render(uninstalled: &Uninstalled) -> String {
    let mut text = String::new();
    if uninstalled.removed.is_empty() {
        text.push_str("There was nothing of Millrace to remove.\n");
    } else {
        let mut table = Table::new(&[("REMOVED", Align::Left), ("", Align::Left)]);
        // They went in the order that a file system lists them in, which is none.
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
