//! The directory that an agent with `--source dir:` follows. Each object has a file of its own. A file
//! appears and changes at once (a temporary file, then rename), as an operator's tools do it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::failure::OrPanic;
use crate::manifest::{Manifest, file_name};

/// A directory of manifests.
pub struct SourceDir {
    path: PathBuf,
}

impl SourceDir {
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { path })
    }

    /// The path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes an object to its file.
    #[track_caller]
    pub fn apply(&self, object: &impl Manifest) {
        let object = object.object();
        self.write(&file_name(&object), &[object]).or_panic();
    }

    /// Removes an object's file, if it exists.
    #[track_caller]
    pub fn delete(&self, object: &impl Manifest) {
        self.delete_file(&file_name(&object.object()));
    }

    /// Writes many objects as the documents of one file.
    #[track_caller]
    pub fn apply_file(&self, file: &str, objects: &[Value]) {
        self.write(file, objects).or_panic();
    }

    /// Writes any text to a file, atomically.
    #[track_caller]
    pub fn write_text(&self, file: &str, text: &str) {
        self.replace(file, text).or_panic();
    }

    /// Removes a file, if it exists.
    #[track_caller]
    pub fn delete_file(&self, file: &str) {
        let path = self.path.join(file);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                panic!("removing {}: {error}", path.display())
            }
            _ => {}
        }
    }

    fn write(&self, file: &str, objects: &[Value]) -> Result<()> {
        let documents: Result<Vec<String>, _> = objects.iter().map(serde_saphyr::to_string).collect();
        self.replace(file, &documents.context("writing YAML")?.join("---\n"))
    }

    fn replace(&self, file: &str, text: &str) -> Result<()> {
        // The source reads *.yaml, *.yml and *.json only.
        let temporary = self.path.join(format!(".{file}.tmp"));
        fs::write(&temporary, text).with_context(|| format!("writing {}", temporary.display()))?;
        let path = self.path.join(file);
        fs::rename(&temporary, &path).with_context(|| format!("renaming to {}", path.display()))
    }
}
