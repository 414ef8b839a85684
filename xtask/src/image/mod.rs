//! `cargo xtask image`: the programs for a cluster, as an archive that container runtimes import.
//!
//! The image holds two statically linked programs and nothing else: `millrace`, and `millrace-cni`, which the
//! agent copies onto the node. No container daemon is needed to make it. Two builds of the same sources, in
//! one folder and by one compiler, have the same digest.

mod archive;

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};

pub use archive::{Image, write};

use crate::{
    build::{self, Profile},
    command, paths, setup,
    step::Step,
};

/// The agent and its commands.
pub const MILLRACE: &str = "millrace";
/// The plugin that container runtimes execute.
pub const PLUGIN: &str = "millrace-cni";

/// The name of the image in manifests.
pub fn name() -> String {
    format!("millrace.dev/millrace:v{}", env!("CARGO_PKG_VERSION"))
}

/// Carries out `cargo xtask image`.
pub fn run(output: Option<&Path>) -> Result<()> {
    setup::run()?;
    let archive = match output {
        Some(output) => output.to_owned(),
        None => paths::repository()?.join("target/millrace-image.tar"),
    };
    let built = build::binaries(Profile::Release, &[MILLRACE, PLUGIN])?;
    let digest = pack(&built[MILLRACE], &built[PLUGIN], &archive)?;
    let size = fs::metadata(&archive).context("measuring the image")?.len();
    println!(
        "{} {digest}, {}.{} MB: {}",
        name(),
        size / 1_000_000,
        size / 100_000 % 10,
        archive.display()
    );
    Ok(())
}

/// Writes an archive of these two programs. Returns the image's digest.
pub fn pack(millrace: &Path, plugin: &Path, archive: &Path) -> Result<String> {
    let step = Step::start("making an image");
    // The folder is beside the target, so that the archive can be renamed into place.
    let folder = archive.with_extension(format!("partial.{}", std::process::id()));
    let root = folder.join("root");
    fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
    place(millrace, &root.join(MILLRACE))?;
    place(plugin, &root.join(PLUGIN))?;
    fs::set_permissions(&root, Permissions::from_mode(0o755))
        .context("setting the mode of the image's root")?;
    let image = Image {
        names: &[name()],
        entry: &["/millrace"],
        arguments: &[],
        compressed: true,
    };
    let digest = write(&folder, &root, &image)?;
    fs::rename(folder.join("root.tar"), archive)
        .with_context(|| format!("creating {}", archive.display()))?;
    fs::remove_dir_all(&folder).context("removing the image's parts")?;
    step.done();
    Ok(digest)
}

/// Copies a program into the root without symbols.
fn place(program: &Path, at: &Path) -> Result<()> {
    let mut strip = Command::new("strip");
    strip.args(["--strip-all", "-o"]).arg(at).arg(program);
    command::output(&mut strip)?;
    fs::set_permissions(at, Permissions::from_mode(0o755))
        .with_context(|| format!("setting the mode of {}", at.display()))
}
