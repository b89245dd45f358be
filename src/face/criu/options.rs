//! The table of CRIU's options: how each is typed, and what becomes of it
//! here. `docs/criu-options.md` is the same table for people; a test holds
//! the two together.

use super::getopt::{Name, Takes};
use super::typed::{Afterwards, Typed, cgroup_root, inherit_fd, join_ns, number};
use crate::base::{Error, Result};

type Set = fn(&mut Typed, bool, Option<&str>) -> Result<()>;

/// What becomes of an option.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Treatment {
    /// It does what CRIU's manual says.
    Honoured(Set),
    /// It is accepted and changes nothing, because.
    NoEffect(&'static str),
    /// It ends the run with a message that names it, because.
    Refused(&'static str),
}

/// One option.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opt {
    /// How it is typed.
    pub(crate) name: Name,
    /// What becomes of it.
    pub(crate) treatment: Treatment,
}

use Takes::{Maybe, Nothing, Value};
use Treatment::{Honoured, NoEffect, Refused};

const fn opt(long: &'static str, short: char, takes: Takes, treatment: Treatment) -> Opt {
    let short = if short == '\0' { None } else { Some(short) };
    Opt {
        name: Name {
            long,
            short,
            takes,
            negatable: false,
        },
        treatment,
    }
}

const fn flag(long: &'static str, treatment: Treatment) -> Opt {
    let mut opt = opt(long, '\0', Nothing, treatment);
    opt.name.negatable = true;
    opt
}

const fn short_flag(long: &'static str, short: char, treatment: Treatment) -> Opt {
    let mut opt = opt(long, short, Nothing, treatment);
    opt.name.negatable = true;
    opt
}

const fn long(long: &'static str, takes: Takes, treatment: Treatment) -> Opt {
    opt(long, '\0', takes, treatment)
}

fn text(slot: &mut Option<String>, value: Option<&str>) -> Result<()> {
    *slot = value.map(str::to_owned);
    Ok(())
}

fn on(slot: &mut bool, on: bool) -> Result<()> {
    *slot = on;
    Ok(())
}

fn push(slot: &mut Vec<String>, value: Option<&str>) -> Result<()> {
    slot.extend(value.map(str::to_owned));
    Ok(())
}

const TLS: &str = "pages travel over TLS with a certificate made for the one session";
const CGROUP_PROPS: &str = "which properties are carried cannot be chosen yet";
const LSM: &str = "security labels are restored as they were, or refused";
const PERMISSION: &str = "a permission that is never needed here";
const INCREMENTAL: &str = "every dump is whole; none refers to an earlier one";

/// All options that CRIU 4.2 knows.
pub(crate) const OPTIONS: &[Opt] = &[
    opt(
        "tree",
        't',
        Value,
        Honoured(|t, _, v| {
            let pid: i32 = number(v)?;
            if pid <= 0 {
                return Err(Error::caller(format!("value {pid}"), "is not a pid"));
            }
            t.tree = Some(pid);
            Ok(())
        }),
    ),
    opt(
        "leave-stopped",
        's',
        Nothing,
        Honoured(|t, _, _| {
            t.afterwards = Afterwards::Stopped;
            Ok(())
        }),
    ),
    opt(
        "leave-running",
        'R',
        Nothing,
        Honoured(|t, _, _| {
            t.afterwards = Afterwards::Running;
            Ok(())
        }),
    ),
    short_flag(
        "restore-detached",
        'd',
        Honoured(|t, y, _| on(&mut t.detach, y)),
    ),
    short_flag(
        "restore-sibling",
        'S',
        Honoured(|t, y, _| on(&mut t.restore_sibling, y)),
    ),
    flag("daemon", Honoured(|t, y, _| on(&mut t.detach, y))),
    opt(
        "images-dir",
        'D',
        Value,
        Honoured(|t, _, v| text(&mut t.images_dir, v)),
    ),
    opt(
        "work-dir",
        'W',
        Value,
        Honoured(|t, _, v| text(&mut t.work_dir, v)),
    ),
    opt(
        "log-file",
        'o',
        Value,
        Honoured(|t, _, v| text(&mut t.log_file, v)),
    ),
    opt(
        "join-ns",
        'J',
        Value,
        Honoured(|t, _, v| {
            t.join_ns.push(join_ns(v.unwrap_or_default())?);
            Ok(())
        }),
    ),
    opt("root", 'r', Value, Honoured(|t, _, v| text(&mut t.root, v))),
    opt(
        "ext-unix-sk",
        'x',
        Maybe,
        Honoured(|t, _, v| {
            t.ext_unix_sk = true;
            for inode in v.unwrap_or_default().split(',').filter(|s| !s.is_empty()) {
                let inode: u32 = number(Some(inode))?;
                t.external.push(format!("unix[{inode}]"));
            }
            Ok(())
        }),
    ),
    opt(
        "help",
        'h',
        Nothing,
        Honoured(|t, _, _| on(&mut t.help, true)),
    ),
    flag(
        "tcp-established",
        NoEffect("connections are not carried yet: one that stands is refused by name"),
    ),
    long(
        "close",
        Value,
        Honoured(|t, _, v| {
            t.close.push(number(v)?);
            Ok(())
        }),
    ),
    flag(
        "log-pid",
        NoEffect("there is one log; each line says what it is about"),
    ),
    opt(
        "version",
        'V',
        Nothing,
        Honoured(|t, _, _| on(&mut t.version, true)),
    ),
    flag("evasive-devices", NoEffect(PERMISSION)),
    long(
        "pidfile",
        Value,
        Honoured(|t, _, v| text(&mut t.pidfile, v)),
    ),
    long(
        "veth-pair",
        Value,
        Refused("network devices are not carried; the caller makes them"),
    ),
    long(
        "action-script",
        Value,
        Honoured(|t, _, v| push(&mut t.action_scripts, v)),
    ),
    flag("link-remap", NoEffect(PERMISSION)),
    short_flag(
        "shell-job",
        'j',
        Honoured(|t, y, _| on(&mut t.shell_job, y)),
    ),
    short_flag(
        "file-locks",
        'l',
        Honoured(|t, y, _| on(&mut t.file_locks, y)),
    ),
    flag("page-server", Honoured(|t, y, _| on(&mut t.page_server, y))),
    long(
        "address",
        Value,
        Honoured(|t, _, v| text(&mut t.address, v)),
    ),
    long(
        "port",
        Value,
        Honoured(|t, _, v| {
            let port: u16 = number(v)?;
            if port == 0 {
                return Err(Error::caller("value 0", "is not a port"));
            }
            t.port = Some(port);
            Ok(())
        }),
    ),
    long("prev-images-dir", Value, NoEffect(INCREMENTAL)),
    long("ms", Nothing, Refused("CRIU has withdrawn it")),
    flag("track-mem", NoEffect(INCREMENTAL)),
    flag("auto-dedup", NoEffect(INCREMENTAL)),
    opt("libdir", 'L', Value, NoEffect("there are no plugins")),
    long(
        "cpu-cap",
        Maybe,
        NoEffect("register state that this CPU lacks is refused in any case"),
    ),
    flag("force-irmap", NoEffect(PERMISSION)),
    opt(
        "ext-mount-map",
        'M',
        Value,
        Honoured(|t, _, v| {
            let v = v.unwrap_or_default();
            if v == "auto" {
                t.external.push("mnt[]".to_owned());
                return Ok(());
            }
            let (key, val) = v
                .split_once(':')
                .ok_or_else(|| Error::caller(format!("value {v:?}"), "is not KEY:VALUE"))?;
            t.ext_mnt.push((key.to_owned(), val.to_owned()));
            Ok(())
        }),
    ),
    long(
        "exec-cmd",
        Nothing,
        Honoured(|t, _, _| on(&mut t.exec_cmd, true)),
    ),
    long(
        "manage-cgroups",
        Maybe,
        Honoured(|t, _, v| text(&mut t.manage_cgroups, v.or(Some("soft")))),
    ),
    long(
        "cgroup-root",
        Value,
        Honoured(|t, _, v| {
            t.cgroup_root.push(cgroup_root(v.unwrap_or_default()));
            Ok(())
        }),
    ),
    long(
        "inherit-fd",
        Value,
        Honoured(|t, _, v| {
            t.inherit_fd.push(inherit_fd(v.unwrap_or_default())?);
            Ok(())
        }),
    ),
    long(
        "feature",
        Value,
        Honoured(|t, _, v| push(&mut t.features, v)),
    ),
    long(
        "skip-mnt",
        Value,
        Honoured(|t, _, v| push(&mut t.skip_mnt, v)),
    ),
    long(
        "enable-fs",
        Value,
        NoEffect("a file system that is not known is refused by name"),
    ),
    long("enable-external-sharing", Nothing, NoEffect(PERMISSION)),
    long("enable-external-masters", Nothing, NoEffect(PERMISSION)),
    long(
        "freeze-cgroup",
        Value,
        NoEffect("the tasks of the tree are stopped one by one"),
    ),
    long(
        "ghost-limit",
        Value,
        NoEffect("deleted files have a limit of our own"),
    ),
    long("irmap-scan-path", Value, NoEffect(PERMISSION)),
    long("lsm-profile", Value, Refused(LSM)),
    long(
        "timeout",
        Value,
        NoEffect("the freeze has a limit of its own"),
    ),
    long(
        "external",
        Value,
        Honoured(|t, _, v| push(&mut t.external, v)),
    ),
    long(
        "empty-ns",
        Value,
        Honoured(|t, _, v| match v {
            Some("net") => on(&mut t.empty_net, true),
            v => Err(Error::caller(
                format!("value {:?}", v.unwrap_or_default()),
                "only net can be left empty",
            )),
        }),
    ),
    long(
        "lazy-pages",
        Nothing,
        Honoured(|t, _, _| on(&mut t.lazy_pages, true)),
    ),
    flag("extra", Honoured(|t, y, _| on(&mut t.check_extra, y))),
    flag("experimental", NoEffect("no feature is experimental")),
    long(
        "all",
        Nothing,
        Honoured(|t, _, _| on(&mut t.check_extra, true)),
    ),
    long("cgroup-props", Value, Refused(CGROUP_PROPS)),
    long("cgroup-props-file", Value, Refused(CGROUP_PROPS)),
    long("cgroup-dump-controller", Value, Refused(CGROUP_PROPS)),
    flag(
        "skip-in-flight",
        Refused("connections cannot be left out of a dump yet"),
    ),
    flag("deprecated", NoEffect("nothing here is deprecated")),
    flag(
        "display-stats",
        Honoured(|t, y, _| on(&mut t.display_stats, y)),
    ),
    flag("weak-sysctls", NoEffect(PERMISSION)),
    long(
        "status-fd",
        Value,
        Honoured(|t, _, v| {
            t.status_fd = Some(number(v)?);
            Ok(())
        }),
    ),
    flag(
        "tcp-close",
        Refused("connections cannot be left out of a dump yet"),
    ),
    opt(
        "verbosity",
        'v',
        Maybe,
        Honoured(|t, _, v| {
            const DEFAULT: u32 = 2;
            let more = match v {
                None => 1,
                Some(v) if v.starts_with('v') => {
                    u32::try_from(v.len()).unwrap_or(u32::MAX).saturating_add(1)
                }
                v => {
                    t.verbosity = Some(number(v)?);
                    return Ok(());
                }
            };
            t.verbosity = Some(t.verbosity.unwrap_or(DEFAULT).saturating_add(more));
            Ok(())
        }),
    ),
    long(
        "ps-socket",
        Value,
        Refused("the page server makes its own connection"),
    ),
    flag("stream", Refused("images go to a directory")),
    long("config", Value, Honoured(|_, _, _| Ok(()))),
    long("no-default-config", Nothing, Honoured(|_, _, _| Ok(()))),
    long("tls-cacert", Value, Refused(TLS)),
    long("tls-cacrl", Value, Refused(TLS)),
    long("tls-cert", Value, Refused(TLS)),
    long("tls-key", Value, Refused(TLS)),
    flag(
        "tls",
        NoEffect("pages travel over TLS in any case, and the client proves itself by a secret"),
    ),
    long("tls-no-cn-verify", Nothing, Refused(TLS)),
    long(
        "cgroup-yard",
        Value,
        Refused("control groups are found where they are mounted"),
    ),
    long(
        "pre-dump-mode",
        Value,
        NoEffect("memory is always read from outside"),
    ),
    long(
        "file-validation",
        Value,
        NoEffect("files are always validated by their size"),
    ),
    flag("skip-file-rwx-check", NoEffect(PERMISSION)),
    long("lsm-mount-context", Value, Refused(LSM)),
    long(
        "network-lock",
        Value,
        NoEffect("connections are not carried yet, so nothing needs locking"),
    ),
    flag("mntns-compat-mode", NoEffect(PERMISSION)),
    flag("unprivileged", Refused("dunlin needs root")),
    flag("ghost-fiemap", NoEffect("holes are found by SEEK_HOLE")),
    flag("allow-uprobes", NoEffect(PERMISSION)),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn row(option: &Opt) -> String {
        let mut names = Vec::new();
        names.extend(option.name.short.map(|short| format!("`-{short}`")));
        if !option.name.long.is_empty() {
            names.push(format!("`--{}`", option.name.long));
        }
        let value = match option.name.takes {
            Nothing => "",
            Value => " VALUE",
            Maybe => " [VALUE]",
        };
        let becomes = match option.treatment {
            Honoured(_) => "honoured".to_owned(),
            NoEffect(why) => format!("no effect: {why}"),
            Refused(why) => format!("**refused**: {why}"),
        };
        format!("| {}{value} | {becomes} |\n", names.join(", "))
    }

    #[test]
    fn the_documented_table_is_this_table() {
        let table: String = OPTIONS.iter().map(row).collect();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/criu-options.md");
        let doc = std::fs::read_to_string(path).expect("read docs/criu-options.md");
        assert!(
            doc.contains(&table),
            "docs/criu-options.md should hold:\n{table}"
        );
    }

    #[test]
    fn no_name_is_given_twice() {
        let mut names: Vec<String> = OPTIONS
            .iter()
            .flat_map(|o| {
                [
                    o.name.long.to_owned(),
                    o.name.short.map(String::from).unwrap_or_default(),
                ]
            })
            .filter(|name| !name.is_empty())
            .collect();
        names.sort();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before);
    }
}
