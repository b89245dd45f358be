//! CRIU's configuration files: one option a line, without the dashes, as
//! criu(8) describes them. A file becomes arguments, which are then read as
//! if they had been typed.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::base::{Error, Result, ResultExt};

/// Largest configuration file, bytes.
const MAX_FILE: u64 = 1 << 20;

/// The arguments in the file at `path`; `None` if there is no such file.
///
/// # Errors
/// The file cannot be read, or a line is not an option (with its number).
pub(crate) fn read(path: &Path) -> Result<Option<Vec<String>>> {
    let context = || format!("configuration file {}", path.display());
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.context(context)?,
    };
    // A pipe or a device has no size to be asked for.
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
    if read.context(context)? as u64 > MAX_FILE {
        return Err(Error::caller(context(), "is larger than 1 MiB"));
    }
    let text = String::from_utf8(bytes).map_err(|_| Error::caller(context(), "is not UTF-8"))?;
    parse(&text).map(Some).map_err(|e| e.within(context()))
}

/// The arguments that `text` stands for.
///
/// # Errors
/// A line that is not `option`, `option value` or `option "value"`.
pub(crate) fn parse(text: &str) -> Result<Vec<String>> {
    let mut args = Vec::new();
    for (number, line) in text.lines().enumerate() {
        statement(line.trim(), &mut args)
            .map_err(|why| Error::caller(format!("line {}", number + 1), why))?;
    }
    Ok(args)
}

fn statement(line: &str, args: &mut Vec<String>) -> Result<(), &'static str> {
    if line.is_empty() || line.starts_with('#') {
        return Ok(());
    }
    let (option, rest) = match line.find([' ', '\t']) {
        Some(at) => (&line[..at], line[at..].trim_start()),
        None => (line, ""),
    };
    let option = option.split('#').next().unwrap_or_default();
    if option.is_empty() || option.starts_with('-') {
        return Err("an option is written without dashes");
    }
    let (value, rest) = match rest.chars().next() {
        None | Some('#') => (None, ""),
        Some('"') => quoted(&rest[1..]).map(|(value, rest)| (Some(value), rest))?,
        Some(_) => {
            let end = rest.find([' ', '\t', '#']).unwrap_or(rest.len());
            (Some(rest[..end].to_owned()), &rest[end..])
        }
    };
    let rest = rest.trim_start();
    if !rest.is_empty() && !rest.starts_with('#') {
        return Err("more than one value; quote a value that has spaces in it");
    }
    // One argument, so that a value which looks like an option stays a value.
    args.push(match value {
        Some(value) => format!("--{option}={value}"),
        None => format!("--{option}"),
    });
    Ok(())
}

/// The text up to the closing quote (`\"` is a quote in it), and what follows.
fn quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' if chars.peek().is_some_and(|(_, next)| *next == '"') => {
                chars.next();
                value.push('"');
            }
            c => value.push(c),
        }
    }
    Err("a quote is not closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_manual_page_reads_as_it_says() {
        let text = "tcp-established\nwork-dir \"/srv/U/criu/my \\\"work\\\" directory\"\n\
                    #this is a comment\nno-restore-sibling   # this is another comment\n\
                    verbosity\t4\n\n  log-file x.log\n";
        assert_eq!(
            parse(text).unwrap(),
            [
                "--tcp-established",
                "--work-dir=/srv/U/criu/my \"work\" directory",
                "--no-restore-sibling",
                "--verbosity=4",
                "--log-file=x.log",
            ]
        );
    }

    #[test]
    fn a_wrong_line_is_named_by_its_number() {
        for (text, message) in [
            (
                "ok\nwork-dir a b\n",
                "line 2: more than one value; quote a value that has spaces in it",
            ),
            ("work-dir \"a", "line 1: a quote is not closed"),
            ("--ok", "line 1: an option is written without dashes"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_file_without_end_is_refused() {
        let e = read(Path::new("/dev/zero")).unwrap_err().to_string();
        assert_eq!(e, "configuration file /dev/zero: is larger than 1 MiB");
    }

    #[test]
    fn a_missing_file_is_no_error() {
        assert_eq!(read(Path::new("/nonexistent/default.conf")).unwrap(), None);
    }
}
