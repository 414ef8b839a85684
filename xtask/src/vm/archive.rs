//! Packages from other suites of Debian's archive than this machine's, unpacked instead of installed.
//!
//! apt does the work, with its own lists, status and sources in the cache. It verifies signatures and uses
//! this machine's proxy. The system's own configuration of apt stays unchanged.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{command, paths, step::Step};

const ARCHIVE: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite, with an apt configuration of its own.
pub struct Suite {
    folder: PathBuf,
    name: &'static str,
}

impl Suite {
    /// Reads the present package lists of the suite.
    pub fn open(step: &Step, cache: &Path, name: &'static str) -> Result<Self> {
        if paths::program("apt-get").is_none() || paths::program("dpkg-deb").is_none() {
            bail!(
                "kernels come from Debian's archive by apt-get and dpkg-deb, and this machine has none of them: unpack \
                 the packages into {} by hand",
                cache.display()
            );
        }
        let folder = cache.join("apt").join(name);
        for part in ["state/lists/partial", "cache/archives/partial"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        }
        let sources = format!("deb [signed-by={KEYRING}] {ARCHIVE} {name} main\n");
        for (file, text) in [("sources.list", sources.as_str()), ("status", "")] {
            let path = folder.join(file);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        let suite = Self { folder, name };
        command::run_in(step, suite.apt("apt-get").arg("update")).context(
            "reading the lists of Debian's archive: can this machine reach it? A proxy is set up in /etc/apt/apt.conf.d",
        )?;
        Ok(suite)
    }

    /// The dependencies of a package whose names have one of these prefixes.
    pub fn dependencies(&self, package: &str, starts: &[&str]) -> Result<Vec<String>> {
        let shown = command::output(self.apt("apt-cache").args(["show", "--no-all-versions", package]))?;
        let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: "));
        let depends =
            depends.with_context(|| format!("{package} of Debian {} depends on nothing", self.name))?;
        Ok(dependencies(depends, starts))
    }

    /// Downloads packages and unpacks them into a folder, which is emptied first.
    pub fn unpack(&self, step: &Step, packages: &[String], into: &Path) -> Result<()> {
        let downloads = self.folder.join("packages");
        renew(&downloads)?;
        let mut download = self.apt("apt-get");
        download.arg("download").args(packages).current_dir(&downloads);
        command::run_in(step, &mut download)?;
        renew(into)?;
        let files = fs::read_dir(&downloads).with_context(|| format!("listing {}", downloads.display()))?;
        for file in files.flatten() {
            let mut extract = Command::new("dpkg-deb");
            command::run_in(step, extract.arg("--extract").arg(file.path()).arg(into))?;
        }
        fs::remove_dir_all(&downloads).with_context(|| format!("removing {}", downloads.display()))
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        let folder = self.folder.display();
        for option in [
            format!("Dir::Etc::sourcelist={folder}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State={folder}/state"),
            format!("Dir::State::status={folder}/status"),
            format!("Dir::Cache={folder}/cache"),
            "APT::Architecture=amd64".to_owned(),
            // apt's unprivileged user cannot write here.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ] {
            apt.args(["-o", &option]);
        }
        apt
    }
}

/// The packages among dependencies that have one of these prefixes, without their versions.
fn dependencies(depends: &str, starts: &[&str]) -> Vec<String> {
    let names = depends.split(',').filter_map(|one| one.split_whitespace().next());
    names
        .filter(|name| starts.iter().any(|start| name.starts_with(start)))
        .map(str::to_owned)
        .collect()
}

fn renew(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("emptying {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::dependencies;

    #[test]
    fn the_parts_of_a_kernel_are_found_among_the_dependencies() {
        let depends =
            "dracut | initramfs-tools, linux-binary-7.2.13+deb14-amd64 (= 7.2.13-1), linux-modules-7.2";
        assert_eq!(
            dependencies(depends, &["linux-binary-", "linux-modules-"]),
            ["linux-binary-7.2.13+deb14-amd64", "linux-modules-7.2"]
        );
        assert_eq!(dependencies("linux-base", &["linux-image-"]), [""; 0]);
    }
}
