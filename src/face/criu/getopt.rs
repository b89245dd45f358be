//! How `getopt_long(3)` reads a line of arguments: `-t 1`, `-t1`, `-dj`,
//! `--opt value`, `--opt=value`, unambiguous abbreviations, `--`, and
//! operands anywhere. It knows nothing of what the options mean.

use crate::base::{Error, Result};

/// Whether an option takes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// Never.
    Nothing,
    /// Always: attached, or the next argument.
    Value,
    /// Only attached: `-vNUM`, `--opt=value`.
    Maybe,
}

/// What can be typed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name {
    /// After `--`; empty if there is only a short form.
    pub(crate) long: &'static str,
    /// After `-`.
    pub(crate) short: Option<char>,
    /// Whether a value follows.
    pub(crate) takes: Takes,
    /// Whether `--no-LONG` is an option too.
    pub(crate) negatable: bool,
}

/// One thing found on the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// The option with this index in the table.
    Option {
        /// Index into the table.
        index: usize,
        /// `false` for `--no-LONG`.
        on: bool,
        /// Its value, if one was given.
        value: Option<String>,
    },
    /// An operand.
    Operand(String),
}

/// Splits `args` (without the program's name) by `table`.
///
/// # Errors
/// An unknown or ambiguous option, a missing value, or a value where there
/// must be none; the text names the option as typed.
pub(crate) fn parse(table: &[Name], args: &[String]) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            items.extend(rest.by_ref().cloned().map(Item::Operand));
        } else if let Some(long) = arg.strip_prefix("--") {
            items.push(long_option(table, long, &mut rest)?);
        } else if arg.len() > 1 && arg.starts_with('-') {
            short_options(table, &arg[1..], &mut rest, &mut items)?;
        } else {
            items.push(Item::Operand(arg.clone()));
        }
    }
    Ok(items)
}

fn usage(what: String, why: &'static str) -> Error {
    Error::caller(what, why)
}

fn long_option<'a>(
    table: &[Name],
    typed: &str,
    rest: &mut impl Iterator<Item = &'a String>,
) -> Result<Item> {
    let (name, attached) = match typed.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (typed, None),
    };
    let (index, on) = find_long(table, name)?;
    let takes = if on {
        table[index].takes
    } else {
        Takes::Nothing
    };
    let value = match (takes, attached) {
        (Takes::Nothing, Some(_)) => {
            return Err(usage(format!("option --{name}"), "takes no value"));
        }
        (Takes::Value, None) => Some(
            rest.next()
                .cloned()
                .ok_or_else(|| usage(format!("option --{name}"), "needs a value"))?,
        ),
        (_, attached) => attached,
    };
    Ok(Item::Option { index, on, value })
}

fn find_long(table: &[Name], name: &str) -> Result<(usize, bool)> {
    let mut found: Vec<(usize, bool)> = Vec::new();
    for (index, entry) in table.iter().enumerate() {
        if entry.long.is_empty() {
            continue;
        }
        if entry.long == name {
            return Ok((index, true));
        }
        let negated = name.strip_prefix("no-").filter(|_| entry.negatable);
        if negated == Some(entry.long) {
            return Ok((index, false));
        }
        if entry.long.starts_with(name) {
            found.push((index, true));
        }
        if entry.negatable && format!("no-{}", entry.long).starts_with(name) {
            found.push((index, false));
        }
    }
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(usage(format!("option --{name}"), "is not known")),
        _ => Err(usage(format!("option --{name}"), "is ambiguous")),
    }
}

fn short_options<'a>(
    table: &[Name],
    cluster: &str,
    rest: &mut impl Iterator<Item = &'a String>,
    items: &mut Vec<Item>,
) -> Result<()> {
    for (at, letter) in cluster.char_indices() {
        let index = table
            .iter()
            .position(|entry| entry.short == Some(letter))
            .ok_or_else(|| usage(format!("option -{letter}"), "is not known"))?;
        let attached = &cluster[at + letter.len_utf8()..];
        let attached = (!attached.is_empty()).then(|| attached.to_owned());
        let (value, ends) = match table[index].takes {
            Takes::Nothing => (None, false),
            Takes::Maybe => (attached, true),
            Takes::Value => {
                let value = attached.or_else(|| rest.next().cloned());
                let value =
                    value.ok_or_else(|| usage(format!("option -{letter}"), "needs a value"))?;
                (Some(value), true)
            }
        };
        items.push(Item::Option {
            index,
            on: true,
            value,
        });
        if ends {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Name] = &[
        name("tree", Some('t'), Takes::Value, false),
        name("leave-stopped", Some('s'), Takes::Nothing, false),
        name("leave-running", Some('R'), Takes::Nothing, false),
        name("shell-job", Some('j'), Takes::Nothing, true),
        name("verbosity", Some('v'), Takes::Maybe, false),
        name("tls", None, Takes::Nothing, true),
        name("tls-key", None, Takes::Value, false),
    ];

    const fn name(long: &'static str, short: Option<char>, takes: Takes, negatable: bool) -> Name {
        Name {
            long,
            short,
            takes,
            negatable,
        }
    }

    fn read(line: &str) -> Result<Vec<Item>> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(TABLE, &args)
    }

    fn option(index: usize, value: Option<&str>) -> Item {
        Item::Option {
            index,
            on: true,
            value: value.map(str::to_owned),
        }
    }

    #[test]
    fn a_value_may_be_attached_or_follow() {
        for line in ["-t 7", "-t7", "--tree 7", "--tree=7", "--tr 7"] {
            assert_eq!(read(line).unwrap(), [option(0, Some("7"))], "{line}");
        }
    }

    #[test]
    fn an_optional_value_must_be_attached() {
        assert_eq!(
            read("-v4 -v 4 -vvv").unwrap(),
            [
                option(4, Some("4")),
                option(4, None),
                Item::Operand("4".into()),
                option(4, Some("vv")),
            ]
        );
    }

    #[test]
    fn letters_cluster_and_operands_mix() {
        assert_eq!(
            read("dump -sjt 9 more -- -R").unwrap(),
            [
                Item::Operand("dump".into()),
                option(1, None),
                option(3, None),
                option(0, Some("9")),
                Item::Operand("more".into()),
                Item::Operand("-R".into()),
            ]
        );
    }

    #[test]
    fn an_exact_name_wins_over_a_longer_one_and_no_negates() {
        assert_eq!(read("--tls").unwrap(), [option(5, None)]);
        assert_eq!(
            read("--no-shell-job").unwrap(),
            [Item::Option {
                index: 3,
                on: false,
                value: None
            }]
        );
    }

    #[test]
    fn wrong_lines_name_the_option() {
        for (line, text) in [
            ("--leave", "option --leave: is ambiguous"),
            ("--nonsense", "option --nonsense: is not known"),
            ("-Z", "option -Z: is not known"),
            ("--tree", "option --tree: needs a value"),
            ("-t", "option -t: needs a value"),
            ("--shell-job=1", "option --shell-job: takes no value"),
        ] {
            assert_eq!(read(line).unwrap_err().to_string(), text);
        }
    }
}
