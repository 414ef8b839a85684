//! A root file system as an image that container runtimes import: the archive that `docker save` writes.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::command;

/// What an image says besides its files.
pub struct Image<'a> {
    pub names: &'a [String],
    pub entry: &'a [&'a str],
    pub arguments: &'a [&'a str],
}

/// A fixed time, so that the same files make the same image.
const TIME: &str = "1970-01-01T00:00:00Z";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Writes `FOLDER/NAME.tar`, named after the root.
pub fn write(folder: &Path, root: &Path, image: &Image<'_>) -> Result<()> {
    let parts = folder.join("parts");
    fs::create_dir_all(&parts).with_context(|| format!("creating {}", parts.display()))?;
    tar(&parts.join("layer.tar"), root, &["."])?;
    let digest = command::output(Command::new("sha256sum").arg("layer.tar").current_dir(&parts))?;
    let digest = digest
        .split_whitespace()
        .next()
        .context("sha256sum said nothing")?;
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {"Entrypoint": image.entry, "Cmd": image.arguments, "Env": [PATH]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        "history": [{"created": TIME}],
        "created": TIME,
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": image.names, "Layers": ["layer.tar"]}]);
    fs::write(parts.join("config.json"), config.to_string()).context("writing an image's configuration")?;
    fs::write(parts.join("manifest.json"), manifest.to_string()).context("writing an image's manifest")?;
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let archive = folder.join(format!("{name}.tar"));
    tar(&archive, &parts, &["config.json", "manifest.json", "layer.tar"])?;
    fs::remove_dir_all(&parts).context("removing an image's parts")
}

fn tar(archive: &Path, folder: &Path, members: &[&str]) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args([
        "--create",
        "--numeric-owner",
        "--owner=0",
        "--group=0",
        "--sort=name",
        "--mtime=@0",
    ])
    .arg("--file")
    .arg(archive)
    .arg("--directory")
    .arg(folder)
    .args(members);
    command::output(&mut tar).map(drop)
}

/// This machine's architecture as Go, and with it images, call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
