//! Which kernels are tested, where they come from, and what each is known to lack.
//!
//! They are the kernels that Debian's releases ship: what nodes run, built as nodes have them. One is fetched once and
//! stays in the cache; removing its folder there fetches the newest build of the same series.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{archive::Suite, modules};
use crate::{paths, step::Step};

/// A series of kernels.
pub struct Kernel {
    /// The first two numbers of its version.
    pub name: &'static str,
    /// The suite of Debian's archive that has it.
    suite: &'static str,
    /// How the reasons start for which a test may be skipped there.
    lacks: &'static [&'static str],
}

impl Kernel {
    /// Whether a skip for this reason is right on this kernel.
    pub fn explains(&self, reason: &str) -> bool {
        self.lacks.iter().any(|start| reason.starts_with(start))
    }
}

/// Oldest first: the floor, and the newest.
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

/// The kernels of these names; all where none is named.
pub fn select(names: &[String]) -> Result<Vec<&'static Kernel>> {
    if names.is_empty() {
        return Ok(KERNELS.iter().collect());
    }
    let find = |name: &String| {
        let found = KERNELS.iter().find(|kernel| kernel.name == name);
        let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
        found.with_context(|| format!("no kernel {name} here, there are {}", known.join(", ")))
    };
    names.iter().map(find).collect()
}

/// A kernel that is unpacked in the cache.
pub struct Image {
    /// What the boot loader loads.
    pub kernel: PathBuf,
    /// The folder that has its modules below `lib/modules`.
    pub root: PathBuf,
    /// Its full name, after which its folder of modules is called.
    pub release: String,
    /// The program that does everything in the guest before its root is there.
    pub busybox: PathBuf,
}

/// Fetches a kernel into the cache unless it is there.
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
        // Whole or not at all: a folder of the right name is taken to be complete.
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

/// The packages that have a kernel and its modules: one, or in newer suites one for each.
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
