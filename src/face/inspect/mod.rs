//! `dunlin inspect DIR`: an image directory as people want to see it.
//!
//! Works on what we write and on what CRIU writes, and on images that are not
//! whole: what contradicts itself is said at the top, the rest is shown. It reads
//! only, and no page contents.

mod areas;
mod files;
mod report;
mod spaces;
mod text;

use super::Failure;
use super::out::print;
use crate::base::{Error, Result};
use report::Report;
use std::path::PathBuf;

/// What `--help` prints.
const USAGE: &str = "\
usage: dunlin inspect DIR [--json] [SECTION...]

Shows an image directory, made by dunlin or by CRIU.

sections:
  ps       tree of tasks
  mem      areas of memory, and how much content the image has
  files    descriptors
  ns       namespaces
  mounts   mounts
  cgroups  control groups
Without a section: all of them, of mem the sums only.

options:
  --json   the same as JSON
";

/// What of an image is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Ps,
    Mem,
    Files,
    Ns,
    Mounts,
    Cgroups,
}

struct Arguments {
    dir: PathBuf,
    json: bool,
    sections: Vec<Section>,
}

/// Runs the command with the arguments that follow its name, and prints to
/// standard output.
///
/// Errors: wrong arguments; the directory cannot be read; a file of the image is
/// damaged (by its name and record).
pub(super) fn main(arguments: &[String]) -> Result<(), Failure> {
    let Some(arguments) = parse(arguments).map_err(Failure::Usage)? else {
        return Ok(print(USAGE)?);
    };
    let report = Report::read(&arguments.dir)?;
    if arguments.json {
        let json = report.json(&arguments.sections)?;
        return Ok(print(&format!("{json}\n"))?);
    }
    Ok(print(&text::render(&report, &arguments.sections))?)
}

/// `None`: help is wanted.
fn parse(arguments: &[String]) -> Result<Option<Arguments>> {
    use lexopt::Arg::{Long, Short, Value};
    let wrong = |why: String| Error::caller("inspect", why);
    let mut dir = None;
    let mut json = false;
    let mut sections = Vec::new();
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next().map_err(|e| wrong(e.to_string()))? {
        match argument {
            Long("json") => json = true,
            Long("help") | Short('h') => return Ok(None),
            Value(value) if dir.is_none() => dir = Some(PathBuf::from(value)),
            Value(value) => sections.push(match value.to_str() {
                Some("ps") => Section::Ps,
                Some("mem") => Section::Mem,
                Some("files") => Section::Files,
                Some("ns") => Section::Ns,
                Some("mounts") => Section::Mounts,
                Some("cgroups") => Section::Cgroups,
                _ => return Err(wrong(format!("no such section: {}", value.display()))),
            }),
            other => return Err(wrong(other.unexpected().to_string())),
        }
    }
    let dir = dir.ok_or_else(|| wrong(String::from("an image directory is needed")))?;
    Ok(Some(Arguments {
        dir,
        json,
        sections,
    }))
}

#[cfg(test)]
mod tests;
