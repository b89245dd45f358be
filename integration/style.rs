//! Habits of the repository, held by a test.

#[path = "harness/mod.rs"]
mod harness;

use std::fs;
use std::path::PathBuf;

use harness::top;

fn read(name: &str) -> String {
    fs::read_to_string(top().join(name)).unwrap_or_else(|e| panic!("read {name}: {e}"))
}

/// Files directly in `dir`.
fn files(dir: &str) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(top().join(dir))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    all.sort();
    all
}

/// The name of each room in the second column's table of `text`.
fn table_rooms(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| `src/")?.split_once('`'))
        .map(|(room, _)| room.to_owned())
        .collect()
}

#[test]
fn the_readme_lists_the_rooms_in_their_order() {
    let declared: Vec<String> = read("src/lib.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .map(str::to_owned)
        .collect();
    assert_eq!(table_rooms(&read("README.md")), declared);
}

#[test]
fn every_integration_test_is_declared() {
    let manifest = read("Cargo.toml");
    for path in files("integration") {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".rs") {
            let line = format!("path = \"integration/{name}\"");
            assert!(manifest.contains(&line), "Cargo.toml has no {line}");
        }
    }
}

#[test]
fn every_script_stops_at_its_first_error() {
    for dir in ["bundles", "bundles/demo", "fuzz", "hooks", "benches", ".ci"] {
        for path in files(dir) {
            let text = fs::read_to_string(&path).unwrap_or_default();
            if text.starts_with("#!/usr/bin/env bash") {
                assert!(
                    text.lines().any(|line| line == "set -euo pipefail"),
                    "{} does not set -euo pipefail",
                    path.display()
                );
                let script = path.strip_prefix(top()).unwrap().display().to_string();
                assert!(
                    read("Makefile").contains(&script),
                    "{script} is not checked by make lint"
                );
            }
        }
    }
}

#[test]
fn every_probe_says_how_it_is_used() {
    for path in files("bundles/probes") {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(text.starts_with("/*"), "{name} has no header");
        let header = text.split("*/").next().unwrap();
        assert!(
            header.contains(&format!(" {name}")),
            "{name} does not tell its use"
        );
    }
}

#[test]
fn the_changelog_has_a_place_for_what_is_next() {
    let text = read("CHANGELOG.md");
    assert!(text.starts_with("# Changelog\n"));
    assert!(text.contains("\n## Unreleased\n"));
    for line in text.lines() {
        let fits = line.is_empty()
            || line.starts_with("# ")
            || line.starts_with("## ")
            || line.starts_with("- ")
            || line.starts_with("  ");
        assert!(fits, "neither heading nor entry: {line}");
    }
}
