//! The RPC of `criu swrk`, spoken to the built binary over a socket pair.

#[path = "harness/mod.rs"]
mod harness;
use harness::*;

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use dunlin::image::records::rpc::{CriuFeatures, CriuOpts, CriuReq, CriuReqType, CriuResp};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use prost::Message;

/// clone(2)
const CLONE_NEWNET: u32 = 0x4000_0000;

struct Client {
    socket: OwnedFd,
    child: Child,
}

impl Client {
    fn start() -> Self {
        let (socket, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let child = Command::new(dunlin())
            .args(["swrk", "0"])
            .env("HOME", "/nonexistent")
            .stdin(Stdio::from(theirs))
            .spawn()
            .unwrap();
        Self { socket, child }
    }

    fn send(&self, bytes: &[u8]) {
        send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).unwrap();
    }

    fn receive(&self) -> CriuResp {
        let mut buffer = vec![0; 1 << 16];
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        assert_ne!(length, 0, "the server closed without an answer");
        CriuResp::decode(&buffer[..length]).unwrap()
    }

    fn ask(&self, request: &CriuReq) -> CriuResp {
        self.send(&request.encode_to_vec());
        self.receive()
    }

    fn exit_code(mut self) -> Option<i32> {
        drop(self.socket);
        self.child.wait().unwrap().code()
    }
}

fn request(kind: CriuReqType) -> CriuReq {
    CriuReq {
        r#type: kind.into(),
        ..CriuReq::default()
    }
}

fn keep_open(kind: CriuReqType) -> CriuReq {
    CriuReq {
        keep_open: Some(true),
        ..request(kind)
    }
}

fn with_opts(kind: CriuReqType, opts: CriuOpts) -> CriuReq {
    CriuReq {
        opts: Some(opts),
        ..request(kind)
    }
}

#[test]
fn version_is_new_enough_for_podman_and_the_connection_stays_open() {
    let client = Client::start();
    for _ in 0..2 {
        let answer = client.ask(&keep_open(CriuReqType::Version));
        assert!(answer.success);
        let version = answer.version.unwrap();
        assert!(version.major_number * 10000 + version.minor_number * 100 >= 31100);
        assert_eq!(version.gitid, None);
    }
    let answer = client.ask(&request(CriuReqType::Version));
    assert!(answer.success);
    assert_eq!(client.exit_code(), Some(0));
}

#[test]
fn features_are_answered_as_asked() {
    let client = Client::start();
    let answer = client.ask(&CriuReq {
        features: Some(CriuFeatures {
            mem_track: Some(true),
            lazy_pages: None,
            pidfd_store: None,
        }),
        ..request(CriuReqType::FeatureCheck)
    });
    assert!(answer.success);
    let features = answer.features.unwrap();
    assert_eq!(features.mem_track, Some(false));
    assert_eq!(features.lazy_pages, Some(false));
}

#[test]
fn lazy_pages_are_announced_where_check_finds_them() {
    needs!(root);
    let out = Command::new(dunlin())
        .args(["criu", "check", "--feature", "uffd-noncoop"])
        .output()
        .unwrap();
    let client = Client::start();
    let answer = client.ask(&CriuReq {
        features: Some(CriuFeatures {
            mem_track: None,
            lazy_pages: Some(true),
            pidfd_store: None,
        }),
        ..request(CriuReqType::FeatureCheck)
    });
    assert_eq!(
        answer.features.unwrap().lazy_pages,
        Some(out.status.success())
    );
}

#[test]
fn malformed_requests_are_answered_with_a_message() {
    for bytes in [
        &b"\xff\xff\xff"[..],
        b"\x08\x63",
        b"\x0a\x7f",
        b"\x08\x06",
        b"\x08\x00",
    ] {
        let client = Client::start();
        client.send(bytes);
        let answer = client.receive();
        assert!(!answer.success, "{bytes:?}");
        assert!(answer.cr_errmsg.is_some_and(|m| !m.is_empty()), "{bytes:?}");
        assert_eq!(client.exit_code(), Some(1), "{bytes:?}");
    }
}

#[test]
fn a_client_that_says_nothing_is_no_error() {
    assert_eq!(Client::start().exit_code(), Some(0));
}

#[test]
fn requests_that_are_not_served_are_refused_by_name() {
    let scratch = Scratch::new("face-rpc-refused");
    let images = File::open(scratch.path()).unwrap();
    for (kind, name) in [
        (CriuReqType::PreDump, "pre-dump"),
        (CriuReqType::SinglePreDump, "pre-dump"),
        (CriuReqType::PageServer, "page server"),
        (CriuReqType::CpuinfoDump, "cpuinfo"),
        (CriuReqType::WaitPid, "WAIT_PID"),
    ] {
        let client = Client::start();
        let answer = client.ask(&with_opts(
            kind,
            CriuOpts {
                images_dir_fd: images.as_raw_fd(),
                ..CriuOpts::default()
            },
        ));
        assert!(!answer.success);
        assert_eq!(answer.r#type, i32::from(kind));
        let message = answer.cr_errmsg.unwrap();
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn what_is_wrong_with_a_dump_stands_in_the_clients_log() {
    needs!(root);
    let scratch = Scratch::new("face-rpc-log");
    for name in ["images", "work"] {
        fs::create_dir_all(scratch.join(name)).unwrap();
    }
    let images = File::open(scratch.join("images")).unwrap();
    let work = File::open(scratch.join("work")).unwrap();
    let opts = CriuOpts {
        images_dir_fd: images.as_raw_fd(),
        work_dir_fd: Some(work.as_raw_fd()),
        log_file: Some("dump.log".into()),
        log_level: Some(4),
        pid: Some(4_194_304),
        ..CriuOpts::default()
    };
    let cases = [
        (opts.clone(), "4194304"),
        (
            CriuOpts {
                lsm_profile: Some("apparmor:x".into()),
                ..opts.clone()
            },
            "--lsm-profile",
        ),
        (
            CriuOpts {
                pid: None,
                ..opts.clone()
            },
            "cannot dump itself",
        ),
    ];
    for (opts, text) in cases {
        let client = Client::start();
        let answer = client.ask(&with_opts(CriuReqType::Dump, opts));
        assert!(!answer.success);
        assert_eq!(answer.r#type, i32::from(CriuReqType::Dump));
        assert!(answer.cr_errno.is_some());
        let log = fs::read_to_string(scratch.join("work/dump.log")).unwrap();
        assert!(log.contains("Error (") && log.contains(text), "{log}");
        assert_eq!(client.exit_code(), Some(1));
    }
    // Directories that are not there, and a log outside the work directory.
    for opts in [
        CriuOpts {
            images_dir_fd: 9999,
            ..opts.clone()
        },
        CriuOpts {
            images_dir_fd: -1,
            ..opts.clone()
        },
        CriuOpts {
            log_file: Some("../dump.log".into()),
            ..opts
        },
    ] {
        let client = Client::start();
        let answer = client.ask(&with_opts(CriuReqType::Dump, opts));
        assert!(!answer.success && answer.cr_errmsg.is_some());
    }
}

#[test]
fn the_configuration_file_of_a_request_wins_over_it() {
    needs!(root);
    let scratch = Scratch::new("face-rpc-config");
    let images = File::open(scratch.path()).unwrap();
    let config = scratch.join("runc.conf");
    fs::write(&config, "log-file other.log\ntcp-close\n").unwrap();
    let client = Client::start();
    let answer = client.ask(&with_opts(
        CriuReqType::Dump,
        CriuOpts {
            images_dir_fd: images.as_raw_fd(),
            log_file: Some("dump.log".into()),
            pid: Some(4_194_304),
            config_file: Some(config.display().to_string()),
            ..CriuOpts::default()
        },
    ));
    assert!(!answer.success);
    assert!(answer.cr_errmsg.unwrap().contains("--tcp-close"));
    let log = fs::read_to_string(scratch.join("other.log")).unwrap();
    assert!(log.contains("--tcp-close"), "{log}");
    assert!(!scratch.join("dump.log").exists());
}

/// Sends `request`, answers notices (with failure at stage `refuse`), and
/// returns the stages with their pids, and the final answer.
fn converse(
    client: &Client,
    asked: &CriuReq,
    refuse: Option<&str>,
) -> (Vec<(String, Option<i32>)>, CriuResp) {
    client.send(&asked.encode_to_vec());
    let mut stages = Vec::new();
    loop {
        let answer = client.receive();
        if answer.r#type != i32::from(CriuReqType::Notify) {
            return (stages, answer);
        }
        let notice = answer.notify.unwrap();
        let script = notice.script.unwrap();
        let agree = refuse != Some(script.as_str());
        stages.push((script, notice.pid));
        let reply = CriuReq {
            notify_success: Some(agree),
            ..request(CriuReqType::Notify)
        };
        client.send(&reply.encode_to_vec());
    }
}

fn names(stages: &[(String, Option<i32>)]) -> Vec<&str> {
    stages.iter().map(|(name, _)| name.as_str()).collect()
}

/// A program of its own session and network namespace (there are no stages for
/// the network without) that computes, and the options of its dump.
fn spinning(scratch: &Scratch) -> (Program, CriuOpts, File) {
    let mut program = Program::start(
        Command::new("unshare")
            .arg("-n")
            .arg(sample("spin"))
            .arg("4"),
    );
    program.lines.expect("ready", PATIENCE);
    let images = File::open(scratch.dir("images")).unwrap();
    let opts = CriuOpts {
        images_dir_fd: images.as_raw_fd(),
        pid: Some(program.pid()),
        log_file: Some("dump.log".into()),
        log_level: Some(4),
        notify_scripts: Some(true),
        empty_ns: Some(CLONE_NEWNET),
        ..CriuOpts::default()
    };
    (program, opts, images)
}

fn still_counts(program: &mut Program) {
    program.signal(nix::sys::signal::Signal::SIGUSR1);
    program.lines.expect("count ", PATIENCE);
}

#[test]
fn a_refused_stage_of_a_dump_leaves_the_program_as_it_was() {
    needs!(root, gcc);
    let scratch = Scratch::new("face-rpc-stages");
    let (mut program, opts, _images) = spinning(&scratch);
    for stage in ["pre-dump", "network-lock", "query-ext-files", "post-dump"] {
        let client = Client::start();
        let request = with_opts(CriuReqType::Dump, opts.clone());
        let (stages, answer) = converse(&client, &request, Some(stage));
        assert!(!answer.success, "{stage}");
        assert!(answer.cr_errmsg.unwrap().contains(stage));
        assert!(names(&stages).contains(&stage), "{stages:?}");
        if stage != "pre-dump" {
            assert_eq!(names(&stages).last(), Some(&"network-unlock"), "{stages:?}");
        }
        still_counts(&mut program);
    }
}

#[test]
fn stages_of_a_dump_come_in_order() {
    needs!(root, gcc);
    let scratch = Scratch::new("face-rpc-order");
    let (mut program, opts, _images) = spinning(&scratch);
    let before = ["pre-dump", "network-lock", "query-ext-files", "post-dump"];
    let leave = CriuOpts {
        leave_running: Some(true),
        ..opts.clone()
    };
    let client = Client::start();
    let (stages, answer) = converse(&client, &with_opts(CriuReqType::Dump, leave), None);
    assert!(answer.success, "{:?}", answer.cr_errmsg);
    assert_eq!(names(&stages)[..4], before);
    assert_eq!(names(&stages)[4..], ["network-unlock"]);
    still_counts(&mut program);
    let client = Client::start();
    let (stages, answer) = converse(&client, &with_opts(CriuReqType::Dump, opts), None);
    assert!(answer.success, "{:?}", answer.cr_errmsg);
    assert_eq!(answer.dump.unwrap().restored, Some(false));
    assert_eq!(names(&stages), before);
    program.wait(PATIENCE);
}
