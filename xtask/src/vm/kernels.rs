//! The tested kernels, their sources, and the features that each lacks.
//!
//! They are the kernels that Debian's releases ship, as nodes run them. Each is fetched once and stays in the
//! cache. After the removal of its folder, the newest build of the same series is fetched.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{archive::Suite, modules};
use crate::{paths, step::Step};

/// A series of kernels.
pub struct Kernel {
    /// The first two numbers of the kernel's version.
    pub name: &'static str,
    /// The suite of Debian's archive that has the kernel.
    suite: &'static str,
    /// The prefixes of the reasons for which a test may be skipped on it.
    lacks: &'static [&'static str],
}

impl Kernel {
    /// Whether a skip for this reason is right on this kernel.
    pub fn explains(&self, reason: &str) -> bool {
        self.lacks.iter().any(|start| reason.starts_with(start))
    }
}

/// The oldest supported kernel comes first, the newest last.
const KERNELS: [Kernel; 4] = [
    Kernel {
        name: "5.10",
        suite: "bullseye",
        lacks: &["no SO_NETNS_COOKIE"],
    },
    Kernel {
        name: "6.1",
        suite: "bookworm",
        lacks: &[],
    },
    Kernel {
        name: "6.12",
        suite: "trixie",
        lacks: &[],
    },
    Kernel {
        name: "7.2",
        suite: "sid",
        lacks: &[],
    },
];

/// The package whose one dependency is the suite's current kernel.
const META_PACKAGE: &str = "linux-image-amd64";

/// The kernels of these names; all of them if there is no name.
pub fn select(names: &[String]) -> Result<Vec<&'static Kernel>> {
    if names.is_empty() {
        return Ok(KERNELS.iter().collect());
    }
    names.iter().map(|name| find(name)).collect()
}

/// The kernel of this name.
pub fn find(name: &str) -> Result<&'static Kernel> {
    let found = KERNELS.iter().find(|kernel| kernel.name == name);
    let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
    found.with_context(|| format!("no kernel {name} here, there are {}", known.join(", ")))
}

/// A kernel that is unpacked in the cache.
pub struct Image {
    /// The file that the boot loader loads.
    pub kernel: PathBuf,
    /// The folder that has the modules below `lib/modules`.
    pub root: PathBuf,
    /// The kernel's full name, which is the name of its folder of modules.
    pub release: String,
    /// The program for all work in the guest before its root is mounted.
    pub busybox: PathBuf,
}

/// Fetches a kernel into the cache unless it exists there.
pub fn fetch(kernel: &Kernel) -> Result<Image> {
    let cache = paths::cache()?.join("vm");
    let busybox = cache.join("busybox/bin/busybox");
    if !busybox.exists() {
        let step = Step::start("fetching busybox for the guests");
        let suite = Suite::open(&step, &cache, "bookworm")?;
        suite.unpack(&step, &["busybox-static".to_owned()], &cache.join("busybox"))?;
        step.done();
    }
    let root = cache.join("kernels").join(kernel.name);
    if !root.exists() {
        let step = Step::start(format!(
            "fetching Linux {} of Debian {}",
            kernel.name, kernel.suite
        ));
        let suite = Suite::open(&step, &cache, kernel.suite)?;
        let packages = packages(kernel, &suite)?;
        // A folder of the right name counts as complete, so it gets its name last.
        let unfinished = cache.join("kernels/unfinished");
        suite.unpack(&step, &packages, &unfinished)?;
        modules::index(&step, &busybox, &unfinished)?;
        fs::rename(&unfinished, &root).with_context(|| format!("renaming {}", unfinished.display()))?;
        step.done();
    }
    let release = modules::release(&root)?;
    let places = [
        root.join("boot").join(format!("vmlinuz-{release}")),
        root.join("lib/modules").join(&release).join("vmlinuz"),
    ];
    let kernel = places.into_iter().find(|place| place.exists());
    Ok(Image {
        kernel: kernel.with_context(|| format!("there is no kernel in {}", root.display()))?,
        root,
        release,
        busybox,
    })
}

/// The packages with a kernel and its modules: one package, or in newer suites one for each of the two.
fn packages(kernel: &Kernel, suite: &Suite) -> Result<Vec<String>> {
    let mut packages = suite.dependencies(META_PACKAGE, &["linux-image-"])?;
    let series = format!("linux-image-{}.", kernel.name);
    let Some(image) = packages.first().filter(|image| image.starts_with(&series)) else {
        bail!(
            "Debian {} has {packages:?} now: give Linux {} another suite in xtask/src/vm/kernels.rs",
            kernel.suite,
            kernel.name
        );
    };
    let parts = suite.dependencies(image, &["linux-binary-", "linux-modules-"])?;
    packages.extend(parts);
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::{KERNELS, select};

    #[test]
    fn kernels_are_selected_by_name() {
        let names = |kernels: &[String]| {
            let found =
                select(kernels).map(|found| found.iter().map(|kernel| kernel.name).collect::<Vec<_>>());
            found.ok()
        };
        assert_eq!(names(&[]).map(|all| all.len()), Some(KERNELS.len()));
        assert_eq!(names(&["6.1".to_owned()]), Some(vec!["6.1"]));
        assert_eq!(names(&["6".to_owned()]), None);
    }
}
