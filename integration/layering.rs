//! Rules of the repository, held by a test: the order of the rooms, the length
//! of files, where `unsafe` may stand, and that nothing names the machine it
//! was written on.

#[path = "harness/mod.rs"]
mod harness;

use std::fs;
use std::path::{Path, PathBuf};

use harness::top;

/// The rooms, lowest first, as `src/lib.rs` declares them.
fn rooms() -> Vec<String> {
    let lib = fs::read_to_string(top().join("src/lib.rs")).unwrap();
    lib.lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .map(str::to_owned)
        .collect()
}

fn files_below(dir: &Path, ends: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if path
                .file_name()
                .is_some_and(|n| n != "target" && n != ".git")
            {
                found.extend(files_below(&path, ends));
            }
        } else if path
            .to_str()
            .is_some_and(|p| ends.iter().any(|e| p.ends_with(e)))
        {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn short(path: &Path) -> String {
    path.strip_prefix(top())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// Without comments, strings' content left alone: good enough to find paths.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(n, line)| (n + 1, line.split("//").next().unwrap_or("")))
}

/// The rooms that a piece of source names by `crate::room` or `dunlin::room`,
/// also in braces: `use crate::{base::x, sys}`.
fn named_rooms(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let lines: Vec<(usize, &str)> = code_lines(text).collect();
    for (at, (number, line)) in lines.iter().enumerate() {
        for (from, _) in line.match_indices("crate::") {
            let rest = &line[from + "crate::".len()..];
            if let Some(group) = rest.strip_prefix('{') {
                let mut all = group.to_owned();
                for (_, more) in &lines[at + 1..] {
                    if braces_closed(&all) {
                        break;
                    }
                    all += more;
                }
                found.extend(top_names(&all).into_iter().map(|name| (*number, name)));
            } else {
                found.push((*number, word(rest)));
            }
        }
    }
    found
}

fn word(text: &str) -> String {
    text.trim_start()
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

fn braces_closed(group: &str) -> bool {
    let mut depth = 1;
    for c in group.chars() {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        if depth == 0 {
            return true;
        }
    }
    false
}

fn top_names(group: &str) -> Vec<String> {
    let (mut depth, mut names, mut fresh) = (0, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && depth == 0 && c.is_alphabetic() => {
                names.push(word(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn the_parser_of_this_test_finds_what_it_must() {
    let names = |text: &str| -> Vec<String> {
        named_rooms(text)
            .into_iter()
            .map(|(_, name)| name)
            .collect()
    };
    assert_eq!(names("use crate::engine::dump;"), ["engine"]);
    assert_eq!(
        names("let x = crate::sys::uffd::open(crate::base::X);"),
        ["sys", "base"]
    );
    assert_eq!(
        names("use crate::{base::{Error, Result}, face};"),
        ["base", "face"]
    );
    assert_eq!(
        names("use crate::{\n    wire::{A,\n B},\n    sys,\n};"),
        ["wire", "sys"]
    );
    assert_eq!(names("// see crate::face"), Vec::<String>::new());
}

#[test]
fn a_room_names_only_rooms_below_it() {
    let rooms = rooms();
    assert!(rooms.len() >= 10, "rooms found: {rooms:?}");
    let mut wrong = Vec::new();
    for (height, room) in rooms.iter().enumerate() {
        for path in files_below(&top().join("src").join(room), &[".rs"]) {
            for (line, named) in named_rooms(&fs::read_to_string(&path).unwrap()) {
                if rooms
                    .iter()
                    .position(|r| *r == named)
                    .is_some_and(|at| at > height)
                {
                    wrong.push(format!("{}:{line}: {room} names {named}", short(&path)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_only_in_sys() {
    let mut wrong = Vec::new();
    for path in files_below(&top().join("src"), &[".rs"]) {
        if path.starts_with(top().join("src/sys")) {
            continue;
        }
        for (line, code) in code_lines(&fs::read_to_string(&path).unwrap()) {
            if code.contains("unsafe {")
                || code.contains("unsafe fn")
                || code.contains("unsafe_code")
            {
                wrong.push(format!("{}:{line}: {}", short(&path), code.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// `println!` and its like panic when nobody reads any more, also in the middle of a
/// migration; `src/face/out.rs` does not.
#[test]
fn nothing_is_printed_in_a_way_that_panics() {
    let mut wrong = Vec::new();
    for path in files_below(&top().join("src"), &[".rs"]) {
        let text = fs::read_to_string(&path).unwrap();
        let tests = path.components().any(|part| part.as_os_str() == "tests");
        if tests || path.to_str().is_some_and(|p| p.ends_with("tests.rs")) {
            continue;
        }
        for (line, code) in code_lines(&text).take(production_lines(&text)) {
            if code.contains("print!(") || code.contains("println!(") {
                wrong.push(format!("{}:{line}: {}", short(&path), code.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Production lines: up to the tests at the end of the file.
fn production_lines(text: &str) -> usize {
    let tests = text.lines().position(|line| line.trim() == "#[cfg(test)]");
    tests.unwrap_or_else(|| text.lines().count())
}

#[test]
fn production_files_stay_short_enough_to_read() {
    const AIM: usize = 400;
    const LIMIT: usize = 600;
    let mut long = Vec::new();
    let mut too_long = Vec::new();
    for path in files_below(&top().join("src"), &[".rs"]) {
        if path.ends_with("tests.rs") {
            continue;
        }
        let lines = production_lines(&fs::read_to_string(&path).unwrap());
        if lines > AIM {
            long.push(format!("{}: {lines} lines", short(&path)));
        }
        if lines > LIMIT {
            too_long.push(format!("{}: {lines} lines", short(&path)));
        }
    }
    if !long.is_empty() {
        println!("longer than {AIM} lines:\n{}", long.join("\n"));
    }
    assert!(
        too_long.is_empty(),
        "longer than {LIMIT} lines:\n{}",
        too_long.join("\n")
    );
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    // Spelled in pieces, so that this file does not name it either.
    let foreign = [
        ["/wo", "rk/"].concat(),
        ["/ho", "me/"].concat(),
        ["/ro", "ot/."].concat(),
    ];
    let mut wrong = Vec::new();
    for path in files_below(
        top(),
        &[
            ".rs", ".md", ".toml", ".sh", ".c", ".json", "Makefile", ".txt", ".yml", "run",
            "migrate",
        ],
    ) {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if foreign.iter().any(|name| line.contains(name.as_str())) {
                wrong.push(format!("{}:{}: {}", short(&path), number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_room_says_why_it_is_there() {
    for room in rooms() {
        let path = top().join("src").join(&room).join("mod.rs");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!"), "{} has no header", short(&path));
    }
}
