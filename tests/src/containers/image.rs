//! The image of all containers.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use super::succeeded;
use crate::binary;

/// The only image.
pub const IMAGE: &str = "millrace.local/world:test";
/// The program in the image.
pub const PROGRAM: &str = "/millrace-world";

/// Writes an archive as `docker save` does: one layer with one program. In a sandbox that program waits for
/// the pod's end.
pub(super) fn pack(folder: &Path) -> Result<()> {
    let parts = folder.with_file_name("image");
    fs::create_dir_all(&parts).context("making a folder for the image")?;
    fs::copy(binary::world_tool()?, parts.join(PROGRAM.trim_start_matches('/')))
        .context("copying a program")?;
    let run = |command: &mut Command| succeeded(&command.output().context("making an image")?);
    let tar = |archive: &Path, members: &[&str]| {
        let mut tar = Command::new("tar");
        tar.args(["--create", "--owner=0", "--group=0", "--file"])
            .arg(archive)
            .arg("--directory")
            .arg(&parts);
        run(tar.args(members)).map(drop)
    };
    tar(&parts.join("layer.tar"), &[PROGRAM.trim_start_matches('/')])?;
    let digest = run(Command::new("sha256sum").arg(parts.join("layer.tar")))?;
    let digest = digest
        .split_whitespace()
        .next()
        .context("sha256sum said nothing")?;
    let config = json!({
        "architecture": if env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Entrypoint": [PROGRAM, "serve", "pause", "1"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    fs::write(parts.join("config.json"), config.to_string()).context("writing an image's configuration")?;
    fs::write(parts.join("manifest.json"), manifest.to_string()).context("writing an image's manifest")?;
    tar(
        &folder.join("world.tar"),
        &["config.json", "manifest.json", "layer.tar"],
    )
}
