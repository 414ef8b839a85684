//! Building a program from its Go module into the cache folder of its version.
//!
//! Invariant: a binary of the right name is whole, since it is built under another name.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{Module, Program};
use crate::{command, paths, step::Step};

/// Builds a program unless it exists, and returns its folder. For this repository's own programs, Go itself
/// checks whether they are new enough.
pub fn ensure(program: Program) -> Result<PathBuf> {
    let folder = folder(program.module())?;
    if program.is_ours() || !folder.join(program.name()).is_file() {
        if let Some(reason) = why_no_go()? {
            bail!("{reason}");
        }
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        build(program, &folder)?;
    }
    Ok(folder)
}

/// The folder of a module's programs.
pub fn folder(module: Module) -> Result<PathBuf> {
    Ok(paths::cache()?.join(module.name()).join(version(module)?))
}

/// The version that a module requires of its main dependency.
pub fn version(module: Module) -> Result<String> {
    let file = paths::repository()?.join(module.folder()).join("go.mod");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    required_version(&text, module.requires())
        .with_context(|| format!("{} requires no {}", file.display(), module.requires()))
}

fn required_version(go_mod: &str, required: &str) -> Option<String> {
    go_mod.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word == "require");
        (words.next()? == required).then(|| words.next().map(str::to_owned))?
    })
}

/// The reason why Go cannot build the programs, if there is one. Go itself checks its version against the
/// modules, and fetches a newer one where it may.
pub fn why_no_go() -> Result<Option<String>> {
    if paths::program("go").is_none() {
        return Ok(Some(
            "no `go` on this machine to build Kubernetes with (https://go.dev/dl)".to_owned(),
        ));
    }
    let module = paths::repository()?.join(Module::Kubernetes.folder());
    let asked = command::output(Command::new("go").args(["env", "GOVERSION"]).current_dir(module));
    Ok(asked
        .err()
        .map(|error| format!("this machine's `go` cannot build Kubernetes: {error:#}")))
}

/// The folder with the source of a package.
pub fn source(module: Module, package: &str) -> Result<PathBuf> {
    let mut go = Command::new("go");
    go.args(["list", "-find", "-f", "{{.Dir}}", package])
        .current_dir(paths::repository()?.join(module.folder()));
    Ok(PathBuf::from(command::output(&mut go)?.trim()))
}

fn build(program: Program, folder: &Path) -> Result<()> {
    let (name, module) = (program.name(), program.module());
    let version = version(module)?;
    let step = Step::start(format!(
        "building {name} for {} {version} (once, may take minutes)",
        module.name()
    ));
    let partial = folder.join(format!(".{name}.{}", std::process::id()));
    let mut go = Command::new("go");
    if program.is_test() {
        go.args(["test", "-c"]);
    } else {
        go.args(["build", "-v"]);
    }
    go.args(["-trimpath", "-tags", module.tags()])
        .args(["-ldflags", &format!("-s -w {}", module.stamp(&version)), "-o"])
        .arg(&partial)
        .arg(program.package())
        .current_dir(paths::repository()?.join(module.folder()))
        .env("CGO_ENABLED", "0");
    command::run_in(&step, &mut go)
        .with_context(|| format!("building {name}: is Go's module proxy reachable (`go env GOPROXY`)?"))?;
    let finished = folder.join(name);
    fs::rename(&partial, &finished).with_context(|| format!("creating {}", finished.display()))?;
    step.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::required_version;

    #[test]
    fn the_required_version_is_read_in_each_form() {
        let version = |text| required_version(text, "k8s.io/kubernetes");
        let expected = Some("v1.36.3".to_owned());
        assert_eq!(version("require k8s.io/kubernetes v1.36.3\n"), expected);
        assert_eq!(
            version("require (\n\tk8s.io/kubernetes v1.36.3 // indirect\n)"),
            expected
        );
        assert_eq!(version("replace k8s.io/api => k8s.io/api v0.36.3\n"), None);
    }
}
