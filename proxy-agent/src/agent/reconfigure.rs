//! Changes of the configuration while the agent runs.
//!
//! A setting that can change changes at once. The agent refreshes the node's side and plans every service
//! anew, so that no code has to know which setting concerns which part. Invalid files change nothing: the
//! last good configuration stays in force, and `millrace status` reports the problem.

use std::path::PathBuf;

use tokio::sync::mpsc;

use super::Agent;
use crate::config::{Configuration, Reading, Reload, follow};
use crate::control::ObjectError;
use crate::trouble::Trouble;

/// Follows the files; without files the receiver never yields a reading.
pub fn start(files: Vec<PathBuf>) -> mpsc::Receiver<Reading> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        if files.is_empty() {
            // The channel stays open, since the loop would take a closed channel for the end of the task.
            return sender.closed().await;
        }
        if let Err(error) = follow(files, sender).await {
            tracing::warn!(%error, "changes of the configuration are not noticed until the agent is started again");
        }
    });
    receiver
}

impl Agent {
    /// Applies the present content of the files.
    pub(super) async fn reconfigure(&mut self, reading: Reading) {
        let read = match reading {
            Ok(read) => read,
            Err(errors) => {
                self.config_errors = errors.iter().map(as_error).collect();
                for error in &self.config_errors {
                    tracing::warn!("{}; the configuration stays as it is", error.message);
                }
                return;
            }
        };
        let wanted = Configuration::of(&read.settings, &self.options.overrides);
        let Reload { applied, waiting } = self.options.configuration.reload(wanted);
        self.config_errors = waiting.iter().map(|setting| needs_restart(setting)).collect();
        for error in &self.config_errors {
            tracing::warn!("{}", error.message);
        }
        if applied.is_empty() {
            return;
        }
        tracing::info!(?applied, "the configuration has changed");
        for warning in read
            .warnings
            .iter()
            .cloned()
            .chain(self.options.configuration.warnings())
        {
            tracing::warn!("{warning}");
        }
        self.reporter.show(&self.options);
        if self.synced {
            self.changes
                .services
                .extend(self.cluster.services().map(|(id, _)| id));
            (self.changes.nodes, self.changes.service_cidrs) = (true, true);
            self.apply_changes().await;
        }
    }
}

fn as_error(error: &crate::config::ConfigError) -> ObjectError {
    ObjectError::new(Trouble::ConfigurationInvalid, "configuration", error)
}

fn needs_restart(setting: &str) -> ObjectError {
    ObjectError {
        code: Trouble::ConfigurationNeedsRestart,
        object: "configuration".to_owned(),
        message: format!("{setting} has changed in the files: start the agent again for it to count"),
    }
}
