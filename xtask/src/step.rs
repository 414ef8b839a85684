//! One line for each slow step. On a terminal it is a spinner with the latest output while the step runs.
//! Elsewhere it is a plain line, so that a CI log lists the steps of the run.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// A step that has begun and is shown until it is done or dropped.
pub struct Step {
    bar: ProgressBar,
    title: String,
    started: Instant,
}

impl Step {
    pub fn start(title: impl Into<String>) -> Self {
        let title = title.into();
        let bar = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner().with_message(title.clone());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed:>4}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        } else {
            eprintln!("… {title}");
            ProgressBar::hidden()
        };
        Self {
            bar,
            title,
            started: Instant::now(),
        }
    }

    /// Shows the progress of the step, on a terminal only.
    pub fn note(&self, detail: &str) {
        self.bar.set_message(format!("{}: {detail}", self.title));
    }

    /// Ends the step with a line that stays.
    pub fn done(self) {
        let title = self.title.clone();
        self.end('✔', &title);
    }

    /// Ends the step with a mark and an outcome of the caller.
    pub fn end(self, mark: char, outcome: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.bar.finish_and_clear();
        eprintln!("{mark} {outcome} ({seconds:.1} s)");
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
