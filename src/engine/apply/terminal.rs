//! Controlling terminals: a session leader takes its own before it forks, since
//! children inherit it.

use std::os::fd::{AsRawFd, RawFd};

use super::Build;
use crate::base::{NsPid, Result, ResultExt};
use crate::objects::files::Pair;
use crate::sys::steer::{Arg, Batch};

impl Build<'_> {
    /// Tells of the terminals that sessions have.
    pub(in crate::engine) fn set_terminals(&mut self, pairs: &[Pair]) {
        let of_sessions = pairs.iter().filter(|p| p.session.0 != 0);
        self.terminals = of_sessions
            .map(|p| (p.session, p.group, p.slave.as_raw_fd()))
            .collect();
    }

    /// Gives a new session its controlling terminal.
    ///
    /// # Errors
    /// Those of TIOCSCTTY.
    pub(super) fn controlling(&mut self, session: NsPid) -> Result<()> {
        let ours: Vec<RawFd> = self
            .terminals
            .iter()
            .filter(|t| t.0 == session)
            .map(|t| t.2)
            .collect();
        for ours in ours {
            self.with_terminal(session, ours, |b, fd| {
                b.call(
                    "ioctl(TIOCSCTTY)",
                    libc::SYS_ioctl,
                    &[fd, libc::TIOCSCTTY.into(), 0.into()],
                );
            })?;
        }
        Ok(())
    }

    /// Puts the groups that stood in the foreground of terminals there again.
    ///
    /// # Errors
    /// A session or group that is not there.
    pub(in crate::engine) fn foreground(&mut self) -> Result<()> {
        for (session, group, ours) in self.terminals.clone() {
            if group.0 == 0 {
                continue;
            }
            self.with_terminal(session, ours, |b, fd| {
                let group = b.bytes(&group.0.to_le_bytes());
                b.call(
                    "ioctl(TIOCSPGRP)",
                    libc::SYS_ioctl,
                    &[fd, libc::TIOCSPGRP.into(), group.into()],
                );
            })
            .context(|| format!("foreground group {group} of session {session}"))?;
        }
        Ok(())
    }

    fn with_terminal(
        &mut self,
        pid: NsPid,
        ours: RawFd,
        calls: impl FnOnce(&mut Batch, Arg),
    ) -> Result<()> {
        let mut b = Batch::new();
        let fd = self.getfd(&mut b, ours);
        calls(&mut b, fd);
        b.call("close", libc::SYS_close, &[fd]);
        self.live(pid)?.leader.run(&b).map(drop)
    }
}
