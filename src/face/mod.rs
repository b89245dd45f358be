//! A request in, a job run, a reply out.
//!
//! One binary has several faces, picked by the name that it was started under
//! and by its first argument. Under the name `criu` it is a drop-in for CRIU;
//! `dunlin criu ARGS...` is the same without the name.

mod address;
mod check;
mod criu;
mod help;
mod inspect;
mod log;
mod migrate;
mod out;
mod place;
mod scripts;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use crate::base::Error;
use crate::sys::inherited;

/// Why a face ends without success.
#[derive(Debug)]
enum Failure {
    /// What was typed is wrong: exit code 2.
    Usage(Error),
    /// The job failed: exit code 1.
    Failed(Error),
    /// The same, and the person has been told.
    Told,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Picks the face from the program's name and first argument, runs it, and
/// turns its error into an exit code.
pub fn main() -> ExitCode {
    inherited::remember();
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    let name = Path::new(&program).file_name().map_or_else(
        || "dunlin".into(),
        |name| name.to_string_lossy().into_owned(),
    );
    match strings(args).and_then(|args| dispatch(&name, &args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(e)) => {
            out::complain(&format!("{name}: {e}"));
            ExitCode::from(2)
        }
        Err(Failure::Failed(e)) => {
            out::complain(&format!("{name}: {e}"));
            ExitCode::from(1)
        }
        Err(Failure::Told) => ExitCode::from(1),
    }
}

fn strings(args: impl Iterator<Item = OsString>) -> Result<Vec<String>, Failure> {
    args.map(|arg| {
        arg.into_string().map_err(|arg| {
            Failure::Usage(Error::caller(format!("argument {arg:?}"), "is not UTF-8"))
        })
    })
    .collect()
}

fn dispatch(name: &str, args: &[String]) -> Result<(), Failure> {
    if name == "criu" {
        return criu::main(args);
    }
    let Some((command, rest)) = args.split_first() else {
        out::complain(help::TEXT);
        return Err(Failure::Usage(Error::caller(
            "command line",
            "names no command",
        )));
    };
    if let Some(text) = help::of(command)
        && rest.iter().any(|a| a == "--help" || a == "-h")
    {
        return Ok(out::print(text)?);
    }
    match command.as_str() {
        "--help" | "-h" | "help" => Ok(out::print(help::TEXT)?),
        "--version" | "-V" | "version" => Ok(out::print(concat!(
            "dunlin ",
            env!("CARGO_PKG_VERSION"),
            "\n"
        ))?),
        "criu" => criu::main(rest),
        "swrk" | "lazy-pages" => criu::main(args),
        "check" => check::main(rest),
        "inspect" => inspect::main(rest),
        "migrate" => migrate::migrate(rest),
        "receive" => migrate::receive(rest),
        "resolve" => migrate::resolve(rest),
        crate::migrate::guard::COMMAND => migrate::guard(rest),
        _ => Err(Failure::Usage(Error::caller(
            format!("command {command:?}"),
            "is not known; try dunlin --help",
        ))),
    }
}
