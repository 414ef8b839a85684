//! A list of plugins, executed as a container runtime does it (`libcni`).

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value, json};

/// A plugin and its entry in the network's list.
pub struct Plugin {
    pub program: PathBuf,
    pub entry: Value,
    /// The capability that makes the runtime pass a part of `runtimeConfig` to the plugin; `None` passes all
    /// of it.
    pub capability: Option<&'static str>,
}

/// The plugins of a network.
pub struct Chain {
    pub name: &'static str,
    pub plugins: Vec<Plugin>,
    /// Variables beside those that the specification asks for.
    pub environment: Vec<(&'static str, OsString)>,
}

/// A container's namespace.
#[derive(Clone)]
pub struct Sandbox {
    pub id: String,
    pub netns: PathBuf,
}

impl Chain {
    /// Calls ADD of each plugin for a container. The calling thread is in the node's namespace.
    pub fn add(&self, sandbox: &Sandbox, runtime: &Value) -> Result<Value> {
        let mut result = Value::Null;
        for plugin in &self.plugins {
            result = self.call(plugin, "ADD", sandbox, runtime, &result)?;
        }
        Ok(result)
    }

    /// Calls DEL of each plugin for a container; `result` is the result of ADD.
    pub fn del(&self, sandbox: &Sandbox, runtime: &Value, result: &Value) -> Result<()> {
        for plugin in self.plugins.iter().rev() {
            self.call(plugin, "DEL", sandbox, runtime, result)?;
        }
        Ok(())
    }

    fn call(
        &self,
        plugin: &Plugin,
        verb: &str,
        sandbox: &Sandbox,
        runtime: &Value,
        previous: &Value,
    ) -> Result<Value> {
        let what = || format!("{verb} of {}", plugin.program.display());
        let mut child = Command::new(&plugin.program)
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &sandbox.id)
            .env("CNI_NETNS", &sandbox.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", plugin.program.parent().unwrap_or(Path::new("/")))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(what)?;
        let document = self.document(plugin, runtime, previous).to_string();
        let mut input = child.stdin.take().context("no pipe")?;
        input.write_all(document.as_bytes()).with_context(what)?;
        drop(input);
        let output = child.wait_with_output().with_context(what)?;
        let printed = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {printed} {error}", what());
        }
        if verb == "DEL" {
            return Ok(Value::Null);
        }
        let result: Value = serde_json::from_str(&printed).with_context(what)?;
        ensure!(result["ips"].is_array(), "{}: {printed}", what());
        Ok(result)
    }

    fn document(&self, plugin: &Plugin, runtime: &Value, previous: &Value) -> Value {
        let mut document = plugin.entry.as_object().cloned().unwrap_or_default();
        document.insert("cniVersion".into(), json!("1.0.0"));
        document.insert("name".into(), json!(self.name));
        let all = runtime.as_object().cloned().unwrap_or_default();
        let passed: Map<String, Value> = all
            .into_iter()
            .filter(|(key, _)| plugin.capability.is_none_or(|capability| capability == key))
            .collect();
        if !passed.is_empty() {
            document.insert("runtimeConfig".into(), passed.into());
        }
        if !previous.is_null() {
            document.insert("prevResult".into(), previous.clone());
        }
        document.into()
    }
}
