//! A test that cannot run says so; in CI only those on the list may.

use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What a test may need of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Root,
    Runc,
    Gcc,
    Redis,
    Nginx,
    Node,
    Java,
    Crossed,
}

/// The first of `needs` that is not here, in words.
pub fn missing(needs: &[Need]) -> Option<String> {
    needs.iter().find_map(|need| match need {
        Need::Root => (!nix::unistd::geteuid().is_root()).then(|| "not root".to_owned()),
        Need::Runc => lacks("runc"),
        Need::Gcc => lacks("gcc"),
        Need::Redis => lacks("redis-cli"),
        Need::Nginx => lacks("nginx"),
        Need::Node => lacks("node"),
        Need::Java => lacks("java").or_else(|| lacks("javac")),
        Need::Crossed => super::criu()
            .is_none()
            .then(|| "no CRIU to cross with (set CRIU=/path)".to_owned()),
    })
}

/// Where a program lies.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

fn lacks(name: &str) -> Option<String> {
    tool(name)
        .is_none()
        .then(|| format!("{name} is not installed"))
}

/// Says that this test is skipped. Past libtest's capture, so that it is read.
///
/// # Panics
/// In CI (`CI` set and not `false`), unless `integration/allowed-skips.txt` lists the test.
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("?");
    let _ = writeln!(std::io::stderr(), "{test}: skipped: {why}");
    let in_ci = std::env::var("CI").is_ok_and(|ci| !ci.is_empty() && ci != "false" && ci != "0");
    if in_ci {
        let list = super::top().join("integration/allowed-skips.txt");
        assert!(
            allowed(&list, test),
            "{test} was skipped ({why}), and integration/allowed-skips.txt does not list it"
        );
    }
}

fn allowed(list: &Path, test: &str) -> bool {
    std::fs::read_to_string(list)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split('#').next()?.split_whitespace().next())
        .any(|pattern| fits(pattern, test))
}

/// Whether `name` is `pattern`, in which `*` stands for anything.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len())
                .filter(|at| rest.is_char_boundary(*at))
                .any(|at| fits(tail, &rest[at..]))
        }),
    }
}

/// Ends the test with `skipped: why`.
#[macro_export]
macro_rules! skip {
    ($($why:tt)*) => {{
        $crate::harness::skipped(&format!($($why)*));
        return;
    }};
}

/// Ends the test with `skipped:` unless everything named is here.
#[macro_export]
macro_rules! needs {
    (@one root) => { $crate::harness::Need::Root };
    (@one runc) => { $crate::harness::Need::Runc };
    (@one gcc) => { $crate::harness::Need::Gcc };
    (@one nginx) => { $crate::harness::Need::Nginx };
    (@one node) => { $crate::harness::Need::Node };
    (@one java) => { $crate::harness::Need::Java };
    (@one redis) => { $crate::harness::Need::Redis };
    (@one crossed) => { $crate::harness::Need::Crossed };
    ($($need:ident),+ $(,)?) => {
        if let Some(why) = $crate::harness::missing(&[$($crate::needs!(@one $need)),+]) {
            $crate::harness::skipped(&why);
            return;
        }
    };
}
