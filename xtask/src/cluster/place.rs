//! Running commands in places of the cluster: in the control plane's network namespace, or in a node.
//!
//! A command there finds the cluster's programs before those of the machine.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    cgroup,
    process::Process,
    site::{CONTROL, Files, NETNS, Node},
};
use crate::{
    command,
    kubernetes::{Program, Programs},
    setup::unpacked,
};

/// The files and programs that commands in the cluster need.
pub struct Toolbox {
    pub files: Files,
    pub programs: Programs,
    /// The folder of the unpacked tools of nodes.
    pub tools: PathBuf,
    /// The paths of the programs of this repository, by name.
    pub own: BTreeMap<String, PathBuf>,
}

impl Toolbox {
    /// A command that runs in the control plane's namespace.
    pub fn in_control(&self) -> Result<Command> {
        let mut command = in_netns(CONTROL);
        command
            .env("PATH", self.path()?)
            .env("KUBECONFIG", self.files.kubeconfig("admin"));
        Ok(command)
    }

    /// A built program that runs in the control plane's namespace.
    pub fn control_program(&self, program: Program) -> Result<Command> {
        let mut command = self.in_control()?;
        command.arg(self.programs.path(program)?);
        Ok(command)
    }

    /// Runs `kubectl` as an administrator and returns its output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        command::output(self.control_program(Program::Kubectl)?.args(arguments))
    }

    /// Creates or changes the objects of a manifest of the repository.
    pub fn apply(&self, manifest: &Path) -> Result<()> {
        let mut kubectl = self.control_program(Program::Kubectl)?;
        kubectl.args(["apply", "--filename"]).arg(manifest);
        command::output(&mut kubectl).map(drop)
    }

    /// A command that runs in all namespaces of a node, and in its cgroup, where socket hooks see it.
    pub fn in_node(&self, node: Node) -> Result<Command> {
        let init = Process::find(&self.files.node(node), super::node::PROCESS)
            .and_then(|holder| holder.child())
            .with_context(|| format!("node {} does not run", node.name()))?;
        let mut shell = Command::new("sh");
        // The shell moves itself into the cgroup and becomes nsenter, which becomes the command.
        shell
            .args(["-c", "echo 0 > \"$0/cgroup.procs\" && exec \"$@\""])
            .arg(cgroup::of(node)?)
            .args(["nsenter", &format!("--target={init}")])
            .args(["--mount", "--net", "--pid", "--uts", "--ipc", "--"]);
        self.equip(&mut shell)?;
        Ok(shell)
    }

    /// The path of a program of this repository.
    pub fn own(&self, name: &str) -> Result<&Path> {
        let path = self.own.get(name);
        Ok(path.with_context(|| format!("{name} was not built"))?)
    }

    /// Sets the environment of programs on nodes.
    pub fn equip(&self, command: &mut Command) -> Result<()> {
        let libraries = env::join_paths(unpacked::libraries(&self.tools)).context("joining paths")?;
        command
            .env("PATH", self.path()?)
            .env("LD_LIBRARY_PATH", libraries)
            .env(
                "XTABLES_LIBDIR",
                unpacked::libraries(&self.tools)[0].join("xtables"),
            )
            .env("KUBECONFIG", self.files.kubeconfig("admin"));
        Ok(())
    }

    fn path(&self) -> Result<OsString> {
        let inherited = env::var_os("PATH").unwrap_or_default();
        let folders = self.programs.folders().iter().cloned();
        let own = self
            .own
            .values()
            .filter_map(|path| Some(path.parent()?.to_owned()));
        let tools = ["usr/sbin", "usr/bin", "sbin", "bin"].map(|folder| self.tools.join(folder));
        let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
        env::join_paths(
            folders
                .chain(own)
                .chain(tools)
                .chain(env::split_paths(&inherited))
                .chain(system),
        )
        .context("a folder of programs has a colon in its name")
    }
}

/// The start of a command in a named network namespace.
///
/// `ip netns exec` is no option, since it hides the mounted cgroups.
pub fn in_netns(name: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={NETNS}/{name}"));
    command
}
