//! What cannot be moved, or not to there: an error that names what and where, an
//! exit code, and a container that is as it was, with nothing left there.

#[path = "harness/mod.rs"]
mod harness;
#[path = "migrate_support/mod.rs"]
mod migrate_support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use dunlin::wire::secret::Token;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use harness::*;
use migrate_support::Move;

/// A small file system in memory; gone when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, mib: u32) -> Self {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={mib}m");
        let size = Some(size.as_str());
        mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), size).unwrap();
        Self(at.to_owned())
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut f = fs::File::create(self.0.join("filler")).unwrap();
        while f.write_all(&[1; 4096]).is_ok() {}
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn nothing_left(m: &Move, when: &str) {
    m.goes_on_here(when);
    let landed: Vec<_> = m.landed().into_iter().filter(|n| n != "filler").collect();
    assert!(landed.is_empty(), "{when}: {landed:?}");
    for side in ["here", "there"] {
        let left = m.journals(side);
        assert!(left.is_empty(), "{when}: {side} {left:?}");
    }
    assert_eq!(m.status_there(), "unknown", "{when}");
}

/// Both ends fail, and the source's words hold all of `words`.
fn refused(m: &Move, receive: &[&str], migrate: &[&str], words: &[&str]) {
    let (source, receiver) = m.both(receive, migrate);
    assert!(
        !source.ok && !receiver.ok,
        "{words:?}: {source:?} {receiver:?}"
    );
    for w in words {
        assert!(source.text.contains(w), "{w:?}: {}", source.text);
    }
    nothing_left(m, words[0]);
}

/// A command that fails with this exit code, and says all of this.
fn fails(command: &mut Command, code: i32, words: &[&str]) {
    let o = run(command, PATIENCE);
    assert_eq!(o.status.code(), Some(code), "{o:?}");
    for w in words {
        assert!(o.stderr.contains(w), "{w:?}: {o:?}");
    }
}

#[test]
fn a_full_disk_there_is_said_and_the_container_goes_on_here() {
    needs!(root, runc);
    let m = Move::start("mig-full", 4);
    let dir = m.scratch.join("in");
    // Too small from the start: said before anything moves.
    {
        let _small = Small::mount(&dir, 1);
        let words = ["its bundle has", "MiB are free in", dir.to_str().unwrap()];
        refused(&m, &[], &[], &words);
    }
    // Full while the bundle comes.
    let small = Small::mount(&dir, 64);
    let (source, receiver) = m.with_receiver_at("offered", || small.fill());
    assert!(!source.ok && !receiver.ok, "{source:?} {receiver:?}");
    for text in [&source.text, &receiver.text] {
        assert!(text.contains("No space left on device"), "{text}");
    }
    nothing_left(&m, "offered");
}

/// Images lie in memory, and what runs is not undone for want of a file.
#[test]
fn a_disk_that_is_full_when_the_bundle_has_landed_stops_nothing() {
    needs!(root, runc, gcc);
    for point in ["bundle-landed", "state-landed"] {
        // A program that writes nothing: the disk is full for it, too.
        let program = sample("spin");
        let m = Move::of("mig-full-late", &program, &["/bin/spin", "4"], |_| ());
        let small = Small::mount(&m.scratch.join("in"), 64);
        let (source, receiver) = m.with_receiver_at(point, || small.fill());
        assert!(source.ok && receiver.ok, "{source:?} {receiver:?}");
        assert_eq!(m.status_there(), "running");
        m.delete_there();
    }
}

/// No room for another line of the journal on that side.
fn fill_journal(m: &Move, small: &Small, side: &str) {
    small.fill();
    // The rest of its last page, too.
    let name = m.journals(side).into_iter().find(|n| n != "filler");
    let path = m.state(side).join(name.unwrap());
    let mut journal = fs::OpenOptions::new().append(true).open(&path).unwrap();
    let len = fs::metadata(&path).unwrap().len();
    let rest = usize::try_from(len.next_multiple_of(4096) - len).unwrap();
    journal.write_all(&vec![b' '; rest]).unwrap();
}

#[test]
fn a_journal_that_is_full_after_the_commit_does_not_stop_what_runs() {
    needs!(root, runc);
    for side in ["here", "there"] {
        let m = Move::start("mig-full-tale", 4);
        let small = Small::mount(&m.state(side), 1);
        let fill = || fill_journal(&m, &small, side);
        let (source, receiver) = match side {
            "here" => m.with_source_at("grant-sent", fill),
            _ => m.with_receiver_at("running", fill),
        };
        assert!(source.ok && receiver.ok, "{side}: {source:?} {receiver:?}");
        let text = [source.text, receiver.text].concat();
        assert!(text.contains("No space left on device"), "{side}: {text}");
        m.goes_on_there(side);
        assert_eq!(m.journals(side), ["filler"], "{side}");
        m.delete_there();
    }
}

#[test]
fn a_journal_that_cannot_be_written_is_no_commit() {
    needs!(root, runc);
    let m = Move::start("mig-full-journal", 4);
    for side in ["here", "there"] {
        let small = Small::mount(&m.state(side), 1);
        let fill = || fill_journal(&m, &small, side);
        let (source, receiver) = match side {
            "here" => m.with_source_at("ready", fill),
            _ => m.with_receiver_at("rebuilt", fill),
        };
        assert!(
            !source.ok && !receiver.ok,
            "{side}: {source:?} {receiver:?}"
        );
        let words = format!("journal {}", m.state(side).display());
        for w in [words.as_str(), "No space left on device"] {
            assert!(source.text.contains(w), "{side}: {w}: {}", source.text);
        }
        fs::remove_file(m.state(side).join("filler")).unwrap();
        nothing_left(&m, side);
    }
}

#[test]
fn an_id_that_is_taken_there_is_refused_by_name() {
    needs!(root, runc);
    let m = Move::start("mig-taken", 4);
    let id = m.container.id.clone();
    let state = m.there.root.join(&id);
    fs::create_dir(&state).unwrap();
    refused(&m, &[], &[], &["runc has a container", &id]);
    fs::remove_dir(&state).unwrap();
    let top = m.scratch.join("in").join(&id);
    fs::create_dir_all(&top).unwrap();
    fs::write(top.join("precious"), b"mine").unwrap();
    let (source, receiver) = m.both(&[], &[]);
    assert!(!source.ok && !receiver.ok);
    let words = format!("{} is there already", top.display());
    assert!(source.text.contains(&words), "{}", source.text);
    assert_eq!(fs::read(top.join("precious")).unwrap(), b"mine");
    fs::remove_dir_all(&top).unwrap();
    nothing_left(&m, "a directory that is there");
}

#[test]
fn a_container_in_the_hosts_namespaces_is_taken_only_where_that_was_said() {
    needs!(root, runc);
    let m = Move::start_with("mig-host-net", 4, Bundle::host_network);
    refused(
        &m,
        &[],
        &[],
        &[
            "no network namespace of its own",
            "--host-namespace network",
        ],
    );
    drop(m);
    // Two of one host's network would want the same port: another sort, to be taken.
    let m = Move::start_with("mig-host-uts", 4, |bundle| {
        bundle.edit(|config| {
            let list = &mut config["linux"]["namespaces"];
            list.as_array_mut()
                .unwrap()
                .retain(|ns| ns["type"] != "uts");
            config.as_object_mut().unwrap().remove("hostname");
        });
    });
    refused(&m, &[], &[], &["--host-namespace uts"]);
    let (source, receiver) = m.both(&["--host-namespace", "uts"], &[]);
    assert!(source.ok && receiver.ok, "{source:?} {receiver:?}");
    m.goes_on_there("in the host's uts namespace");
}

#[test]
fn what_is_missing_here_is_named_before_anybody_is_asked() {
    needs!(root, runc);
    let m = Move::start("mig-missing", 4);
    let (receiver, at) = m.receive(&["--wait", "1"]);
    // A bundle that is not where runc says.
    for name in ["config.json", "rootfs"] {
        let (from, to) = (
            m.container.bundle.dir.join(name),
            m.container.bundle.dir.join("away"),
        );
        fs::rename(&from, &to).unwrap();
        let path = from.to_str().unwrap().to_owned();
        fails(
            &mut m.migrate_command(&at, &[]),
            1,
            &[&path, "No such file"],
        );
        fs::rename(&to, &from).unwrap();
    }
    // No token, or none that is one.
    let token = m.scratch.join("token");
    let right = fs::read(&token).unwrap();
    fs::write(&token, "dunlin1-nonsense\n").unwrap();
    fails(
        &mut m.migrate_command(&at, &[]),
        1,
        &["token", token.to_str().unwrap()],
    );
    fs::remove_file(&token).unwrap();
    fails(
        &mut m.migrate_command(&at, &[]),
        1,
        &[token.to_str().unwrap(), "No such file"],
    );
    fs::write(&token, &right).unwrap();
    for (to, code, says) in [
        ("nowhere", 2, "is not HOST:PORT"),
        ("no..where:1", 1, "address no..where:1"),
    ] {
        fails(&mut m.migrate_command(to, &[]), code, &[to, says]);
    }
    let bad = ["--frobnicate"];
    fails(&mut m.migrate_command(&at, &bad), 2, &["frobnicate"]);
    // Nobody came: the receiver says so, and leaves nothing.
    let ended = m.end(receiver, "receive.log");
    assert!(
        !ended.ok && ended.text.contains("did not come in time"),
        "{ended:?}"
    );
    nothing_left(&m, "after all");
    // A container that has ended.
    fs::write(&token, right).unwrap();
    let init = m.container.init();
    m.container.signal("KILL");
    init.wait_gone(PATIENCE);
    fails(
        &mut m.migrate_command(&at, &[]),
        1,
        &[&m.container.id, "is not running"],
    );
}

/// What somebody says who is no dunlin of ours, in place of a receiver.
fn strange_receiver(says: Vec<u8>) -> String {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = l.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut s, _) = l.accept().unwrap();
        // The start of its HELLO.
        let mut hello = [0; 16];
        s.read_exact(&mut hello).unwrap();
        s.write_all(&says).unwrap();
        let _ = s.shutdown(std::net::Shutdown::Write);
        let _ = s.read_to_end(&mut Vec::new());
    });
    at
}

#[test]
fn a_receiver_that_speaks_otherwise_or_hangs_up_is_an_error_by_name() {
    needs!(root, runc);
    let m = Move::start("mig-strange", 4);
    let (receiver, at) = m.receive(&["--plain", "--wait", "20"]);
    let newer = [&b"DNLN"[..], &[9, 2, 0, 0], &[0; 8]].concat();
    for (says, words) in [
        (newer, "version 9 is not spoken here"),
        (Vec::new(), "closed the connection"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "not ours"),
    ] {
        let to = strange_receiver(says);
        fails(&mut m.migrate_command(&to, &["--plain"]), 1, &[words]);
        m.goes_on_here(words);
    }
    // And a source that speaks otherwise does not use the session up.
    for says in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"DNLN\x09\x01\0\0\0\0\0\0\0\0\0\0",
        b"",
    ] {
        let mut s = std::net::TcpStream::connect(&at).unwrap();
        s.write_all(says).unwrap();
        let _ = s.shutdown(std::net::Shutdown::Write);
        let _ = s.read_to_end(&mut Vec::new());
    }
    let source = m.end(m.migrate(&at, &["--plain"]), "migrate.log");
    let receiver = m.end(receiver, "receive.log");
    assert!(source.ok && receiver.ok, "{source:?} {receiver:?}");
    m.goes_on_there("after strangers");
}

#[test]
fn an_account_that_cannot_be_written_is_said_before_anything_moves() {
    let scratch = Scratch::new("mig-account");
    let token = scratch.join("token");
    fs::write(&token, Token::fresh(None).unwrap().to_text()).unwrap();
    let mut c = Command::new(dunlin());
    c.args(["migrate", "c", "127.0.0.1:1", "--plain", "--token-file"]);
    c.arg(&token);
    c.arg("--report").arg(scratch.join("no/where.json"));
    fails(&mut c, 1, &["--report", "no/where.json"]);
}

#[test]
fn a_receiver_that_cannot_receive_says_so_at_once() {
    needs!(root, runc);
    let scratch = Scratch::new("mig-receiver");
    let file = scratch.join("file");
    fs::write(&file, b"").unwrap();
    let receive = |listen: &str, dir: &Path, more: &[&str]| {
        let mut c = Command::new(dunlin());
        c.args(["receive", "--listen", listen, "--wait", "1"]);
        c.arg("--dir")
            .arg(dir)
            .arg("--state")
            .arg(scratch.join("s"));
        c.args(more);
        c
    };
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = busy.local_addr().unwrap().to_string();
    let dir = scratch.dir("in");
    fails(
        &mut receive(&at, &dir, &[]),
        1,
        &[&at, "Address already in use"],
    );
    let any = "127.0.0.1:0";
    fails(&mut receive(any, &file, &[]), 1, &[file.to_str().unwrap()]);
    let nowhere = scratch.join("no/where");
    let token = ["--token-file", nowhere.to_str().unwrap()];
    fails(
        &mut receive(any, &dir, &token),
        1,
        &[nowhere.to_str().unwrap()],
    );
    for flag in ["--output", "--state"] {
        // below a file
        let nowhere = file.join("x").display().to_string();
        fails(&mut receive(any, &dir, &[flag, &nowhere]), 1, &[&nowhere]);
    }
    let sort = ["--host-namespace", "moon"];
    fails(&mut receive(any, &dir, &sort), 2, &["moon", "network"]);
    fails(&mut receive(any, &dir, &[]), 1, &["did not come in time"]);
}
