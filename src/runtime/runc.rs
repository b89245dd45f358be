//! What runc remembers of a container (`ROOT/ID/state.json`), as far as a dump
//! needs it, and what runc itself would tell a checkpoint backend: bind mounts,
//! cgroup directories, masked files and device nodes as external mounts, the
//! network namespace when it has a path. runc is asked to restore and to delete;
//! it is never asked to dump, because it deletes what it has dumped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use serde::Deserialize;

use crate::base::{Blame, Error, HostPid, Result, ResultExt};
use crate::engine::options::{CgroupMode, Common, Dump};

/// Where runc keeps states when nothing else is said.
pub const DEFAULT_ROOT: &str = "/run/runc";

/// Largest state.json or config.json that is read, bytes.
const MAX: u64 = 16 << 20;

/// CLONE_NEWNET, which runc always declares empty.
const NEWNET: u64 = 0x4000_0000;

#[derive(Debug, Clone, Deserialize)]
struct State {
    init_process_pid: i32,
    init_process_start: u64,
    #[serde(default)]
    external_descriptors: Option<Vec<String>>,
    config: Config,
}

#[derive(Debug, Clone, Deserialize)]
struct Config {
    rootfs: PathBuf,
    #[serde(default)]
    mounts: Option<Vec<Mount>>,
    #[serde(default)]
    devices: Option<Vec<Device>>,
    #[serde(default)]
    namespaces: Option<Vec<Namespace>>,
    #[serde(default)]
    mask_paths: Option<Vec<String>>,
    #[serde(default)]
    labels: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Mount {
    destination: String,
    #[serde(default)]
    device: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Device {
    #[serde(default)]
    path: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

/// A container that runc runs.
#[derive(Debug, Clone)]
pub struct Container {
    id: String,
    root: PathBuf,
    state: State,
    bundle: PathBuf,
}

impl Container {
    /// Reads `ROOT/ID/state.json`.
    ///
    /// # Errors
    /// No such container, a state of another shape, a container that does not run.
    pub fn load(root: &Path, id: &str) -> Result<Self> {
        let path = state_file(root, id)?;
        let bytes = read(&path).map_err(|e| {
            if e.raw_os_error() == Some(libc::ENOENT) {
                Error::caller(
                    format!("container {id}"),
                    format!("does not exist in {}", root.display()),
                )
            } else {
                e
            }
        })?;
        Self::parse(root, id, &path, &bytes)
    }

    /// `bytes` are what `path` holds.
    pub(super) fn parse(root: &Path, id: &str, path: &Path, bytes: &[u8]) -> Result<Self> {
        let state: State = serde_json::from_slice(bytes)
            .map_err(|e| Error::other(Blame::Caller, format!("read {}", path.display()), e))?;
        let bundle = state
            .config
            .labels
            .iter()
            .flatten()
            .find_map(|l| l.strip_prefix("bundle="))
            .map(PathBuf::from)
            .ok_or_else(|| Error::caller(path.display().to_string(), "names no bundle"))?;
        let c = Self {
            id: id.to_owned(),
            root: root.to_owned(),
            state,
            bundle,
        };
        c.check_running()?;
        Ok(c)
    }

    fn check_running(&self) -> Result<()> {
        let pid = self.state.init_process_pid;
        let stopped = || Error::caller(format!("container {}", self.id), "is not running");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|_| stopped())?;
        let rest = stat.rsplit(')').next().unwrap_or_default();
        let mut fields = rest.split_whitespace();
        let alive = fields.next().is_some_and(|s| s != "Z" && s != "X");
        let start = fields.nth(18).and_then(|s| s.parse::<u64>().ok());
        if alive && start == Some(self.state.init_process_start) {
            Ok(())
        } else {
            Err(stopped())
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory of runc's states.
    pub fn runc_root(&self) -> &Path {
        &self.root
    }

    /// Its first task.
    pub fn init(&self) -> HostPid {
        HostPid(self.state.init_process_pid)
    }

    /// Where its bundle lies.
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Its root file system, as the host sees it.
    pub fn rootfs(&self) -> &Path {
        &self.state.config.rootfs
    }

    /// The bundle's config.json.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn config_json(&self) -> Result<Vec<u8>> {
        read(&self.bundle.join("config.json"))
    }

    /// What descriptors 0, 1, 2 were when it was made (`descriptors.json`).
    pub fn descriptors(&self) -> Vec<String> {
        self.state.external_descriptors.clone().unwrap_or_default()
    }

    /// A dump of it with the pages left in place, as runc would ask for it.
    ///
    /// # Errors
    /// Host mounts or namespaces cannot be read.
    pub fn dump(&self) -> Result<Dump> {
        let mut common = Common {
            root: Some(self.state.config.rootfs.clone()),
            cgroups: CgroupMode::Soft,
            empty_ns: NEWNET,
            ext_mnt: self.external_mounts()?,
            ..Common::default()
        };
        for ns in self.state.config.namespaces.iter().flatten() {
            if ns.kind == "NEWNET" && !ns.path.is_empty() {
                use std::os::unix::fs::MetadataExt;
                let inode = fs::metadata(&ns.path)
                    .context(|| format!("stat {}", ns.path))?
                    .ino();
                common.external.push(format!("net[{inode}]:extRootNetNS"));
            }
        }
        Ok(Dump {
            common,
            pid: self.init(),
            lazy: true,
            list_later: false,
        })
    }

    /// Pairs of mountpoint and key, in the order of runc.
    fn external_mounts(&self) -> Result<Vec<(String, String)>> {
        let c = &self.state.config;
        let own_cgroup_ns = c.namespaces.iter().flatten().any(|n| n.kind == "NEWCGROUP");
        let mut out = Vec::new();
        let mut add = |path: &str| {
            let path = path
                .strip_prefix(c.rootfs.to_str().unwrap_or("\0"))
                .unwrap_or(path);
            out.push((path.to_owned(), path.to_owned()));
        };
        for m in c.mounts.iter().flatten() {
            match m.device.as_str() {
                "bind" => add(&m.destination),
                "cgroup" if !own_cgroup_ns => {
                    for name in v1_mountpoints()? {
                        add(&format!("{}/{name}", m.destination));
                    }
                }
                _ => {}
            }
        }
        for d in c.devices.iter().flatten() {
            add(&d.path);
        }
        for p in c.mask_paths.iter().flatten() {
            let inside = format!("/proc/{}/root{p}", self.state.init_process_pid);
            match fs::metadata(&inside) {
                Ok(m) if m.is_dir() => {}
                Ok(_) => out.push((p.clone(), "/dev/null".to_owned())),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::os(format!("stat {inside}"), e)),
            }
        }
        Ok(out)
    }
}

/// Names of the directories at which this host's v1 hierarchies are mounted.
fn v1_mountpoints() -> Result<Vec<String>> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).context(|| format!("read {path}"))?;
    if text.len() as u64 > MAX {
        return Err(Error::caller(path, "is too long"));
    }
    let mut out: Vec<String> = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        if !right.starts_with("cgroup ") {
            continue;
        }
        let point = left.split(' ').nth(4).unwrap_or_default();
        let name = point.rsplit('/').next().unwrap_or_default();
        if !name.is_empty() && !out.iter().any(|n| n == name) {
            out.push(name.to_owned());
        }
    }
    Ok(out)
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let what = || format!("read {}", path.display());
    let size = fs::metadata(path).context(what)?.len();
    if size > MAX {
        return Err(Error::caller(what(), "it is too long"));
    }
    fs::read(path).context(what)
}

pub(super) fn state_file(root: &Path, id: &str) -> Result<PathBuf> {
    if id.is_empty() || id.contains('/') || id.starts_with(['.', '-']) {
        return Err(Error::caller(format!("container id {id:?}"), "is none"));
    }
    Ok(root.join(id).join("state.json"))
}

/// Lets runc forget a container, and kill whatever is left of it.
///
/// # Errors
/// runc cannot be run, or says why not. A container that it does not know is fine.
pub fn delete(root: &Path, id: &str) -> Result<()> {
    unbind(root, id)?;
    let out = Command::new("runc")
        .arg("--root")
        .arg(root)
        .args(["delete", "--force", id])
        .stdin(Stdio::null())
        .output()
        .context(|| "run runc delete".to_owned())?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    if said.contains("does not exist") {
        return Ok(());
    }
    Err(Error::new(
        Blame::Caller,
        format!("runc delete --force {id}"),
        said,
    ))
}

/// A runc that is killed in the midst of a restore leaves the root file system
/// bound into its own directory; whoever removes that then, as `runc delete` does,
/// empties the bundle.
///
/// # Errors
/// Those of umount2(2); no such mount is fine.
pub fn unbind(root: &Path, id: &str) -> Result<()> {
    let at = root.join(id).join("criu-root");
    match umount2(&at, MntFlags::MNT_DETACH) {
        // No mount there, or nothing at all.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(e) => Err(Error::errno(format!("unmount {}", at.display()), e as i32)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(json: &str) -> State {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn external_mounts_are_those_that_runc_names() {
        let c = Container {
            id: "c".into(),
            root: "/run/runc".into(),
            bundle: "/b".into(),
            state: state(
                r#"{"init_process_pid": SELF, "init_process_start": 1, "external_descriptors": ["/dev/null"],
                    "config": {"rootfs": "/b/rootfs",
                    "mounts": [{"destination": "/b/rootfs/data", "device": "bind", "source": "/srv"},
                               {"destination": "/proc", "device": "proc", "source": "proc"}],
                    "devices": [{"path": "/dev/null"}],
                    "namespaces": [{"type": "NEWCGROUP", "path": ""}],
                    "mask_paths": ["/no/such/path"], "labels": null}}"#
                .replace("SELF", &std::process::id().to_string())
                .as_str(),
            ),
        };
        let pair = |s: &str| (s.to_owned(), s.to_owned());
        assert_eq!(
            c.external_mounts().unwrap(),
            [pair("/data"), pair("/dev/null")]
        );
    }

    #[test]
    fn what_a_killed_restore_left_bound_is_let_go_of_and_not_emptied() {
        use nix::mount::{MsFlags, mount};
        let dir = tempfile::tempdir().unwrap();
        let (rootfs, at) = (dir.path().join("rootfs"), dir.path().join("c/criu-root"));
        fs::create_dir_all(&at).unwrap();
        fs::create_dir(&rootfs).unwrap();
        fs::write(rootfs.join("file"), b"kept").unwrap();
        let bound = mount(
            Some(&rootfs),
            &at,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        );
        if bound.is_err() {
            return; // not allowed here; the runs under runc show it too
        }
        delete(dir.path(), "c").unwrap();
        assert_eq!(fs::read(rootfs.join("file")).unwrap(), b"kept");
        assert!(!dir.path().join("c").exists());
        delete(dir.path(), "c").unwrap();
    }

    #[test]
    fn a_container_that_is_not_there_is_an_error_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let e = Container::load(dir.path(), "nobody").unwrap_err();
        assert!(e.to_string().contains("nobody"), "{e}");
        assert!(e.to_string().contains("does not exist"), "{e}");
        for id in ["../x", "", ".x", "--all"] {
            let e = Container::load(dir.path(), id).unwrap_err().to_string();
            assert!(e.starts_with("container id"), "{e}");
        }
    }

    #[test]
    fn a_container_whose_first_task_is_another_by_now_is_not_running() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("c")).unwrap();
        let text = format!(
            r#"{{"init_process_pid": {}, "init_process_start": 1, "config": {{"rootfs": "/r", "labels": ["bundle=/b"]}}}}"#,
            std::process::id()
        );
        fs::write(dir.path().join("c/state.json"), text).unwrap();
        let e = Container::load(dir.path(), "c").unwrap_err().to_string();
        assert!(e.contains("not running"), "{e}");
    }
}
