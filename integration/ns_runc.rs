//! The namespaces, mounts and cgroups of a default runc container through
//! `runc checkpoint` and `runc restore`: what the container sees must be the
//! same. Crossed with CRIU where one is given.

#[path = "harness/mod.rs"]
mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dunlin::base::HostPid;
use dunlin::sys::mounts::{MountInfo, mountinfo};
use harness::*;

/// A mount as it must come back: all but the numbers of the kernel.
fn seen(pid: i32) -> Vec<String> {
    let all = mountinfo(HostPid(pid)).expect("mountinfo");
    let by_id: BTreeMap<u32, &str> = all.iter().map(|m| (m.id, m.mountpoint.as_str())).collect();
    let first = |m: &MountInfo| {
        let same = |o: &&MountInfo| (o.major, o.minor) == (m.major, m.minor);
        all.iter()
            .find(same)
            .map(|o| o.mountpoint.clone())
            .unwrap_or_default()
    };
    all.iter()
        .map(|m| {
            format!(
                "{} at {} on {} ({}; {}) {} {} ({}), same as {}",
                m.root,
                m.mountpoint,
                by_id.get(&m.parent).copied().unwrap_or("nothing"),
                m.options,
                [m.shared.is_some(), m.master.is_some(), m.unbindable]
                    .map(u8::from)
                    .map(|b| b.to_string())
                    .concat(),
                m.fstype,
                m.source,
                m.super_options,
                first(m),
            )
        })
        .collect()
}

/// What else of its namespaces a container sees.
fn settings(pid: i32) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let read = |p: String| fs::read_to_string(&p).unwrap_or_else(|e| format!("{p}: {e}"));
    all.insert("cgroups".to_owned(), read(format!("/proc/{pid}/cgroup")));
    let mut enter = std::process::Command::new("nsenter");
    enter.args(["-t", &pid.to_string(), "-u", "-i", "-n", "sh", "-c"]);
    enter.arg("hostname; cat /proc/sys/kernel/domainname /proc/sys/kernel/msgmax /proc/sys/fs/mqueue/msg_max; ip -o link | cut -d: -f2");
    all.insert(
        "names and limits".to_owned(),
        run(&mut enter, PATIENCE).stdout,
    );
    all
}

const SCRIPT: &str = "echo kept > /dev/shm/file; mkdir -m 1700 /dev/shm/dir; chown 12:13 /dev/shm/dir; \
    ln -s nowhere /dev/shm/link; echo ready; sleep 10000";

fn start(scratch: &Scratch, runc: &Runc) -> Container {
    let mut bundle = Bundle::new(scratch, "bundle", &[], &["/bin/sh", "-c", SCRIPT]);
    bundle.edit(|c| {
        c["hostname"] = "moved-host".into();
        c["linux"]["sysctl"] =
            serde_json::json!({"kernel.msgmax": "12288", "fs.mqueue.msg_max": "12"});
    });
    let id = scratch.name().to_owned();
    let mut container = Container::run(runc, bundle, &id);
    container.lines.expect("ready", PATIENCE);
    container
}

/// What is in /dev/shm, sorted; with times where the writer keeps them.
fn shm(pid: i32, times: bool) -> Vec<String> {
    let mut find = std::process::Command::new("find");
    find.current_dir(format!("/proc/{pid}/root/dev/shm"));
    let shown = if times {
        "%P %y %m %U %G %l %T@\n"
    } else {
        "%P %y %m %U %G %l\n"
    };
    find.args([".", "-printf", shown]);
    let found = run(&mut find, PATIENCE).stdout;
    let mut lines: Vec<String> = found.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Mounts of the host that have to do with this container.
fn left_behind(id: &str) -> Vec<String> {
    let all = mountinfo(HostPid(1)).expect("host mounts");
    let of_it = |m: &MountInfo| m.mountpoint.contains(id) || m.root.contains(id);
    all.iter()
        .filter(|m| of_it(m))
        .map(|m| m.mountpoint.clone())
        .collect()
}

/// Seconds since boot, as the container's clock has it.
fn uptime(container: &Container) -> f64 {
    let said = container.exec(&["/bin/cat", "/proc/uptime"]).stdout;
    said.split(' ')
        .next()
        .and_then(|s| s.parse().ok())
        .expect("an uptime")
}

fn comes_back(dump: &Runc, restore: &Runc, scratch: &Scratch, exact: bool) {
    let mut container = start(scratch, dump);
    let pid = container.pid();
    let before = (
        seen(pid),
        settings(pid),
        shm(pid, exact),
        uptime(&container),
    );
    let images = scratch.join("images");
    container.dumped(&images, &[]);
    container.runc = restore.clone();
    container.restored(&images, &[]);
    let pid = container.pid();
    let after = (
        seen(pid),
        settings(pid),
        shm(pid, exact),
        uptime(&container),
    );
    if exact {
        assert_eq!(before.0, after.0);
        assert_eq!(before.1, after.1);
    } else {
        // CRIU keeps whole seconds only, takes masks from the host's /dev, and
        // mounts whatever cgroup runc names.
        assert_eq!(before.0.len(), after.0.len());
        assert_eq!(before.1["names and limits"], after.1["names and limits"]);
    }
    assert_eq!(before.2, after.2);
    assert!(
        (0.0..60.0).contains(&(after.3 - before.3)),
        "{} then {}",
        before.3,
        after.3
    );
    drop(container);
    assert_eq!(left_behind(scratch.name()), [""; 0]);
}

#[test]
fn a_default_containers_namespaces_mounts_and_cgroups_come_back_the_same() {
    needs!(root, runc);
    let scratch = Scratch::new("nsrunc");
    let runc = Runc::new(&scratch);
    comes_back(&runc, &runc, &scratch, true);
}

#[test]
fn a_read_only_root_and_a_bind_come_back_the_same() {
    needs!(root, runc);
    let scratch = Scratch::new("nsbind");
    let runc = Runc::new(&scratch);
    let data = scratch.dir("data");
    fs::write(data.join("f"), "of the host").expect("write");
    let mut bundle = Bundle::new(
        &scratch,
        "bundle",
        &[],
        &["/bin/sh", "-c", "echo ready; sleep 10000"],
    );
    fs::create_dir_all(bundle.rootfs().join("data")).expect("mkdir");
    bundle.edit(|c| {
        c["root"]["readonly"] = true.into();
        c["mounts"]
            .as_array_mut()
            .expect("mounts")
            .push(serde_json::json!({
                "destination": "/data", "type": "bind", "source": data,
                "options": ["rbind", "ro", "nosuid", "noexec"],
            }));
    });
    let id = scratch.name().to_owned();
    let mut container = Container::run(&runc, bundle, &id);
    container.lines.expect("ready", PATIENCE);
    let before = seen(container.pid());
    let images = scratch.join("images");
    container.dumped(&images, &[]);
    container.restored(&images, &[]);
    assert_eq!(before, seen(container.pid()));
    assert_eq!(
        container.exec(&["/bin/cat", "/data/f"]).stdout,
        "of the host"
    );
    assert!(
        !container.exec(&["/bin/touch", "/x"]).ok(),
        "the root is read-only"
    );
}

#[test]
fn crossed_what_we_dump_criu_restores() {
    needs!(root, runc, crossed);
    let scratch = Scratch::new("nsout");
    let theirs = Runc::with_criu(&scratch, Path::new(&criu().expect("CRIU")));
    comes_back(&Runc::new(&scratch), &theirs, &scratch, false);
}

#[test]
fn crossed_what_criu_dumps_we_restore() {
    needs!(root, runc, crossed);
    let scratch = Scratch::new("nsin");
    let theirs = Runc::with_criu(&scratch, Path::new(&criu().expect("CRIU")));
    comes_back(&theirs, &Runc::new(&scratch), &scratch, false);
}

/// A container changed by `edit`, through checkpoint and restore; what differs.
fn moved(
    prefix: &str,
    edit: impl FnOnce(&mut Bundle),
    before_dump: impl FnOnce(&Container),
) -> (Container, Scratch) {
    let scratch = Scratch::new(prefix);
    let runc = Runc::new(&scratch);
    let mut bundle = Bundle::new(
        &scratch,
        "bundle",
        &[],
        &["/bin/sh", "-c", "echo ready; sleep 10000"],
    );
    edit(&mut bundle);
    let id = scratch.name().to_owned();
    let mut container = Container::run(&runc, bundle, &id);
    container.lines.expect("ready", PATIENCE);
    let pid = container.pid();
    let before = (seen(pid), settings(pid));
    before_dump(&container);
    let images = scratch.join("images");
    container.dumped(&images, &[]);
    container.restored(&images, &[]);
    let pid = container.pid();
    assert_eq!(before.0, seen(pid));
    assert_eq!(before.1, settings(pid));
    (container, scratch)
}

#[test]
fn a_cgroup_namespace_comes_back_with_its_root() {
    needs!(root, runc);
    let add = |b: &mut Bundle| {
        b.edit(|c| {
            let list = c["linux"]["namespaces"].as_array_mut().expect("namespaces");
            list.push(serde_json::json!({"type": "cgroup"}));
        });
    };
    let (container, _scratch) = moved("nscg", add, |_| {});
    let inside = container.exec(&["/bin/cat", "/proc/1/cgroup"]).stdout;
    let outside = inside.lines().filter(|l| !l.ends_with(":/"));
    assert_eq!(outside.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn a_network_namespace_that_the_caller_provides_is_entered_again() {
    needs!(root, runc);
    let name = format!("dunlin-ns-{}", std::process::id());
    let ip = |args: &[&str]| run(std::process::Command::new("ip").args(args), PATIENCE);
    assert!(ip(&["netns", "add", &name]).ok());
    let path = format!("/run/netns/{name}");
    let result = std::panic::catch_unwind(|| {
        let give = |b: &mut Bundle| {
            b.edit(|c| {
                let list = c["linux"]["namespaces"].as_array_mut().expect("namespaces");
                list.retain(|n| n["type"] != "network");
                list.push(serde_json::json!({"type": "network", "path": path}));
            });
        };
        let (container, _scratch) = moved("nsnet", give, |_| {});
        let link = fs::metadata(format!("/proc/{}/ns/net", container.pid())).expect("net ns");
        let given = fs::metadata(&path).expect("the given one");
        assert_eq!(
            std::os::unix::fs::MetadataExt::ino(&link),
            std::os::unix::fs::MetadataExt::ino(&given)
        );
    });
    ip(&["netns", "delete", &name]);
    result.unwrap_or_else(|e| std::panic::resume_unwind(e));
}

#[test]
fn a_container_that_is_paused_already_is_captured() {
    needs!(root, runc);
    let pause = |c: &Container| {
        let mut pause = c.runc.command();
        assert!(run(pause.args(["pause", &c.id]), PATIENCE).ok());
    };
    let (container, _scratch) = moved("nspause", |_| {}, pause);
    assert_eq!(container.status(), "running");
}

#[test]
fn an_exec_session_in_the_container_is_refused_by_name() {
    needs!(root, runc);
    let scratch = Scratch::new("nsexec");
    let runc = Runc::new(&scratch);
    let bundle = Bundle::new(
        &scratch,
        "bundle",
        &[],
        &["/bin/sh", "-c", "echo ready; sleep 10000"],
    );
    let id = scratch.name().to_owned();
    let mut container = Container::run(&runc, bundle, &id);
    container.lines.expect("ready", PATIENCE);
    let mut exec = runc.command();
    exec.args(["exec", "--detach", &id, "/bin/sleep", "10001"]);
    exec.stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    assert!(exec.status().expect("runc exec").success());
    let images = scratch.join("images");
    let outcome = container.checkpoint(&images, &[]);
    assert!(!outcome.ok());
    let logs = container.logs_of(&images);
    assert!(
        logs.contains("(sleep)") && logs.contains("not in its tree"),
        "{logs}"
    );
    assert_eq!(container.status(), "running");
    assert!(container.init().is_alive());
}

/// A directory of the host whose mounts propagate; unmounted when dropped.
struct SharedMount(std::path::PathBuf);

impl SharedMount {
    fn new(dir: std::path::PathBuf) -> Self {
        let mount = |args: &[&std::ffi::OsStr]| {
            assert!(
                std::process::Command::new("mount")
                    .args(args)
                    .status()
                    .expect("mount")
                    .success()
            );
        };
        mount(&["--bind".as_ref(), dir.as_os_str(), dir.as_os_str()]);
        mount(&["--make-shared".as_ref(), dir.as_os_str()]);
        Self(dir)
    }
}

impl Drop for SharedMount {
    fn drop(&mut self) {
        let mut umount = std::process::Command::new("umount");
        let _ = umount.arg("-R").arg(&self.0).status();
    }
}

#[test]
fn a_slave_of_a_mount_of_the_host_still_receives_what_is_mounted_there() {
    needs!(root, runc);
    let outside = Scratch::new("nsslaved");
    let shared = SharedMount::new(outside.dir("shared"));
    let below = outside.dir("shared/below");
    let bind = |b: &mut Bundle| {
        fs::create_dir_all(b.rootfs().join("in")).expect("mkdir");
        b.edit(|c| {
            c["mounts"].as_array_mut().expect("mounts").push(serde_json::json!({
                "destination": "/in", "type": "bind", "source": shared.0, "options": ["bind", "rslave"],
            }));
        });
    };
    let (container, _scratch) = moved("nsslave", bind, |_| {});
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "tmpfs", "late"]).arg(&below);
    assert!(mount.status().expect("mount").success());
    let there = seen(container.pid());
    assert!(
        there
            .iter()
            .any(|m| m.contains("at /in/below") && m.contains("tmpfs late")),
        "{there:?}"
    );
}

#[test]
fn volumes_in_memory_nested_and_covered_come_back_with_their_content() {
    needs!(root, runc);
    let add = |b: &mut Bundle| {
        b.edit(|c| {
            let all = c["mounts"].as_array_mut().expect("mounts");
            for (at, source) in [
                ("/v", "outer"),
                ("/v/inner", "inner"),
                ("/w", "under"),
                ("/w/deep", "deep"),
            ] {
                all.push(serde_json::json!({
                    "destination": at, "type": "tmpfs", "source": source,
                    "options": ["nosuid", "size=1m", "mode=750"],
                }));
            }
        });
    };
    let write = |c: &Container| {
        let script = "echo 1 > /v/a; echo 2 > /v/inner/b; ln /v/a /v/hard; echo 3 > /w/deep/c";
        assert!(c.exec(&["/bin/sh", "-c", script]).ok());
    };
    let (container, _scratch) = moved("nsvol", add, write);
    let said = container.exec(&[
        "/bin/sh",
        "-c",
        "cat /v/a /v/inner/b /v/hard /w/deep/c; stat -c %h /v/a",
    ]);
    assert_eq!(said.stdout, "1\n2\n1\n3\n2\n", "{said:?}");
}
