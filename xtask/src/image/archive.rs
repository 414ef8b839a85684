//! A root file system as an image that container runtimes import: one file that is two kinds of archive at
//! once.
//!
//! It is an OCI image layout in a tar, which `ctr images import` reads. It also has the `manifest.json` by
//! which `docker load` and `podman load` find the same blobs. There is one layer.
//!
//! Invariant: the same files make the same bytes, on any machine and at any time. Names are sorted, times and
//! owners are fixed, and modes are those of the files.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::command;

/// The properties of an image besides its files.
pub struct Image<'a> {
    /// The names of the image, with registry and tag.
    pub names: &'a [String],
    pub entry: &'a [&'a str],
    pub arguments: &'a [&'a str],
    /// Whether the layer is compressed: smaller, and slower to import.
    pub compressed: bool,
}

/// A fixed time, so that the same files make the same image.
const TIME: &str = "1970-01-01T00:00:00Z";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const BLOBS: &str = "blobs/sha256";

/// Writes `FOLDER/NAME.tar`, named after the root. Returns the digest of the image's manifest, which
/// identifies the image.
pub fn write(folder: &Path, root: &Path, image: &Image<'_>) -> Result<String> {
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let parts = Parts {
        folder: &folder.join(format!("{name}.parts")),
    };
    fs::create_dir_all(parts.folder.join(BLOBS))
        .with_context(|| format!("creating {}", parts.folder.display()))?;
    let layer = parts.folder.join("layer");
    tar(&layer, root, &["."], &[])?;
    let content = sha256(&layer)?;
    let mut kind = "application/vnd.oci.image.layer.v1.tar";
    if image.compressed {
        // The option omits the file's name and time from the compressed data.
        command::output(Command::new("gzip").args(["-9", "--no-name"]).arg(&layer))?;
        fs::rename(layer.with_extension("gz"), &layer).context("renaming a layer")?;
        kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    }
    let layer = parts.take(kind, &layer)?;
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {"Entrypoint": image.entry, "Cmd": image.arguments, "Env": [PATH]},
        "rootfs": {"type": "layers", "diff_ids": [content]},
        "history": [{"created": TIME}],
        "created": TIME,
    });
    let config = parts.blob("application/vnd.oci.image.config.v1+json", &config)?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
    let manifest = parts.blob(kind, &manifest)?;
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();

    parts.file("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
    let named = image.names.iter().map(|name| {
        let mut manifest = manifest.clone();
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        manifest["annotations"] =
            json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
        manifest
    });
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": named.collect::<Vec<_>>()});
    parts.file("index.json", &index)?;
    let docker = json!([{"Config": path_of(&config), "RepoTags": image.names, "Layers": [path_of(&layer)]}]);
    parts.file("manifest.json", &docker)?;
    tar(
        &folder.join(format!("{name}.tar")),
        parts.folder,
        &["blobs", "index.json", "manifest.json", "oci-layout"],
        &["--mode=u=rwX,go=rX"],
    )?;
    fs::remove_dir_all(parts.folder).context("removing an image's parts")?;
    Ok(digest)
}

/// A folder for the parts of an image.
struct Parts<'a> {
    folder: &'a Path,
}

impl Parts<'_> {
    fn file(&self, name: &str, content: &Value) -> Result<()> {
        fs::write(self.folder.join(name), content.to_string())
            .with_context(|| format!("writing an image's {name}"))
    }

    /// Writes a document as a blob. Returns its descriptor.
    fn blob(&self, kind: &str, content: &Value) -> Result<Value> {
        self.file("blob", content)?;
        self.take(kind, &self.folder.join("blob"))
    }

    /// Makes a file a blob, which is named by its content. Returns its descriptor.
    fn take(&self, kind: &str, file: &Path) -> Result<Value> {
        let digest = sha256(file)?;
        let size = fs::metadata(file).context("measuring a blob")?.len();
        let descriptor = json!({"mediaType": kind, "digest": digest, "size": size});
        fs::rename(file, self.folder.join(path_of(&descriptor))).context("naming a blob")?;
        Ok(descriptor)
    }
}

/// The path of a descriptor's blob in the archive.
fn path_of(descriptor: &Value) -> String {
    let digest = descriptor["digest"].as_str().unwrap_or_default();
    format!("{BLOBS}/{}", digest.trim_start_matches("sha256:"))
}

fn sha256(file: &Path) -> Result<String> {
    let printed = command::output(Command::new("sha256sum").arg(file))?;
    let digest = printed
        .split_whitespace()
        .next()
        .context("sha256sum printed nothing")?;
    // A backslash precedes the digest of a file with a special character in its name.
    Ok(format!("sha256:{}", digest.trim_start_matches('\\')))
}

fn tar(archive: &Path, folder: &Path, members: &[&str], more: &[&str]) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args([
        "--create",
        "--format=gnu",
        "--numeric-owner",
        "--owner=0",
        "--group=0",
        "--sort=name",
        "--mtime=@0",
    ])
    .args(more)
    .arg("--file")
    .arg(archive)
    .arg("--directory")
    .arg(folder)
    .args(members);
    command::output(&mut tar).map(drop)
}

/// This machine's architecture, by its name in Go and in images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        fs::{self, File, Permissions},
        os::unix::fs::PermissionsExt as _,
        path::PathBuf,
        process::{self, Command},
        time::{Duration, SystemTime},
    };

    use super::{Image, write};
    use crate::command;

    /// A folder that is removed with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("millrace-image-{}-{name}", process::id()));
            fs::create_dir_all(&path).expect("a folder for the test");
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Packs the same two files, made in this order and that long ago.
    fn pack(scratch: &Scratch, names: [&str; 2], age: Duration) -> (String, Vec<u8>) {
        let root = scratch.0.join("root");
        fs::create_dir_all(&root).expect("a root");
        fs::set_permissions(&root, Permissions::from_mode(0o755)).expect("a mode");
        for name in names {
            let file = root.join(name);
            fs::write(&file, name.repeat(1000)).expect("a file");
            fs::set_permissions(&file, Permissions::from_mode(0o755)).expect("a mode");
            let time = SystemTime::now() - age;
            File::open(&file)
                .and_then(|file| file.set_modified(time))
                .expect("a time");
        }
        let image = Image {
            names: &["example.org/some/thing:v1".to_owned()],
            entry: &["/a"],
            arguments: &["b"],
            compressed: true,
        };
        let digest = write(&scratch.0, &root, &image).expect("an image");
        let archive = fs::read(scratch.0.join("root.tar")).expect("its archive");
        (digest, archive)
    }

    #[test]
    fn the_same_files_make_the_same_image() {
        let one = pack(&Scratch::new("one"), ["a", "b"], Duration::from_secs(5));
        let other = pack(&Scratch::new("other"), ["b", "a"], Duration::from_hours(9000));
        assert_eq!(one.0, other.0);
        assert!(one.1 == other.1, "the archives differ");
        let different = pack(&Scratch::new("different"), ["a", "c"], Duration::ZERO);
        assert_ne!(one.0, different.0);
    }

    #[test]
    fn both_indexes_refer_to_existing_blobs() {
        let scratch = Scratch::new("contents");
        let (digest, _) = pack(&scratch, ["a", "b"], Duration::ZERO);
        let mut tar = Command::new("tar");
        tar.arg("--extract").arg("--file").arg(scratch.0.join("root.tar"));
        command::output(tar.arg("--directory").arg(&scratch.0)).expect("it unpacks");
        let read = |name: &str| -> serde_json::Value {
            let text = fs::read_to_string(scratch.0.join(name)).expect("a member");
            serde_json::from_str(&text).expect("JSON")
        };
        let blob = |digest: &serde_json::Value| {
            let digest = digest.as_str().expect("a digest").trim_start_matches("sha256:");
            format!("blobs/sha256/{digest}")
        };
        let (index, docker) = (read("index.json"), read("manifest.json"));
        assert_eq!(index["manifests"][0]["digest"], digest.as_str());
        assert_eq!(
            index["manifests"][0]["annotations"]["io.containerd.image.name"],
            "example.org/some/thing:v1"
        );
        let manifest = read(&blob(&index["manifests"][0]["digest"]));
        assert_eq!(docker[0]["Config"], blob(&manifest["config"]["digest"]));
        assert_eq!(docker[0]["Layers"][0], blob(&manifest["layers"][0]["digest"]));
        assert_eq!(docker[0]["RepoTags"][0], "example.org/some/thing:v1");
        let config = read(&blob(&manifest["config"]["digest"]));
        assert_eq!(config["config"]["Entrypoint"][0], "/a");
        // The configuration names the digest of the layer before compression.
        let mut layer = Command::new("sh");
        let layer = layer.args(["-c", "gzip --decompress --stdout < \"$0\" | sha256sum"]);
        let layer = layer.arg(scratch.0.join(blob(&manifest["layers"][0]["digest"])));
        let content = command::output(layer).expect("a digest");
        let content = content.split(' ').next().expect("a digest");
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{content}"));
    }
}
