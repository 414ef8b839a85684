//! The cluster as files: the layouts that an operator would use, and changes as careful tools make them.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::objects;
use super::site::Site;

/// The number of objects in a large file.
const OBJECTS_PER_FILE: usize = 1000;

/// Services whose slices change in the course of a measurement.
const CHANGING: usize = 1000;

/// The distribution of objects over files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A thousand objects a file; slices that change have files of their own.
    LargeFiles,
    /// Each object has a file.
    SmallFiles,
}

impl Layout {
    /// The part of a figure's name that stands for the layout.
    pub fn name(self) -> &'static str {
        match self {
            Self::LargeFiles => "directory",
            Self::SmallFiles => "directory-of-small-files",
        }
    }
}

/// A directory with the objects of a cluster.
pub struct Directory {
    path: PathBuf,
    staging: PathBuf,
    /// Services whose slices have files of their own, in no particular order.
    pub changing: Vec<usize>,
}

impl Directory {
    /// Writes a cluster of `services` to the directory that the site's agent follows.
    pub fn fill(site: &Site, services: usize, layout: Layout) -> Result<Self> {
        let directory = Self::empty(site, services)?;
        let mut file = LargeFile::default();
        for service in 0..services {
            let slice = objects::slice(service, &objects::endpoints(service));
            if layout == Layout::SmallFiles {
                directory.write(&format!("service-{service}.yaml"), &[objects::service(service)])?;
                directory.write(&slice_file(service), &[slice])?;
                continue;
            }
            file.add(&objects::service(service))?;
            if directory.has_own_file(service) {
                directory.write(&slice_file(service), &[slice])?;
            } else {
                file.add(&slice)?;
            }
            if file.objects >= OBJECTS_PER_FILE {
                directory.take(&mut file)?;
            }
        }
        directory.take(&mut file)?;
        Ok(directory)
    }

    /// Writes only the objects that belong to no service.
    pub fn empty(site: &Site, services: usize) -> Result<Self> {
        site.node().source().apply(&objects::service_cidr());
        let staging = site.node().dir().join("staging");
        fs::create_dir_all(&staging).with_context(|| format!("making {}", staging.display()))?;
        let mut changing: Vec<_> = (0..services).collect();
        fastrand::Rng::with_seed(1).shuffle(&mut changing);
        changing.truncate(CHANGING);
        Ok(Self {
            path: site.node().source().path().to_owned(),
            staging,
            changing,
        })
    }

    fn has_own_file(&self, service: usize) -> bool {
        self.changing.contains(&service)
    }

    fn take(&self, file: &mut LargeFile) -> Result<()> {
        let LargeFile {
            text,
            objects: count,
            number,
        } = file;
        if *count > 0 {
            self.write_text(&format!("objects-{number}.yaml"), text)?;
            text.clear();
            (*count, *number) = (0, *number + 1);
        }
        Ok(())
    }

    /// Writes objects to a file.
    pub fn write(&self, file: &str, objects: &[Value]) -> Result<()> {
        self.write_text(file, &yaml(objects)?)
    }

    fn write_text(&self, file: &str, text: &str) -> Result<()> {
        self.stage(file, text)?.put_in_place()
    }

    /// Writes a file next to the directory. [`Staged::put_in_place`] moves it there.
    pub fn stage(&self, file: &str, text: &str) -> Result<Staged> {
        let staged = Staged {
            from: self.staging.join(file),
            to: self.path.join(file),
        };
        fs::write(&staged.from, text).with_context(|| format!("writing {}", staged.from.display()))?;
        Ok(staged)
    }

    /// Replaces every file by a file of the same content.
    pub fn replace_all(&self) -> Result<usize> {
        let entries = fs::read_dir(&self.path).with_context(|| format!("reading {}", self.path.display()))?;
        let names: Result<Vec<_>, _> = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect();
        let names = names.with_context(|| format!("reading {}", self.path.display()))?;
        for name in &names {
            let name = Path::new(name);
            let (from, to) = (self.staging.join(name), self.path.join(name));
            fs::copy(&to, &from).with_context(|| format!("copying {}", to.display()))?;
            Staged { from, to }.put_in_place()?;
        }
        Ok(names.len())
    }
}

/// A file that is ready to be moved to its place.
pub struct Staged {
    from: PathBuf,
    to: PathBuf,
}

impl Staged {
    /// Renames the file. The rename is the event that is measured.
    pub fn put_in_place(&self) -> Result<()> {
        fs::rename(&self.from, &self.to).with_context(|| format!("renaming to {}", self.to.display()))
    }
}

#[derive(Default)]
struct LargeFile {
    text: String,
    objects: usize,
    number: usize,
}

impl LargeFile {
    fn add(&mut self, object: &Value) -> Result<()> {
        // write! to a String cannot fail.
        let _ = write!(self.text, "---\n{}", yaml(std::slice::from_ref(object))?);
        self.objects += 1;
        Ok(())
    }
}

/// The name of a slice's own file.
pub fn slice_file(service: usize) -> String {
    format!("slice-{service}.yaml")
}

/// A slice whose first endpoint is `first`.
pub fn changed_slice(service: usize, first: Ipv4Addr) -> Value {
    let mut endpoints = objects::endpoints(service);
    endpoints[0] = first;
    objects::slice(service, &endpoints)
}

/// The objects as YAML documents.
pub fn yaml(objects: &[Value]) -> Result<String> {
    let documents: Result<Vec<String>, _> = objects.iter().map(serde_saphyr::to_string).collect();
    Ok(documents.context("writing YAML")?.join("---\n"))
}
