//! Action scripts: programs of the operator, run at each stage of a job with
//! CRIU's environment.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use tracing::debug;

use crate::base::{Error, HostPid, Result, ResultExt};

/// Scripts, in the order in which they run.
#[derive(Debug, Default)]
pub(crate) struct Scripts(Vec<PathBuf>);

impl Scripts {
    /// Of scripts as typed: the one that was named last runs first.
    pub(crate) fn typed<T: Into<PathBuf> + Clone>(scripts: &[T]) -> Self {
        Self(scripts.iter().rev().cloned().map(Into::into).collect())
    }

    /// Of scripts in the order in which they run.
    pub(crate) fn ordered(scripts: impl IntoIterator<Item = PathBuf>) -> Self {
        Self(scripts.into_iter().collect())
    }

    /// For a journal.
    pub(crate) fn in_order(&self) -> &[PathBuf] {
        &self.0
    }

    /// Runs all of them, also after one that failed; the first failure counts.
    ///
    /// # Errors
    /// A script that cannot be run, or does not end with success.
    pub(crate) fn run(
        &self,
        stage: &str,
        root: Option<HostPid>,
        images: Option<OsString>,
    ) -> Result<()> {
        let mut first = Ok(());
        for script in &self.0 {
            debug!("action script {} {stage}", script.display());
            let mut command = Command::new(script);
            command.env("CRTOOLS_SCRIPT_ACTION", stage);
            if let Some(images) = &images {
                command.env("CRTOOLS_IMAGE_DIR", images);
            }
            if let Some(root) = root {
                command.env("CRTOOLS_INIT_PID", root.to_string());
            }
            let context = || format!("action script {} at {stage}", script.display());
            let result = match command.status().context(context) {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(Error::caller(context(), status.to_string())),
                Err(e) => Err(e),
            };
            first = first.and(result);
        }
        first
    }
}
