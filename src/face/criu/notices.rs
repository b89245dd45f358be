//! Who is told about the stages of a job: the RPC client, and the action
//! scripts, in CRIU's order and with CRIU's names.

use std::os::fd::BorrowedFd;

use tracing::{error, info};

use super::connection::Connection;
use super::dirs::Dir;
use crate::base::{Error, HostPid, Result, ResultExt};
use crate::engine::options::{Observer, Stage};
use crate::face::scripts::Scripts;
use crate::image::records::rpc::{CriuNotify, CriuReqType, CriuResp};

/// Sends notices and waits for the answers.
#[derive(Debug)]
pub(crate) struct Notices<'a> {
    rpc: Option<&'a Connection>,
    scripts: Scripts,
    images: Dir,
    /// The tasks have a network namespace, or any namespace, of their own.
    own_network: bool,
    own_namespaces: bool,
    /// `external` keys that the client answered to `query-ext-files`.
    external: Vec<String>,
}

impl<'a> Notices<'a> {
    /// Tells `rpc`, if it asked for notices, and runs `scripts` (as typed).
    pub(crate) fn new(rpc: Option<&'a Connection>, scripts: &[String], images: Dir) -> Self {
        Self {
            rpc,
            scripts: Scripts::typed(scripts),
            images,
            own_network: true,
            own_namespaces: true,
            external: Vec::new(),
        }
    }

    /// Without a network namespace of their own there is no network of the tasks
    /// to lock (it would be the host's), without any no namespaces to set up: as
    /// with CRIU, those stages are not told then.
    pub(crate) fn of_tasks(&mut self, own_network: bool, own_namespaces: bool) {
        self.own_network = own_network;
        self.own_namespaces = own_namespaces;
    }

    fn concerns(&self, stage: Stage) -> bool {
        match stage {
            Stage::NetworkLock | Stage::NetworkUnlock => self.own_network,
            Stage::SetupNamespaces | Stage::PostSetupNamespaces => self.own_namespaces,
            _ => true,
        }
    }

    /// Tells that a lazy dump is ready to serve its pages.
    ///
    /// # Errors
    /// The client or a script objects.
    pub(crate) fn status_ready(&mut self, root: HostPid) -> Result<()> {
        self.tell("status-ready", None, None)?;
        self.run("status-ready", Some(root))
    }

    /// What follows the network lock of a dump. (A restore has no such stage.)
    fn ask_for_external_files(&mut self) -> Result<()> {
        self.tell(Stage::QueryExtFiles.name(), None, None)?;
        match self.external.first() {
            None => Ok(()),
            Some(key) => Err(Error::caller(
                format!("external file {key}"),
                "must be named in the request itself, not at query-ext-files",
            )),
        }
    }

    fn tell(&mut self, name: &str, pid: Option<HostPid>, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let Some(rpc) = self.rpc else {
            return Ok(());
        };
        let context = || format!("notice {name}");
        let notice = CriuResp {
            r#type: CriuReqType::Notify.into(),
            success: true,
            notify: Some(CriuNotify {
                script: Some(name.to_owned()),
                pid: pid.map(|pid| pid.0),
            }),
            ..CriuResp::default()
        };
        rpc.send(&notice, fd).context(context)?;
        let answer = rpc
            .receive()
            .context(context)?
            .ok_or_else(|| Error::caller(context(), "the client went away"))?;
        if answer.r#type != i32::from(CriuReqType::Notify) || answer.notify_success != Some(true) {
            return Err(Error::caller(context(), "the client reports a failure"));
        }
        if let Some(opts) = answer.opts {
            self.external.extend(opts.external);
        }
        Ok(())
    }

    fn run(&mut self, name: &str, root: Option<HostPid>) -> Result<()> {
        let images = self.images.path_for_children().into();
        self.scripts.run(name, root, Some(images))
    }
}

impl Observer for Notices<'_> {
    fn pts_master(&mut self, number: u32, master: BorrowedFd<'_>) -> Result<()> {
        if self.rpc.is_none() {
            return Err(Error::caller(
                format!("terminal /dev/pts/{number}"),
                "nobody takes its master: only a client of the RPC with notices can",
            ));
        }
        let name = Stage::OrphanPtsMaster.name();
        info!("stage {name}");
        self.tell(name, None, Some(master))
    }

    fn at(&mut self, stage: Stage, root: Option<HostPid>) -> Result<()> {
        let name = stage.name();
        info!("stage {name}");
        let pid = match stage {
            Stage::SetupNamespaces | Stage::PostRestore => root,
            _ => None,
        };
        let told = match stage {
            _ if !self.concerns(stage) => Ok(()),
            Stage::QueryExtFiles | Stage::OrphanPtsMaster => self.tell(name, pid, None),
            _ => self
                .tell(name, pid, None)
                .and_then(|()| self.run(name, root)),
        };
        if stage == Stage::NetworkLock && told.is_ok() && self.rpc.is_some() {
            self.ask_for_external_files()?;
        }
        match (stage, told) {
            // Too late to turn back: the network is open, the tasks are complete.
            (Stage::PreResume | Stage::PostResume | Stage::NetworkUnlock, Err(e)) => {
                error!("{e}");
                Ok(())
            }
            (_, told) => told,
        }
    }
}
