//! One job of the criu face: its directories, its log, and who is told.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::config;
use super::connection::Connection;
use super::dirs::Dir;
use super::notices::Notices;
use super::request;
use super::typed::Typed;
use crate::base::{Error, Result, ResultExt};
use crate::face::log::{self, DEFAULT_VERBOSITY, Sink};
use crate::image::records::rpc::CriuOpts;
use crate::sys::{inherited, private};

/// Name of the log in the work directory where an RPC client gives none.
const DEFAULT_LOG: &str = "criu.log";

/// A job with everything around it in place. The current directory is its
/// work directory.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// The options.
    pub(crate) typed: Typed,
    /// Where the images are.
    pub(crate) images: Dir,
    /// Where logs, pid files and statistics go.
    pub(crate) work: Dir,
    /// The client, if this is RPC.
    pub(crate) rpc: Option<&'a Connection>,
    notify: bool,
    status: Option<File>,
}

impl<'a> Job<'a> {
    /// A job of the command line.
    ///
    /// # Errors
    /// A directory or the log cannot be opened.
    pub(crate) fn from_command_line(typed: Typed) -> Result<Self> {
        let images = Dir::open(
            "images",
            Path::new(typed.images_dir.as_deref().unwrap_or(".")),
        )?;
        let work = match &typed.work_dir {
            Some(path) => Dir::open("work", Path::new(path))?,
            None => images.share()?,
        };
        enter(&work)?;
        let sink = match typed.log_file.as_deref() {
            None => Sink::Stderr,
            Some("-") => Sink::Stdout,
            Some(file) => open_log(work.path().join(file))?,
        };
        log::start(sink, typed.verbosity.unwrap_or(DEFAULT_VERBOSITY));
        say_what_has_no_effect(&typed);
        let status = typed.status_fd.map(inherited::take).transpose()?;
        Ok(Self {
            typed,
            images,
            work,
            rpc: None,
            notify: false,
            status: status.map(File::from),
        })
    }

    /// A job of an RPC client. `typed` is what configuration files said.
    ///
    /// # Errors
    /// A directory or the log cannot be opened; an option is refused (by then
    /// the log is open).
    pub(crate) fn from_request(
        mut typed: Typed,
        rpc: &'a Connection,
        request: &CriuOpts,
    ) -> Result<Self> {
        let file = match &request.config_file {
            Some(file) => config::read(Path::new(file))?.unwrap_or_default(),
            None => Vec::new(),
        };
        // Directories and log first, so that whatever is refused stands in it.
        let mut over = Typed::default();
        let over_result = over.read(&file);
        let images = Dir::open("images", &images_path(rpc, request, &over)?)?;
        let work = match (&over.work_dir, request.work_dir_fd, &typed.work_dir) {
            (Some(path), _, _) => Dir::open("work", Path::new(path))?,
            (None, Some(fd), _) => Dir::open("work", &rpc.peer_fd(fd))?,
            (None, None, Some(path)) => Dir::open("work", Path::new(path))?,
            (None, None, None) => images.share()?,
        };
        enter(&work)?;
        let verbosity = request
            .log_level
            .and_then(|level| u32::try_from(level).ok());
        log::start(
            log_of(request, &over, &typed, &work)?,
            verbosity.unwrap_or(DEFAULT_VERBOSITY),
        );
        over_result?;
        request::overlay(&mut typed, request)?;
        typed.read(&file)?;
        typed.detach = true;
        say_what_has_no_effect(&typed);
        let status = request.status_fd.map(|fd| {
            let path = rpc.peer_fd(fd);
            let opened = OpenOptions::new().write(true).open(&path);
            opened.context(|| format!("status descriptor {}", path.display()))
        });
        Ok(Self {
            typed,
            images,
            work,
            rpc: Some(rpc),
            notify: request.notify_scripts == Some(true),
            status: status.transpose()?,
        })
    }

    /// Tells whoever waits on `--status-fd` that requests are served from now
    /// on: a zero byte, and the end of the file.
    ///
    /// # Errors
    /// Nobody listens.
    pub(crate) fn status_ready(&mut self) -> Result<()> {
        match self.status.take() {
            Some(mut file) => file
                .write_all(&[0])
                .context(|| "status descriptor".to_owned()),
            None => Ok(()),
        }
    }

    /// Who is told about its stages.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(crate) fn notices(&self) -> Result<Notices<'a>> {
        Ok(Notices::new(
            self.rpc.filter(|_| self.notify),
            &self.typed.action_scripts,
            self.images.share()?,
        ))
    }
}

fn images_path(rpc: &Connection, request: &CriuOpts, over: &Typed) -> Result<PathBuf> {
    if let Some(path) = &over.images_dir {
        return Ok(PathBuf::from(path));
    }
    match (request.images_dir_fd, &request.images_dir) {
        (-1, Some(path)) => Ok(PathBuf::from(path)),
        (-1, None) => Err(Error::caller(
            "RPC request",
            "gives neither images_dir_fd nor images_dir",
        )),
        (fd, _) => Ok(rpc.peer_fd(fd)),
    }
}

fn log_of(request: &CriuOpts, over: &Typed, typed: &Typed, work: &Dir) -> Result<Sink> {
    if let Some(file) = &over.log_file {
        return open_log(work.path().join(file));
    }
    if let Some(file) = &request.log_file {
        if file.contains('/') {
            return Err(Error::caller(
                format!("log_file {file:?}"),
                "must be a name in the work directory",
            ));
        }
        return open_log(work.path().join(file));
    }
    if request.log_to_stderr == Some(true) {
        return Ok(Sink::Stderr);
    }
    let file = typed.log_file.as_deref().unwrap_or(DEFAULT_LOG);
    open_log(work.path().join(file))
}

fn open_log(path: PathBuf) -> Result<Sink> {
    let what = || format!("log file {}", path.display());
    let file = private::append(&path).map_err(|e| e.within("log file"))?;
    file.set_len(0).context(what)?;
    Ok(Sink::File(file))
}

fn enter(work: &Dir) -> Result<()> {
    std::env::set_current_dir(work.path())
        .context(|| format!("work directory {}", work.path().display()))
}

fn say_what_has_no_effect(typed: &Typed) {
    info!("dunlin {}", env!("CARGO_PKG_VERSION"));
    for (name, why) in &typed.without_effect {
        info!("{name} has no effect: {why}");
    }
    if typed.lazy_pages && typed.afterwards != super::typed::Afterwards::Killed {
        warn!("a lazy dump ends its tasks once all pages are served");
    }
}
