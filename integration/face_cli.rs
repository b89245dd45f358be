//! The command lines of `criu` and `dunlin`, typed at the built binary.

#[path = "harness/mod.rs"]
mod harness;
use harness::*;

use std::fs;
use std::io::pipe;
use std::process::{Command, Output};

/// Runs the binary under the name `criu`.
fn criu_line(scratch: &Scratch, args: &[&str]) -> Output {
    Command::new(criu_dir(scratch).join("criu"))
        .args(args)
        .env("HOME", scratch.join("home"))
        .output()
        .expect("start the binary")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_version_is_printed_where_callers_look_for_it() {
    let scratch = Scratch::new("face-version");
    for flag in ["--version", "-V"] {
        let out = criu_line(&scratch, &[flag]);
        assert!(out.status.success());
        let out = text(&out.stdout);
        assert_eq!(out.lines().next(), Some("Version: 4.2"), "{out}");
        assert!(out.contains("\ndunlin "), "{out}");
    }
    let out = Command::new(dunlin()).arg("--version").output().unwrap();
    assert!(text(&out.stdout).starts_with("dunlin "));
}

#[test]
fn help_goes_to_standard_output_and_succeeds() {
    let scratch = Scratch::new("face-help");
    for args in [
        &["--help"][..],
        &["dump", "-h", "--nonsense"],
        &["--hel"],
        &["-dh"],
    ] {
        let out = criu_line(&scratch, args);
        assert!(out.status.success());
        assert!(text(&out.stdout).contains("criu dump -t PID"));
    }
    let out = Command::new(dunlin()).arg("--help").output().unwrap();
    assert!(out.status.success());
    assert!(text(&out.stdout).contains("dunlin check"));
}

#[test]
fn every_command_of_dunlin_explains_itself() {
    for command in ["check", "inspect", "criu", "migrate", "receive", "resolve"] {
        let out = Command::new(dunlin()).args([command, "--help"]).output();
        let out = out.unwrap();
        assert!(out.status.success(), "{command}");
        let said = text(&out.stdout);
        assert!(said.to_lowercase().contains("usage"), "{said}");
        assert!(said.contains(command), "{said}");
    }
}

#[test]
fn a_reader_that_has_gone_changes_no_exit_code() {
    let scratch = Scratch::new("face-no-reader");
    let images = scratch.dir("images").display().to_string();
    let gone = || {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        writer
    };
    for (args, code) in [
        (&["--help"][..], 0),
        (&["--version"], 0),
        (&["check", "--help"], 0),
        (&["criu", "--help"], 0),
        (&["criu", "check", "--feature", "list"], 0),
        (&["resolve", "--list", "--state", &images], 0),
        (&[], 2),
        (&["frobnicate"], 2),
        // Its log goes to standard error.
        (&["criu", "dump", "-t", "4194304", "-v4", "-D", &images], 1),
    ] {
        let status = Command::new(dunlin())
            .args(args)
            .stdout(gone())
            .stderr(gone())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(code), "{args:?}");
    }
    // A full disk is another matter.
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let out = Command::new(dunlin()).arg("--help").stdout(full).output();
    let out = out.unwrap();
    assert_eq!(out.status.code(), Some(1));
    let said = text(&out.stderr);
    assert!(said.contains("standard output: No space left"), "{said}");
}

#[test]
fn what_is_no_image_is_named() {
    let scratch = Scratch::new("face-odd");
    let empty = scratch.dir("empty");
    let odd = scratch.dir("odd");
    fs::write(odd.join("inventory.img"), "hello, world").unwrap();
    for (dir, says) in [
        (scratch.join("none"), "none: No such file or directory"),
        (dunlin(), "dunlin: is no directory"),
        (empty, "empty: there is no image in it"),
        (odd, "odd: inventory.img: is an image of another type"),
    ] {
        for more in [&[][..], &["--json"]] {
            let out = Command::new(dunlin())
                .arg("inspect")
                .arg(&dir)
                .args(more)
                .output()
                .unwrap();
            let said = text(&out.stderr);
            assert_eq!(out.status.code(), Some(1), "{said}");
            assert!(said.contains(says), "{said}");
            assert!(out.stdout.is_empty());
        }
    }
}

#[test]
fn wrong_usage_ends_with_two_and_names_what_is_wrong() {
    let scratch = Scratch::new("face-usage");
    for (args, message) in [
        (&["--nonsense"][..], "option --nonsense: is not known"),
        (&["dump", "--tree"], "option --tree: needs a value"),
        (&["frobnicate"], "command \"frobnicate\": is not known"),
        (&[], "names no command"),
        (&["dump", "-t", "1", "extra"], "operand \"extra\""),
        (&["dump", "--exec-cmd", "--", "true"], "option --exec-cmd"),
        (&["dump", "--stream"], "option --stream is not supported"),
        (&["swrk"], "needs one descriptor"),
    ] {
        let out = criu_line(&scratch, args);
        let err = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {err}");
        assert!(err.contains(message), "{args:?}: {err}");
    }
    let out = Command::new(dunlin()).arg("frobnicate").output().unwrap();
    assert_eq!(out.status.code(), Some(2));
}

#[test]
fn commands_that_are_missing_say_so_by_name_and_end_with_one() {
    let scratch = Scratch::new("face-missing");
    for (args, message) in [
        (&["pre-dump", "-t", "1"][..], "pre-dump is not supported"),
        (&["service"], "criu service is not supported"),
        (&["page-server"], "page server"),
        (&["cpuinfo", "dump"], "cpuinfo is not supported"),
        (&["dedup"], "criu dedup is not supported"),
    ] {
        let out = criu_line(&scratch, args);
        let err = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{args:?}: {err}");
        assert!(err.contains(message), "{args:?}: {err}");
    }
}

#[test]
fn configuration_files_are_read_weakest_first() {
    let scratch = Scratch::new("face-config");
    let home = scratch.join("home/.criu");
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("default.conf"), "stream\n").unwrap();
    // The default file is read, and what is wrong in it is refused by name ...
    let out = criu_line(&scratch, &["check"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("--stream"));
    // ... unless it is set aside.
    let out = criu_line(&scratch, &["--no-default-config", "-V"]);
    assert!(out.status.success());
    let own = scratch.join("own.conf");
    fs::write(&own, "version # of what\n").unwrap();
    for config in [
        vec!["--config".to_owned(), own.display().to_string()],
        vec![format!("--config={}", own.display())],
    ] {
        let args: Vec<&str> = config.iter().map(String::as_str).collect();
        let out = criu_line(&scratch, &args);
        assert!(text(&out.stdout).starts_with("Version: 4.2"));
    }
    let out = criu_line(&scratch, &["--config", "/nonexistent", "check"]);
    assert_eq!(out.status.code(), Some(1));
}

#[test]
fn a_dump_of_nobody_is_an_error_in_its_log() {
    needs!(root);
    let scratch = Scratch::new("face-nobody");
    let images = scratch.join("images");
    fs::create_dir_all(&images).unwrap();
    let images = images.display().to_string();
    let line = [
        "dump", "-t", "4194304", "-D", &images, "-o", "dump.log", "-v4",
    ];
    let out = criu_line(&scratch, &line);
    assert_eq!(out.status.code(), Some(1));
    let log = fs::read_to_string(scratch.join("images/dump.log")).unwrap();
    assert!(log.contains("Error ("), "{log}");
    assert!(log.contains("task 4194304 (--tree): "), "{log}");
    assert!(!scratch.join("images/inventory.img").exists());
    // Without a pid, and without a directory.
    let out = criu_line(&scratch, &["dump", "-D", &images]);
    assert!(text(&out.stderr).contains("--tree"));
    let out = criu_line(&scratch, &["dump", "-t", "1", "-D", "/nonexistent"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("images directory /nonexistent"));
}

#[test]
fn check_says_what_is_there() {
    needs!(root);
    let scratch = Scratch::new("face-check");
    let out = criu_line(&scratch, &["check"]);
    assert!(out.status.success(), "{}", text(&out.stdout));
    assert!(text(&out.stdout).ends_with("Looks good.\n"));
    let out = criu_line(&scratch, &["check", "--feature", "nonsense"]);
    assert_eq!(out.status.code(), Some(1));
    let out = Command::new(dunlin())
        .args(["check", "--json"])
        .output()
        .unwrap();
    let list: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let list = list.as_array().expect("a list");
    assert!(
        list.iter()
            .any(|f| f["name"] == "cap_sys_ptrace" && f["available"] == true)
    );
}
