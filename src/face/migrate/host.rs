//! This host, as the destination of a migration: an unmodified `runc restore`
//! with this very program as its `criu`. It is started while the container still
//! runs on the source: runc's criu connects to `WORK/lazy-pages.socket`, and waits
//! there for the images. Then it rebuilds everything, hands the empty address
//! spaces over, and waits for our grant; we serve the pages and outlive it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tracing::{error, info, warn};

use super::{cgroups, sizes};
use crate::base::{Blame, Error, HostPid, PageRange, Result, ResultExt};
use crate::engine::options::Stage;
use crate::engine::running;
use crate::face::scripts::Scripts;
use crate::memory::guardian::Guardian;
use crate::memory::handler::{Handler, OnLoss};
use crate::memory::handoff::{Ready, Server, Session};
use crate::memory::{Filler, Object, PageSink, PageSource};
use crate::migrate::ports::{Host, Landed, Serving};
use crate::migrate::remote::Remote;
use crate::runtime::{kept, runc};
use crate::sys::{cgroup, private, procfs};
use crate::wire::message::Offer;

/// How long runc may take until its criu waits for the images.
const BEGIN: Duration = Duration::from_secs(60);
/// How long a message of the handoff may take.
const MESSAGE: Duration = Duration::from_secs(30);
/// How long runc may take to end after the resume.
const SETTLE: Duration = Duration::from_secs(30);

/// In the work directory: what runc has written of the container.
pub(super) const KEPT: &str = "runc-state.json";

/// A host with runc.
pub(super) struct RuncHost {
    root: PathBuf,
    output: Option<PathBuf>,
    options: Vec<String>,
    scripts: Arc<Scripts>,
    /// Runs the scripts after the resume.
    after: Option<std::thread::JoinHandle<()>>,
    guardian: Option<Guardian>,
    child: Option<Child>,
    session: Option<Session>,
    /// While runc's criu puts tasks into their cgroups.
    warm: Option<cgroup::Warm>,
    ready: Option<Ready>,
    landed: Option<Landed>,
    /// What was rebuilt, with start times: pids come again.
    tasks: Vec<(HostPid, u64)>,
    resumed: bool,
}

impl RuncHost {
    /// To be made before threads and userfaultfds exist: the guardian shares this
    /// process's descriptors.
    ///
    /// # Errors
    /// The guardian cannot be made.
    pub(super) fn new(
        root: &Path,
        output: Option<PathBuf>,
        options: Vec<String>,
        scripts: Scripts,
    ) -> Result<Self> {
        Ok(Self {
            root: root.to_owned(),
            output,
            options,
            scripts: Arc::new(scripts),
            after: None,
            guardian: Some(Guardian::start(None)?),
            child: None,
            session: None,
            warm: None,
            ready: None,
            landed: None,
            tasks: Vec::new(),
            resumed: false,
        })
    }

    /// runc, as it restores into `l`.
    fn start(&self, l: &Landed) -> Result<Child> {
        // runc takes the criu of its PATH.
        let bin = l.work.join("bin");
        std::fs::create_dir_all(&bin).context(|| format!("make {}", bin.display()))?;
        let me = std::env::current_exe().context(|| "find this program".to_owned())?;
        symlink(&me, bin.join("criu")).context(|| format!("link {}", bin.display()))?;
        let mut path = bin.into_os_string();
        path.push(":");
        path.push(
            std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()),
        );
        let output = || -> Result<Stdio> {
            let Some(file) = &self.output else {
                return Ok(Stdio::null());
            };
            private::append(file).map(Stdio::from)
        };
        Command::new("runc")
            .arg("--root")
            .arg(&self.root)
            .arg("--log")
            .arg(l.work.join("runc.log"))
            .args(["restore", "--lazy-pages", "--detach"])
            .args(&self.options)
            .arg("--bundle")
            .arg(&l.bundle)
            .arg("--image-path")
            .arg(&l.images)
            .arg("--work-path")
            .arg(&l.work)
            .arg(&l.id)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(output()?)
            .stderr(output()?)
            .process_group(0)
            .spawn()
            .context(|| "run runc restore".to_owned())
    }

    /// runc did not end well after the resume: whether it has the container all the
    /// same.
    fn known(&self, ended: Option<ExitStatus>) -> Result<()> {
        let Some(l) = &self.landed else {
            return Err(Error::bug("wait for runc", "nothing was rebuilt"));
        };
        let why = self.why(l, ended);
        if let Err(e) = runc::unbind(&self.root, &l.id) {
            warn!("{e}");
        }
        match kept::give_back(&self.root, &l.id, &l.work.join(KEPT)) {
            Ok(_) => {
                warn!("{why}; the container runs, and runc knows it");
                Ok(())
            }
            Err(state) => Err(why.within(format!(
                "{state} after its restore; see dunlin resolve {}",
                l.id
            ))),
        }
    }

    /// Why runc ended, in its own and our engine's words.
    fn why(&self, l: &Landed, status: Option<ExitStatus>) -> Error {
        let mut words = tail(&l.work.join("restore.log"), |line| line.contains("Error"));
        words.extend(tail(&l.work.join("runc.log"), |line| {
            line.contains("level=error")
        }));
        if words.is_empty() {
            words.push("it said nothing".to_owned());
        }
        let status = status.map_or_else(|| "still runs".to_owned(), |s| s.to_string());
        Error::new(
            Blame::Image,
            format!("runc restore {} ({status})", l.id),
            words.join("; "),
        )
    }
}

impl Drop for RuncHost {
    fn drop(&mut self) {
        if let Some(after) = self.after.take() {
            // It has said itself what went wrong.
            let _ = after.join();
        }
        // It may run here with pages missing: the guardian must see this process
        // go, and stop it.
        if self.resumed
            && let Some(g) = self.guardian.take()
        {
            std::mem::forget(g);
        }
    }
}

/// The last lines of a log that say what is wrong.
fn tail(path: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    const MOST: u64 = 4 << 20;
    let mut bytes = Vec::new();
    if let Ok(mut f) = File::open(path) {
        // A log that cannot be read says nothing; the status is told anyway.
        let length = f.metadata().map_or(0, |m| m.len());
        let _ = f
            .seek(SeekFrom::Start(length.saturating_sub(MOST)))
            .and_then(|_| f.take(MOST).read_to_end(&mut bytes));
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> = text
        .lines()
        .filter(|l| wanted(l))
        .map(crate::wire::transport::printable)
        .collect();
    let extra = lines.len().saturating_sub(3);
    lines.drain(..extra);
    lines
}

struct HandlerServing {
    filler: Arc<Filler>,
    handler: Mutex<Option<Handler>>,
}

impl Serving for HandlerServing {
    fn sink(&self) -> Arc<dyn PageSink> {
        Arc::clone(&self.filler) as Arc<dyn PageSink>
    }

    fn wait(&self) -> Result<()> {
        let handler = self
            .handler
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .ok_or_else(|| Error::bug("wait for pages", "somebody waits already"))?;
        let outcome = handler.wait()?;
        running::lock(&outcome.locked);
        outcome.lost.map_or(Ok(()), Err)
    }

    fn missing(&self) -> Result<Vec<(Object, PageRange)>> {
        Ok(self.filler.residency().missing_ranges())
    }

    fn fail(&self, why: Error) {
        self.filler.lost(why);
    }
}

impl Host for RuncHost {
    fn fit(&mut self, offer: &Offer, landed: &Landed) -> Result<(), Vec<String>> {
        // Its own directory is not made yet.
        let dir = landed.bundle.ancestors().nth(2);
        let mut no = dir.map_or(Vec::new(), |dir| sizes::judge(offer, dir));
        if self.root.join(&offer.id).exists() {
            no.push(format!("runc has a container {} here already", offer.id));
        }
        let here = super::container::cpu_flags();
        let lacking: Vec<&str> = offer
            .cpu_flags
            .iter()
            .map(String::as_str)
            .filter(|f| matters(f) && !here.iter().any(|h| h == f))
            .take(16)
            .collect();
        if !lacking.is_empty() {
            no.push(format!(
                "this CPU lacks what programs may use there: {}",
                lacking.join(" ")
            ));
        }
        let untold = offer.carried.iter().filter(|o| !self.options.contains(o));
        no.extend(untold.map(|o| format!("its source carries {o}, which receive was not told")));
        if no.is_empty() { Ok(()) } else { Err(no) }
    }

    fn place(&self, landed: &Landed) -> Value {
        json!({
            "runc_root": self.root,
            "top": landed.bundle.parent(),
            "cgroups_below": cgroups::below(),
            "tasks": self.tasks.iter().map(|(p, t)| (p.0, t)).collect::<Vec<_>>(),
        })
    }

    fn begin(&mut self, l: &Landed) -> Result<()> {
        cgroups::alone(&l.bundle, &l.id)?;
        let server = Server::bind(&l.work)?;
        self.landed = Some(l.clone());
        self.child = Some(self.start(l)?);
        let until = Instant::now() + BEGIN;
        loop {
            if let Some(s) = server.accept(Some(Duration::from_millis(20)), MESSAGE)? {
                self.session = Some(s);
                self.warm = cgroup::Warm::start();
                return Ok(());
            }
            let ended = match &mut self.child {
                Some(c) => c.try_wait().context(|| "wait for runc".to_owned())?,
                None => None,
            };
            if ended.is_some() || Instant::now() > until {
                return Err(self.why(l, ended));
            }
        }
    }

    fn rebuild(&mut self, l: &Landed, pages: Arc<Remote>) -> Result<Arc<dyn Serving>> {
        let session = self
            .session
            .take()
            .ok_or_else(|| Error::bug("rebuild", "nobody waits for the images"))?;
        let (job, ready) = session.receive().map_err(|e| {
            let ended = self.child.as_mut().and_then(|c| c.wait().ok());
            self.why(l, ended).within(e.to_string())
        })?;
        drop(self.warm.take());
        info!(spaces = job.spaces.len(), root = ready.root().0, "rebuilt");
        for space in &job.spaces {
            let started = procfs::stat(space.pid)?.start_time;
            self.tasks.push((space.pid, started));
        }
        let filler = Filler::new(job)?;
        running::help(&filler);
        if let Some(g) = &mut self.guardian {
            g.watch(&filler)?;
            g.say_in(&l.loss())?;
        }
        let source: Arc<dyn PageSource> = pages;
        let handler = Handler::start(Arc::clone(&filler), source, Box::new(|_| OnLoss::Kill))?;
        self.ready = Some(ready);
        Ok(Arc::new(HandlerServing {
            filler,
            handler: Mutex::new(Some(handler)),
        }))
    }

    fn stands(&mut self) -> Result<()> {
        let waits = self.ready.as_ref().map_or(Ok(false), Ready::waits)?;
        let ended = match &mut self.child {
            Some(c) => c.try_wait().context(|| "wait for runc".to_owned())?,
            None => None,
        };
        match &self.landed {
            Some(l) if !waits || ended.is_some() => {
                Err(self.why(l, ended).within("it does not wait any more"))
            }
            Some(l) => {
                let kept = kept::keep(&self.root, &l.id, &l.work.join(KEPT));
                if let Err(e) = kept {
                    warn!("{e}");
                }
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn resume(&mut self) -> Result<()> {
        self.resumed = true;
        let ready = self
            .ready
            .take()
            .ok_or_else(|| Error::bug("resume", "nothing was rebuilt"))?;
        let root = ready.root();
        ready.grant()?;
        // The pause does not wait for programs: peers of a network that is open a
        // moment later send again.
        let scripts = Arc::clone(&self.scripts);
        self.after = Some(std::thread::spawn(move || {
            for stage in [Stage::NetworkUnlock, Stage::PostResume] {
                if let Err(e) = scripts.run(stage.name(), Some(root), None) {
                    error!("{e}");
                }
            }
        }));
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        // Every page is here: nothing has to be guarded any more.
        drop(self.guardian.take());
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let until = Instant::now() + SETTLE;
        loop {
            match child.try_wait().context(|| "wait for runc".to_owned())? {
                Some(s) if s.success() => return Ok(()),
                None if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
                ended => {
                    return self.known(ended);
                }
            }
        }
    }

    fn discard(&mut self) {
        drop((self.session.take(), self.warm.take()));
        if let Some(r) = self.ready.take()
            && let Err(e) = r.abort("the migration was given up")
        {
            info!("{e}");
        }
        if let Some(mut c) = self.child.take() {
            let until = Instant::now() + Duration::from_secs(10);
            // It sees that nobody grants, kills what it built, and ends.
            while matches!(c.try_wait(), Ok(None)) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            if matches!(c.try_wait(), Ok(None)) {
                let _ = c.kill();
                let _ = c.wait();
            }
        }
        if let Some(l) = self.landed.take() {
            if let Err(e) = runc::delete(&self.root, &l.id) {
                warn!("{e}");
            }
            cgroups::remove(&l.bundle, &l.id, &cgroups::below());
        }
    }
}

/// Flags (as /proc/cpuinfo spells them) that change what user programs may execute;
/// others describe the hypervisor or the kernel's own use.
fn matters(flag: &str) -> bool {
    const FAMILIES: [&str; 23] = [
        "sse", "ssse", "avx", "amx", "aes", "bmi", "fma", "sha", "vaes", "vpclmul", "gfni",
        "pclmul", "popcnt", "movbe", "movdir", "adx", "xsave", "f16c", "rdrand", "rdseed", "3dnow",
        "clflush", "apx",
    ];
    // `abm` is LZCNT, which a CPU without it takes for BSR: a wrong result and no fault.
    const ALONE: [&str; 21] = [
        "abm",
        "cmov",
        "cx8",
        "cx16",
        "mmx",
        "fxsr",
        "lahf_lm",
        "rdtscp",
        "rdpid",
        "fsgsbase",
        "rtm",
        "clwb",
        "cldemote",
        "waitpkg",
        "serialize",
        "ospke",
        "user_shstk",
        "xop",
        "tbm",
        "lwp",
        "enqcmd",
    ];
    ALONE.contains(&flag) || FAMILIES.iter().any(|p| flag.starts_with(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_a_long_log_are_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut text = "Error: long ago\n".to_owned() + &"nothing of note\n".repeat(400_000);
        text += "Error: one\nError: two\nError: three\nError: four\n";
        std::fs::write(file.path(), text).unwrap();
        let said = tail(file.path(), |line| line.contains("Error"));
        assert_eq!(said, ["Error: two", "Error: three", "Error: four"]);
        assert!(tail(Path::new("/nonexistent"), |_| true).is_empty());
    }

    #[test]
    fn what_programs_execute_matters_and_what_the_kernel_uses_does_not() {
        for flag in ["avx512f", "sse4_2", "abm", "xop", "rtm", "fsgsbase", "cx16"] {
            assert!(matters(flag), "{flag}");
        }
        for flag in [
            "hypervisor",
            "vmx",
            "pti",
            "nx",
            "arch_capabilities",
            "smep",
        ] {
            assert!(!matters(flag), "{flag}");
        }
    }
}
