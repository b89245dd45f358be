//! The face that answers to the name `criu`: CRIU's command line and its RPC,
//! so that runc, crun, podman and scripts work as they are.
//!
//! Flags are read twice: [`typed`] holds what was typed, on the command line,
//! in configuration files or in a request; [`meaning`] turns it into the
//! engine's options. Every option that CRIU 4.2 knows stands in [`options`]
//! and is honoured, accepted without effect, or refused by name.

mod config;
mod connection;
mod dirs;
mod dump;
mod getopt;
mod help;
mod job;
mod lazy;
mod meaning;
mod notices;
mod options;
mod request;
mod restore;
mod stats;
mod swrk;
mod typed;

use std::path::PathBuf;

use job::Job;
use typed::Typed;

use super::{Failure, check, out};
use crate::base::{Error, HostPid, Result};
use crate::sys::{inherited, private};

/// The version of CRIU whose images and options these are.
pub(crate) const VERSION: (i32, i32) = (4, 2);

/// Runs the command line `args` (without the program's name).
///
/// # Errors
/// What was typed is wrong, or the command failed.
pub(crate) fn main(args: &[String]) -> Result<(), Failure> {
    let asks_help = |arg: &String| arg == "--help" || arg == "-h";
    if args.iter().take_while(|arg| *arg != "--").any(asks_help) {
        return Ok(out::print(help::TEXT)?);
    }
    let mut typed = Typed::default();
    let mut operands = Vec::new();
    for (args, from_file) in sources(args)? {
        let found = typed.read(&args).map_err(Failure::Usage)?;
        if from_file && !found.is_empty() {
            let error = Error::caller(
                format!("configuration file: {:?}", found[0]),
                "is no option",
            );
            return Err(Failure::Usage(error));
        }
        operands = found;
    }
    // As an abbreviation, or in a file.
    if typed.help {
        return Ok(out::print(help::TEXT)?);
    }
    if typed.version {
        let (major, minor) = VERSION;
        let own = env!("CARGO_PKG_VERSION");
        let text = format!("Version: {major}.{minor}\ndunlin {own}\n");
        return Ok(out::print(&text)?);
    }
    let Some((command, operands)) = operands.split_first() else {
        return Err(usage("command line", "names no command; try criu --help"));
    };
    for fd in std::mem::take(&mut typed.close) {
        inherited::close(fd)?;
    }
    run(command, operands, typed)
}

fn run(command: &str, operands: &[String], typed: Typed) -> Result<(), Failure> {
    if command == "swrk" {
        let [fd] = operands else {
            return Err(usage("criu swrk", "needs one descriptor"));
        };
        let fd = fd
            .parse()
            .map_err(|_| usage(format!("descriptor {fd:?}"), "is not a number"))?;
        return swrk::serve(fd, &typed);
    }
    if typed.exec_cmd && (command != "restore" || operands.is_empty()) {
        return Err(usage(
            "option --exec-cmd",
            "is for restore and needs a command",
        ));
    }
    let takes_operands = command == "cpuinfo" || (command == "restore" && typed.exec_cmd);
    if let (Some(operand), false) = (operands.first(), takes_operands) {
        return Err(usage(
            format!("operand {operand:?}"),
            "is one too many for this command",
        ));
    }
    match command {
        "check" => return Ok(check::criu(&typed.features, typed.check_extra)?),
        "dump" | "restore" | "lazy-pages" => {}
        "pre-dump" => return Err(refused_pre_dump().into()),
        "page-server" => return Err(refused_page_server().into()),
        "cpuinfo" => return Err(refused_cpuinfo().into()),
        "service" => {
            let why = "start criu swrk from the client, as libcriu does";
            return Err(Error::caller("criu service is not supported", why).into());
        }
        "dedup" | "exec" | "show" => {
            let why = "dumps never share pages, and crit shows images";
            return Err(Error::caller(format!("criu {command} is not supported"), why).into());
        }
        _ => return Err(usage(format!("command {command:?}"), "is not known")),
    }
    check::privileges()?;
    let logs_to_file = typed.log_file.is_some();
    let mut job = Job::from_command_line(typed)?;
    let done = match command {
        "dump" => dump::run(&mut job),
        "lazy-pages" => lazy::run(&mut job),
        _ => restore::from_command_line(&mut job, operands),
    };
    done.map_err(|e| {
        tracing::error!("{e}");
        // A log on the terminal has just said it.
        if logs_to_file {
            Failure::Failed(e)
        } else {
            Failure::Told
        }
    })
}

/// All places that options come from, weakest first, and whether each is a file.
fn sources(args: &[String]) -> Result<Vec<(Vec<String>, bool)>> {
    let mut explicit = None;
    let mut defaults = true;
    let mut rest = args.iter().take_while(|arg| *arg != "--");
    while let Some(arg) = rest.next() {
        if arg == "--no-default-config" {
            defaults = false;
        } else if arg == "--config" {
            explicit = rest.next().cloned();
        } else if let Some(path) = arg.strip_prefix("--config=") {
            explicit = Some(path.to_owned());
        }
    }
    let mut files = Vec::new();
    if defaults && explicit.is_none() {
        files.push(PathBuf::from("/etc/criu/default.conf"));
        if let Some(home) = std::env::var_os("HOME") {
            files.push(PathBuf::from(home).join(".criu/default.conf"));
        }
    }
    files.extend(std::env::var_os("CRIU_CONFIG_FILE").map(PathBuf::from));
    let mut sources = Vec::new();
    for file in files {
        sources.extend(config::read(&file)?.map(|args| (args, true)));
    }
    if let Some(file) = explicit {
        let args = config::read(&PathBuf::from(&file))?
            .ok_or_else(|| Error::errno(format!("configuration file {file}"), libc::ENOENT))?;
        sources.push((args, true));
    }
    sources.push((args.to_vec(), false));
    Ok(sources)
}

fn usage(what: impl Into<String>, why: &'static str) -> Failure {
    Failure::Usage(Error::caller(what, why))
}

fn refused_pre_dump() -> Error {
    Error::caller(
        "pre-dump is not supported yet",
        "every dump is whole; dunlin migrate moves memory while and after the container runs",
    )
}

fn refused_page_server() -> Error {
    Error::caller(
        "a page server that receives a dump is not supported",
        "dump with --lazy-pages serves its pages itself, and dunlin receive takes a container whole",
    )
}

fn refused_cpuinfo() -> Error {
    Error::caller(
        "cpuinfo is not supported",
        "a restore checks the register state of each task against this CPU",
    )
}

/// Leaves the pid of the root task where `--pidfile` says.
///
/// # Errors
/// There is such a file already; the calls that it takes.
fn write_pidfile(typed: &Typed, pid: HostPid) -> Result<()> {
    let Some(path) = &typed.pidfile else {
        return Ok(());
    };
    private::write(path.as_ref(), pid.to_string().as_bytes()).map_err(|e| e.within("pid file"))
}

/// Takes it away again, for what it is about is gone.
fn remove_pidfile(typed: &Typed) {
    if let Some(path) = &typed.pidfile
        && let Err(e) = std::fs::remove_file(path)
    {
        tracing::warn!("remove pid file {path}: {e}");
    }
}
