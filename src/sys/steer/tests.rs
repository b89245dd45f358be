use std::process::{Child, Command, Stdio};

use super::*;
use crate::sys::procfs;
use crate::sys::ptrace::{Options, Waited, seize};

fn cat() -> Child {
    Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn steer(child: &Child, options: Options) -> Steered {
    let pid = HostPid(i32::try_from(child.id()).unwrap());
    // until exec has happened the maps are our own
    while procfs::comm(pid).unwrap() != "cat" {
        std::thread::yield_now();
    }
    let seized = seize(pid, options).unwrap();
    seized.interrupt().unwrap();
    let Waited::Stopped(task, _) = seized.wait().unwrap() else {
        panic!("gone")
    };
    let maps = procfs::maps(pid).unwrap();
    let vdso = procfs::vdso(pid, &maps).unwrap();
    let insn = find_syscall(pid, vdso).unwrap();
    let hole = procfs::find_hole(
        &maps.iter().map(|m| m.range).collect::<Vec<_>>(),
        MAPPING_LEN,
    )
    .unwrap();
    Steered::install(task, insn, hole)
        .map_err(|(_, e)| e)
        .unwrap()
}

#[test]
fn the_loop_is_under_200_bytes() {
    assert!(loop_code().len() < 200);
}

#[test]
fn a_batch_passes_data_results_and_failures_and_the_task_runs_on() {
    let mut child = cat();
    let mut s = steer(&child, Options::default());
    let mut b = Batch::new();
    let pid = b.call("getpid", libc::SYS_getpid, &[]);
    let path = b.cstr(b"/proc/self/comm");
    let open = b.call(
        "openat",
        libc::SYS_openat,
        &[libc::AT_FDCWD.into(), path.into(), 0.into()],
    );
    let out = b.buffer(16);
    let read = b.call(
        "read",
        libc::SYS_read,
        &[Arg::Ret(open), out.into(), 16.into()],
    );
    b.call("close", libc::SYS_close, &[Arg::Ret(open)]);
    let bad = b.try_call("close", libc::SYS_close, &[(-1).into()]);
    let r = s.run(&b).unwrap();
    assert_eq!(r.ret(pid), i64::from(child.id()));
    assert_eq!(r.ret(read), 4);
    assert_eq!(&r.bytes(out)[..4], b"cat\n");
    assert_eq!(r.ret(bad), -i64::from(libc::EBADF));

    let mut b = Batch::new();
    b.call("getpid", libc::SYS_getpid, &[]);
    b.call("close", libc::SYS_close, &[(-1).into()]);
    b.call("exit", libc::SYS_exit_group, &[7.into()]);
    let e = s.run(&b).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::EBADF));
    assert!(e.to_string().contains("close("), "{e}");

    s.remove().unwrap().detach(0).unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_child_made_by_a_batch_starts_stopped_and_seized() {
    let mut child = cat();
    let options = Options {
        follow: true,
        kill_on_tracer_death: true,
        suspend_seccomp: false,
    };
    let mut s = steer(&child, options);
    let mut b = Batch::new();
    let fork = b.call("fork", libc::SYS_fork, &[]);
    let r = s.run(&b).unwrap();
    let [made] = r.made[..] else {
        panic!("{:?}", r.made)
    };
    assert_eq!(r.ret(fork), i64::from(made.0));
    let Waited::Stopped(kid, _) = crate::sys::ptrace::Seized::adopted(made, options)
        .wait()
        .unwrap()
    else {
        panic!("gone")
    };
    let mut kid = Steered::inherited(kid, &s).unwrap();
    let mut b = Batch::new();
    let getppid = b.call("getppid", libc::SYS_getppid, &[]);
    assert_eq!(kid.run(&b).unwrap().ret(getppid), i64::from(child.id()));
    let mut b = Batch::new();
    b.call("exit", libc::SYS_exit_group, &[0.into()]);
    assert!(kid.run(&b).is_err());
    s.task.set_options(Options::default()).unwrap();
    s.remove().unwrap().detach(0).unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}
