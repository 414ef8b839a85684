//! The boot archive of a guest, and the steps of its first process.
//!
//! The archive holds busybox, the few modules that are needed to mount the root, and `init`. `init` mounts
//! this machine's root, read-only by 9p, under a layer in memory, and moves there. It makes /proc, /sys,
//! /dev, /run and a cgroup v2 hierarchy, sets up the loopback, and mounts its kernel's modules. Then it runs
//! a copy of this program over the plan, and powers off. All files that the tests write are gone with the
//! guest.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{cpio::Archive, kernels::Image, modules, report::Plan};

/// The tag by which the guest finds the host's root.
pub const ROOT_TAG: &str = "host";
/// The serial port for reports.
const PORT: &str = "/dev/ttyS1";

/// The files for qemu.
pub struct Guest {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// The file for the console's output.
    pub console: PathBuf,
}

/// Writes the archive, the plan and a copy of this program into a folder.
pub fn prepare(image: &Image, plan: &Plan, folder: &Path) -> Result<Guest> {
    let write = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        anyhow::Ok(path)
    };
    let plan = write(
        "plan.json",
        &serde_json::to_vec(plan).context("writing the plan")?,
    )?;
    let program = folder.join("xtask");
    // By this link, since a build may have replaced the file that this process was started from.
    fs::copy("/proc/self/exe", &program).context("copying this program for the guest")?;
    let initramfs = write("initramfs", &archive(image, &program, &plan)?)?;
    Ok(Guest {
        kernel: image.kernel.clone(),
        initramfs,
        console: folder.join("console.log"),
    })
}

fn archive(image: &Image, program: &Path, plan: &Path) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let dependencies = modules::dependencies(&image.root, &image.release)?;
    let files = modules::in_order(&dependencies, &modules::FOR_THE_ROOT);
    let mut archive = Archive::default();
    for name in ["bin", "dev", "host", "layer", "modules", "proc", "root", "sys"] {
        archive.directory(name);
    }
    archive.program("bin/busybox", &read(&image.busybox)?);
    let mut load = String::new();
    for file in &files {
        let name = file.rsplit('/').next().unwrap_or(file);
        let path = image.root.join("lib/modules").join(&image.release).join(file);
        archive.program(&format!("modules/{name}"), &read(&path)?);
        // Writing to a String never fails.
        let _ = writeln!(load, "insmod /modules/{name}");
    }
    let init = INIT
        .replace("@LOAD@", &load)
        .replace("@TAG@", ROOT_TAG)
        .replace("@PATH@", &env::var("PATH").unwrap_or_default())
        .replace("@HOME@", &env::var("HOME").unwrap_or_else(|_| "/root".into()))
        .replace("@KERNEL@", &image.root.display().to_string())
        .replace("@XTASK@", &program.display().to_string())
        .replace("@PLAN@", &plan.display().to_string())
        .replace("@PORT@", PORT);
    archive.program("init", init.as_bytes());
    Ok(archive.finish())
}

/// The script of the first process. Its second half runs in the final root, and must be a file there.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
@LOAD@
mount -t tmpfs layer /layer
mkdir /layer/upper /layer/work
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=524288 @TAG@ /host ||
    { echo "the host's root cannot be mounted"; poweroff -f; }
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /root ||
    { echo "no layer can be put over the host's root"; poweroff -f; }
for place in proc sys dev; do mount --move /$place /root/$place; done
mount -t tmpfs run /root/run
cp /bin/busybox /root/run/busybox
cat > /root/run/init <<'END'
export PATH='@PATH@' HOME='@HOME@' MILLRACE_SLOWNESS=10
box=/run/busybox
$box mkdir -p /dev/pts /dev/shm /run/lock /run/netns /lib/modules
$box mount -t devpts devpts /dev/pts
$box mount -t tmpfs shm /dev/shm
$box mount -t cgroup2 cgroup2 /sys/fs/cgroup
$box mount -t bpf bpf /sys/fs/bpf
$box mount --bind '@KERNEL@/lib/modules' /lib/modules
$box ln -s busybox /run/modprobe
echo /run/modprobe > /proc/sys/kernel/modprobe
$box hostname guest
$box ip link set lo up
'@XTASK@' guest '@PLAN@' @PORT@ 2>&1 | $box cat
$box sync
$box poweroff -f
END
exec switch_root /root /run/busybox sh /run/init
"#;
