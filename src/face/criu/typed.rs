//! What was typed: CRIU's options as they stand on the command line, in a
//! configuration file or in an RPC request, before anybody asks what they
//! mean together. `meaning` asks that.

use super::getopt::{self, Item};
use super::options::{OPTIONS, Treatment};
use crate::base::{Error, Result};

/// What becomes of the tasks after a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Afterwards {
    /// They are killed.
    #[default]
    Killed,
    /// `--leave-stopped`.
    Stopped,
    /// `--leave-running`.
    Running,
}

/// The options, as typed. Strings are not interpreted yet, numbers are.
#[derive(Debug, Default, Clone)]
pub(crate) struct Typed {
    pub(crate) tree: Option<i32>,
    pub(crate) afterwards: Afterwards,
    /// `--restore-detached` and `--daemon`: CRIU has one flag for both.
    pub(crate) detach: bool,
    pub(crate) restore_sibling: bool,
    pub(crate) images_dir: Option<String>,
    pub(crate) work_dir: Option<String>,
    pub(crate) log_file: Option<String>,
    pub(crate) verbosity: Option<u32>,
    pub(crate) display_stats: bool,
    pub(crate) pidfile: Option<String>,
    pub(crate) status_fd: Option<i32>,
    pub(crate) action_scripts: Vec<String>,
    pub(crate) close: Vec<i32>,
    pub(crate) exec_cmd: bool,
    pub(crate) root: Option<String>,
    pub(crate) ext_unix_sk: bool,
    pub(crate) shell_job: bool,
    pub(crate) file_locks: bool,
    pub(crate) orphan_pts_master: bool,
    pub(crate) external: Vec<String>,
    pub(crate) ext_mnt: Vec<(String, String)>,
    pub(crate) skip_mnt: Vec<String>,
    pub(crate) manage_cgroups: Option<String>,
    pub(crate) cgroup_root: Vec<(Option<String>, String)>,
    pub(crate) empty_net: bool,
    pub(crate) inherit_fd: Vec<(String, i32)>,
    pub(crate) join_ns: Vec<(String, String, Option<String>)>,
    pub(crate) lazy_pages: bool,
    pub(crate) page_server: bool,
    pub(crate) address: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) features: Vec<String>,
    pub(crate) check_extra: bool,
    pub(crate) help: bool,
    pub(crate) version: bool,
    /// Accepted options that change nothing here, with the reason, for the log.
    pub(crate) without_effect: Vec<(String, &'static str)>,
}

impl Typed {
    /// Reads a line of arguments on top of what is there; returns the operands.
    ///
    /// # Errors
    /// A line that is wrong in itself, or an option that is refused.
    pub(crate) fn read(&mut self, args: &[String]) -> Result<Vec<String>> {
        let names: Vec<_> = OPTIONS.iter().map(|option| option.name).collect();
        let mut operands = Vec::new();
        for item in getopt::parse(&names, args)? {
            match item {
                Item::Operand(operand) => operands.push(operand),
                Item::Option { index, on, value } => self.one(index, on, value.as_deref())?,
            }
        }
        Ok(operands)
    }

    fn one(&mut self, index: usize, on: bool, value: Option<&str>) -> Result<()> {
        let option = &OPTIONS[index];
        let name = option.name.long;
        match option.treatment {
            Treatment::Honoured(set) => {
                set(self, on, value).map_err(|e| e.within(format!("option --{name}")))
            }
            Treatment::NoEffect(_) if !on => Ok(()),
            Treatment::NoEffect(why) => {
                self.without_effect.push((format!("--{name}"), why));
                Ok(())
            }
            Treatment::Refused(why) if on => Err(Error::caller(
                format!("option --{name} is not supported"),
                why,
            )),
            Treatment::Refused(_) => Ok(()),
        }
    }
}

/// A decimal number with a sign, all of `text`.
///
/// # Errors
/// Anything else.
pub(crate) fn number<T: std::str::FromStr>(text: Option<&str>) -> Result<T> {
    let text = text.unwrap_or_default();
    text.parse()
        .map_err(|_| Error::caller(format!("value {text:?}"), "is not such a number"))
}

/// `NS:FILE_OR_PID[,EXTRA]`.
///
/// # Errors
/// No colon.
pub(crate) fn join_ns(text: &str) -> Result<(String, String, Option<String>)> {
    let (kind, rest) = text
        .split_once(':')
        .ok_or_else(|| Error::caller(format!("value {text:?}"), "is not NS:{PID|FILE}[,EXTRA]"))?;
    let (file, extra) = match rest.split_once(',') {
        Some((file, extra)) => (file, Some(extra.to_owned())),
        None => (rest, None),
    };
    Ok((kind.to_owned(), file.to_owned(), extra))
}

/// `fd[NUM]:KEY`.
///
/// # Errors
/// Anything else.
pub(crate) fn inherit_fd(text: &str) -> Result<(String, i32)> {
    let bad = || Error::caller(format!("value {text:?}"), "is not fd[NUM]:RESOURCE");
    let (fd, key) = text
        .strip_prefix("fd[")
        .and_then(|rest| rest.split_once("]:"))
        .ok_or_else(bad)?;
    if key.is_empty() {
        return Err(bad());
    }
    Ok((key.to_owned(), fd.parse().map_err(|_| bad())?))
}

/// `[CONTROLLER:]PATH`.
pub(crate) fn cgroup_root(text: &str) -> (Option<String>, String) {
    match text.split_once(':') {
        Some((controller, path)) => (Some(controller.to_owned()), path.to_owned()),
        None => (None, text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<(Typed, Vec<String>)> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let mut typed = Typed::default();
        let operands = typed.read(&args)?;
        Ok((typed, operands))
    }

    #[test]
    fn a_usual_dump_is_understood() {
        let (typed, operands) = read(
            "dump -t 12 -D img -W work -o dump.log -v4 -R --tcp-established -j -l \
             --manage-cgroups=ignore -M /a:b --external mnt[/x]:y --empty-ns net",
        )
        .unwrap();
        assert_eq!(operands, ["dump"]);
        assert_eq!(typed.tree, Some(12));
        assert_eq!(typed.images_dir.as_deref(), Some("img"));
        assert_eq!(typed.work_dir.as_deref(), Some("work"));
        assert_eq!(typed.log_file.as_deref(), Some("dump.log"));
        assert_eq!(typed.verbosity, Some(4));
        assert_eq!(typed.afterwards, Afterwards::Running);
        assert!(typed.shell_job && typed.file_locks && typed.empty_net);
        assert_eq!(typed.manage_cgroups.as_deref(), Some("ignore"));
        assert_eq!(typed.ext_mnt, [("/a".into(), "b".into())]);
        assert_eq!(typed.external, ["mnt[/x]:y"]);
    }

    #[test]
    fn verbosity_counts_letters_and_takes_numbers() {
        for (line, level) in [
            ("-v", 3),
            ("-vv", 4),
            ("-v -v", 4),
            ("-v1", 1),
            ("--verbosity=0", 0),
        ] {
            assert_eq!(read(line).unwrap().0.verbosity, Some(level), "{line}");
        }
    }

    #[test]
    fn a_refused_option_is_named_with_its_reason() {
        let error = read("dump --stream").unwrap_err().to_string();
        assert!(
            error.starts_with("option --stream is not supported: "),
            "{error}"
        );
        read("dump --no-stream").unwrap();
    }

    #[test]
    fn an_option_without_effect_is_remembered_for_the_log() {
        let (typed, _) = read("dump --evasive-devices").unwrap();
        assert_eq!(typed.without_effect[0].0, "--evasive-devices");
    }

    #[test]
    fn structured_values_are_taken_apart() {
        assert_eq!(
            inherit_fd("fd[5]:pipe:[77]").unwrap(),
            ("pipe:[77]".into(), 5)
        );
        assert_eq!(inherit_fd("fd[5]:/a/b").unwrap(), ("/a/b".into(), 5));
        assert_eq!(
            join_ns("user:12,0,0").unwrap(),
            ("user".into(), "12".into(), Some("0,0".into()))
        );
        assert_eq!(cgroup_root("cpu:/x"), (Some("cpu".into()), "/x".into()));
        for wrong in [
            "-t x",
            "-t 0",
            "--inherit-fd 5:x",
            "-J net",
            "--port 70000",
            "-M x",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
