//! IPC namespaces: their limits are carried; objects in them are refused by
//! name for now. ipc_namespaces(7), sysvipc(7), mq_overview(7).

use std::fs;
use std::os::fd::AsRawFd;

use crate::base::{Error, HostPid, Result, ResultExt};
use crate::image::records::IpcVarEntry;
use crate::sys::mounts::{self, FsContext};
use crate::sys::ns::{self, Kind};

/// Limits of the IPC namespace of `pid`, after proving that it is empty.
pub(super) fn capture(pid: HostPid) -> Result<IpcVarEntry> {
    ns::inside(pid, &[Kind::Ipc], || {
        refuse_objects()?;
        limits()
    })
}

/// Refuses System V objects and message queues of the calling thread's
/// namespace.
fn refuse_objects() -> Result<()> {
    for (file, what) in [
        ("msg", "System V message queue"),
        ("sem", "System V semaphore set"),
        ("shm", "System V shared memory"),
    ] {
        let path = format!("/proc/sysvipc/{file}");
        let Some(text) = present(fs::read_to_string(&path)).context(|| format!("read {path}"))?
        else {
            continue;
        };
        if let Some(line) = text.lines().nth(1) {
            let id: Vec<_> = line.split_ascii_whitespace().take(2).collect();
            return Err(Error::refused(
                format!("{what} (key {})", id.join(", id ")),
                "these are not carried",
            ));
        }
    }
    let queues = match FsContext::open("mqueue") {
        Ok(fs) => fs.mount(0)?,
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        Err(e) => return Err(e),
    };
    let path = format!("/proc/self/fd/{}", queues.as_raw_fd());
    let mut entries = fs::read_dir(&path).context(|| "list message queues".to_owned())?;
    mounts::close_later(vec![queues]);
    if let Some(entry) = entries.next() {
        let name = entry
            .context(|| "list message queues".to_owned())?
            .file_name();
        return Err(Error::refused(
            format!("POSIX message queue /{}", name.to_string_lossy()),
            "these are not carried",
        ));
    }
    Ok(())
}

fn present<T>(r: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match r {
        Ok(t) => Ok(Some(t)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn limits() -> Result<IpcVarEntry> {
    let numbers = |file: &str| -> Result<Option<Vec<i64>>> {
        let path = format!("/proc/sys/{file}");
        let Some(text) = present(fs::read_to_string(&path)).context(|| format!("read {path}"))?
        else {
            return Ok(None);
        };
        text.split_ascii_whitespace()
            // Some are unsigned 64 bit.
            .map(|w| {
                w.parse::<i64>()
                    .or_else(|_| w.parse::<u64>().map(u64::cast_signed))
            })
            .collect::<std::result::Result<_, _>>()
            .map(Some)
            .map_err(|e| Error::other(crate::base::Blame::Kernel, path, e))
    };
    let one =
        |file: &str| -> Result<Option<i64>> { Ok(numbers(file)?.and_then(|v| v.first().copied())) };
    let small = |file: &str| -> Result<Option<u32>> {
        Ok(one(file)?.map(|v| u32::try_from(v).unwrap_or(u32::MAX)))
    };
    // -1 says that no next id is wished for.
    let next =
        |file: &str| -> Result<Option<u32>> { Ok(one(file)?.and_then(|v| u32::try_from(v).ok())) };
    let sem = numbers("kernel/sem")?.unwrap_or_default();
    Ok(IpcVarEntry {
        sem_ctls: sem
            .into_iter()
            .map(|v| u32::try_from(v).unwrap_or(u32::MAX))
            .collect(),
        msg_ctlmax: small("kernel/msgmax")?.unwrap_or(0),
        msg_ctlmnb: small("kernel/msgmnb")?.unwrap_or(0),
        msg_ctlmni: small("kernel/msgmni")?.unwrap_or(0),
        auto_msgmni: small("kernel/auto_msgmni")?.unwrap_or(0),
        shm_ctlmax: one("kernel/shmmax")?.unwrap_or(0).cast_unsigned(),
        shm_ctlall: one("kernel/shmall")?.unwrap_or(0).cast_unsigned(),
        shm_ctlmni: small("kernel/shmmni")?.unwrap_or(0),
        shm_rmid_forced: small("kernel/shm_rmid_forced")?.unwrap_or(0),
        mq_queues_max: small("fs/mqueue/queues_max")?.unwrap_or(0),
        mq_msg_max: small("fs/mqueue/msg_max")?.unwrap_or(0),
        mq_msgsize_max: small("fs/mqueue/msgsize_max")?.unwrap_or(0),
        mq_msg_default: small("fs/mqueue/msg_default")?,
        mq_msgsize_default: small("fs/mqueue/msgsize_default")?,
        msg_next_id: next("kernel/msg_next_id")?,
        sem_next_id: next("kernel/sem_next_id")?,
        shm_next_id: next("kernel/shm_next_id")?,
    })
}

/// Gives our own namespace these limits. What is so already is not written,
/// and neither is what this kernel has no file for.
pub(super) fn rebuild(want: &IpcVarEntry) -> Result<()> {
    let have = limits()?;
    let mut writes: Vec<(&str, String)> = Vec::new();
    if have.sem_ctls != want.sem_ctls && !want.sem_ctls.is_empty() {
        let words: Vec<_> = want.sem_ctls.iter().map(u32::to_string).collect();
        writes.push(("kernel/sem", words.join("\t")));
    }
    for (file, have, want) in [
        ("kernel/msgmax", have.msg_ctlmax, want.msg_ctlmax),
        ("kernel/msgmnb", have.msg_ctlmnb, want.msg_ctlmnb),
        ("kernel/msgmni", have.msg_ctlmni, want.msg_ctlmni),
        ("kernel/shmmni", have.shm_ctlmni, want.shm_ctlmni),
        (
            "kernel/shm_rmid_forced",
            have.shm_rmid_forced,
            want.shm_rmid_forced,
        ),
        (
            "fs/mqueue/queues_max",
            have.mq_queues_max,
            want.mq_queues_max,
        ),
        ("fs/mqueue/msg_max", have.mq_msg_max, want.mq_msg_max),
        (
            "fs/mqueue/msgsize_max",
            have.mq_msgsize_max,
            want.mq_msgsize_max,
        ),
    ] {
        if have != want {
            writes.push((file, want.to_string()));
        }
    }
    for (file, have, want) in [
        ("kernel/shmmax", have.shm_ctlmax, want.shm_ctlmax),
        ("kernel/shmall", have.shm_ctlall, want.shm_ctlall),
    ] {
        if have != want {
            writes.push((file, want.to_string()));
        }
    }
    for (file, have, want) in [
        (
            "fs/mqueue/msg_default",
            have.mq_msg_default,
            want.mq_msg_default,
        ),
        (
            "fs/mqueue/msgsize_default",
            have.mq_msgsize_default,
            want.mq_msgsize_default,
        ),
        ("kernel/msg_next_id", have.msg_next_id, want.msg_next_id),
        ("kernel/sem_next_id", have.sem_next_id, want.sem_next_id),
        ("kernel/shm_next_id", have.shm_next_id, want.shm_next_id),
    ] {
        if let Some(want) = want.filter(|w| have != Some(*w)) {
            writes.push((file, want.to_string()));
        }
    }
    for (file, value) in writes {
        let path = format!("/proc/sys/{file}");
        fs::write(&path, &value).context(|| format!("write {value} to {path}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_new_namespace<T: Send>(job: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|s| {
            s.spawn(|| {
                ns::unshare(&[Kind::Ipc]).unwrap();
                job()
            })
            .join()
            .unwrap()
        })
    }

    #[test]
    fn limits_of_a_namespace_come_back_in_another_one() {
        let mut want = in_new_namespace(|| limits().unwrap());
        want.msg_ctlmax += 4096;
        want.mq_msg_max += 1;
        want.sem_ctls[3] -= 7;
        let got = in_new_namespace(|| {
            rebuild(&want).unwrap();
            limits().unwrap()
        });
        assert_eq!(want, got);
    }

    #[test]
    fn an_empty_namespace_passes_and_objects_are_refused_by_name() {
        in_new_namespace(|| refuse_objects().unwrap());
        let mut child = std::process::Command::new("unshare")
            .args([
                "-i",
                "sh",
                "-c",
                "ipcmk -S 3 >/dev/null && echo ok && exec sleep 1000",
            ])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        let e = capture(HostPid(i32::try_from(child.id()).unwrap())).unwrap_err();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(e.to_string().contains("semaphore"), "{e}");
    }
}
