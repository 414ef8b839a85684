//! The container images of the cluster. They are made here, since there is no registry to pull them from.
//!
//! An image is a root file system in one layer. The images in which specs run commands share a base of Debian
//! packages; the others hold one program. They have the names of the images of Kubernetes' suite, under a
//! registry that does not exist. A file tells the suite about that registry.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::{
    command,
    image::{self, Image},
    kubernetes::{self, Module, Program, Programs},
    paths,
    setup::unpacked,
    step::Step,
};

/// The registry of all images.
const REGISTRY: &str = "e2e.local";
/// The image of the process that holds the namespaces of a pod.
pub const PAUSE: &str = "e2e.local/pause:3.10.2";
/// Version of the images; a change of this file that makes other images from the same programs increases it.
const RECIPE: u32 = 1;

/// Images as archives in a folder.
pub struct Images {
    folder: PathBuf,
}

impl Images {
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file that tells the suite the registry of its images.
    pub fn registries(&self) -> PathBuf {
        self.folder.join("registries.yaml")
    }

    /// Makes the images unless those of this recipe and release exist.
    pub fn ensure(programs: &Programs) -> Result<Self> {
        let release = kubernetes::version()?;
        let folder = paths::cache()?.join("images").join(format!("{release}-{RECIPE}"));
        if !folder.exists() {
            let base = unpacked::root_of_images()?;
            let step = Step::start("making container images (once)");
            let partial = folder.with_extension(format!("partial.{}", std::process::id()));
            make(programs, &base, &partial, &step)?;
            fs::rename(&partial, &folder).with_context(|| format!("creating {}", folder.display()))?;
            step.done();
        }
        Ok(Self { folder })
    }
}

/// A folder for the roots and archives of the images.
struct ImageBuilder<'a> {
    programs: &'a Programs,
    folder: &'a Path,
    step: &'a Step,
}

fn make(programs: &Programs, packages: &Path, folder: &Path, step: &Step) -> Result<()> {
    let roots = folder.join("roots");
    fs::create_dir_all(&roots).with_context(|| format!("creating {}", roots.display()))?;
    let builder = ImageBuilder {
        programs,
        folder,
        step,
    };
    let base = roots.join("base");
    copy(packages, &base)?;
    builder.finish_base(&base)?;
    // The suite reads firewall rules with the one image and resolves names with the other.
    builder.pack(
        &base,
        &["glibc-dns-testing:2.0.0", "distroless-iptables:v0.9.6"],
        &["sh"],
        &[],
    )?;
    builder.agnhost(&base, &roots.join("agnhost"))?;
    builder.busybox(&base, &roots.join("busybox"))?;
    builder.pause(&roots.join("pause"))?;
    builder.single(
        Program::OutOfWindow,
        &roots.join("out-of-window"),
        "regression-issue-74839:1.4",
    )?;
    builder.single(Program::Coredns, &roots.join("coredns"), "coredns:local")?;
    fs::remove_dir_all(&roots).context("removing the images' roots")?;
    let registries: serde_json::Map<_, _> = [
        "promoterE2eRegistry",
        "buildImageRegistry",
        "gcEtcdRegistry",
        "gcRegistry",
        "sigStorageRegistry",
        "dockerLibraryRegistry",
        "cloudProviderGcpRegistry",
    ]
    .into_iter()
    .map(|key| (key.to_owned(), json!(REGISTRY)))
    .collect();
    let text = serde_json::to_string(&registries).context("writing the registries")?;
    fs::write(folder.join("registries.yaml"), text).context("writing the registries")
}

impl ImageBuilder<'_> {
    /// Does the steps of the packages' own installation that specs depend on.
    fn finish_base(&self, root: &Path) -> Result<()> {
        for folder in [
            "usr/share/doc",
            "usr/share/man",
            "usr/share/locale",
            "usr/share/info",
            "usr/share/perl",
            "usr/share/perl5",
            "var/cache",
            "etc/alternatives",
        ] {
            if root.join(folder).exists() {
                fs::remove_dir_all(root.join(folder)).with_context(|| format!("removing {folder}"))?;
            }
        }
        for folder in [
            "proc",
            "sys",
            "dev",
            "tmp",
            "root",
            "run",
            "home/user",
            "uploads",
            "var/cache",
            "usr/local/bin",
        ] {
            fs::create_dir_all(root.join(folder)).with_context(|| format!("making {folder}"))?;
        }
        link(root, "bin/nc", "nc.openbsd")?;
        link(root, "bin/sh", "bash")?;
        // GNU's wget tries 20 times, so a spec that expects no connection would take minutes.
        fs::write(root.join("etc/wgetrc"), "tries = 1\n").context("configuring wget")?;
        let passwd = "root:x:0:0:root:/root:/bin/sh\n\
                      nobody:x:65534:65534:nobody:/:/bin/false\n\
                      user-defined-in-image:x:1000:1000::/home/user:/bin/sh\n";
        let group = "root:x:0:\n\
                     nogroup:x:65534:\n\
                     user-defined-in-image:x:1000:\n\
                     group-defined-in-image:x:50000:user-defined-in-image\n";
        fs::write(root.join("etc/passwd"), passwd).context("writing users")?;
        fs::write(root.join("etc/group"), group).context("writing groups")?;
        applets(root, "/bin/busybox", |root, name| {
            let folders = ["bin", "sbin", "usr/bin", "usr/sbin"];
            folders
                .iter()
                .all(|folder| fs::symlink_metadata(root.join(folder).join(name)).is_err())
        })?;
        let mut ldconfig = Command::new("chroot");
        ldconfig.arg(root).arg("/sbin/ldconfig");
        command::run_in(self.step, &mut ldconfig)
    }

    fn agnhost(&self, base: &Path, root: &Path) -> Result<()> {
        copy(base, root)?;
        self.place(Program::Agnhost, root)?;
        link(root, "agnhost-2", "agnhost")?;
        // Specs about pods' resolv.conf run it in this image.
        self.place(Program::Coredns, root)?;
        link(root, "usr/local/bin/iperf", "/usr/bin/iperf")?;
        let source = kubernetes::source(Module::Kubernetes, &Program::Agnhost.package())?;
        for name in ["localhost.crt", "localhost.key"] {
            let text =
                fs::read(source.join("porter").join(name)).with_context(|| format!("reading {name}"))?;
            fs::write(root.join(name), text).with_context(|| format!("writing {name}"))?;
        }
        self.pack(
            root,
            &["agnhost:2.63.0", "agnhost:2.55"],
            &["pause"],
            &["/agnhost"],
        )
    }

    fn busybox(&self, base: &Path, root: &Path) -> Result<()> {
        let libraries = unpacked::libraries(Path::new(""))[1].clone();
        for folder in [
            "bin", "usr/bin", "etc", "tmp", "proc", "sys", "dev", "root", "var/run", "lib64",
        ] {
            fs::create_dir_all(root.join(folder)).with_context(|| format!("making {folder}"))?;
        }
        copy(&base.join("bin/busybox"), &root.join("bin/busybox"))?;
        for name in ["etc/passwd", "etc/group"] {
            copy(&base.join(name), &root.join(name))?;
        }
        let of = |folder: &Path| folder.join(&libraries);
        fs::create_dir_all(of(root)).context("making a folder for libraries")?;
        for name in [
            "libc.so.6",
            "libresolv.so.2",
            "libnss_dns.so.2",
            "libnss_files.so.2",
        ] {
            copy(&of(base).join(name), &of(root).join(name))?;
        }
        // The link at the loader's fixed path is absolute and would lead to this machine's file, so the file
        // itself is copied.
        for folder in ["lib", "lib64"] {
            for entry in fs::read_dir(base.join(folder)).into_iter().flatten().flatten() {
                let name = entry.file_name();
                if name.to_string_lossy().starts_with("ld-linux") {
                    copy(&of(base).join(&name), &root.join(folder).join(&name))?;
                }
            }
        }
        applets(root, "busybox", |_, name| name != "busybox")?;
        link(root, "usr/bin/env", "/bin/env")?;
        self.pack(root, &["busybox:1.37.0-1"], &["sh"], &[])
    }

    /// Makes the image of `pause`. Kubernetes has its source, in C, beside that of its programs.
    fn pause(&self, root: &Path) -> Result<()> {
        fs::create_dir_all(root).context("making a root")?;
        let agnhost = kubernetes::source(Module::Kubernetes, &Program::Agnhost.package())?;
        // The file is in the module's folder, which is three levels above test/images/agnhost.
        let source = agnhost.join("../../../build/pause/linux/pause.c");
        let mut compiler = Command::new("cc");
        compiler
            .args(["-Os", "-static", "-DVERSION=local", "-o"])
            .arg(root.join("pause"))
            .arg(source);
        command::run_in(self.step, &mut compiler)?;
        let name = PAUSE.trim_start_matches(REGISTRY).trim_start_matches('/');
        self.pack(root, &[name], &[], &["/pause"])
    }

    /// Makes an image that holds one program alone.
    fn single(&self, program: Program, root: &Path, name: &str) -> Result<()> {
        fs::create_dir_all(root.join("etc")).context("making a root")?;
        self.place(program, root)?;
        let entry = format!("/{}", program.name());
        self.pack(root, &[name], &[], &[&entry])
    }

    fn place(&self, program: Program, root: &Path) -> Result<()> {
        copy(&self.programs.path(program)?, &root.join(program.name()))
    }

    fn pack(&self, root: &Path, names: &[&str], arguments: &[&str], entry: &[&str]) -> Result<()> {
        let names: Vec<_> = names.iter().map(|name| format!("{REGISTRY}/{name}")).collect();
        let image = Image {
            names: &names,
            entry,
            arguments,
            compressed: false,
        };
        self.step.note(&names[0]);
        image::write(self.folder, root, &image).with_context(|| format!("making image {}", names[0]))?;
        Ok(())
    }
}

/// Links the selected commands of busybox to it.
fn applets(root: &Path, target: &str, wanted: impl Fn(&Path, &str) -> bool) -> Result<()> {
    let mut list = Command::new("chroot");
    list.arg(root).args(["/bin/busybox", "--list"]);
    for name in command::output(&mut list)?.lines() {
        if wanted(root, name) {
            link(root, &format!("bin/{name}"), target)?;
        }
    }
    Ok(())
}

fn link(root: &Path, at: &str, target: &str) -> Result<()> {
    let path = root.join(at);
    if fs::symlink_metadata(&path).is_ok() {
        fs::remove_file(&path).with_context(|| format!("replacing {at}"))?;
    }
    symlink(target, &path).with_context(|| format!("linking {at} to {target}"))
}

/// Copies a file, or a folder with all attributes of its files. A link as `from` is followed.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.args(["--archive", "-H", "--no-target-directory"])
        .arg(from)
        .arg(to);
    command::output(&mut copy).map(drop)
}
