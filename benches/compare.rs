//! What a checkpoint and a restore cost: dunlin, and the CRIU that `$CRIU` names
//! (if any), turn by turn in one run, under the same runc, with the same bundle.
//!
//! | measure | how |
//! |---|---|
//! | frozen | `runc checkpoint --leave-running`: the largest hole that the program itself noticed |
//! | frozen, own figure | the tool's `stats-dump` of that checkpoint (frozen + freezing time) |
//! | checkpoint | `runc checkpoint` that ends the container: wall clock of the command |
//! | restore, own figure | the tool's `stats-restore` of that restore |
//! | restore | from the start of `runc restore` until the program looks at the clock again |
//! | lazy restore | the same with `--lazy-pages` from the images; `criu lazy-pages` listens already |
//!
//! `ROUNDS` (default 7) turns, `SIZES` (default `16,1024`) MiB, each one task.
//! `ONLY=dunlin` or `ONLY=criu` leaves the other out.
//! `BENCH_JSON` names the file for the figures (default `target/bench.json`).

#[path = "../integration/harness/mod.rs"]
mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dunlin::image::records::StatsEntry;
use dunlin::image::{Kind, Set};
use harness::*;
use serde_json::{Value, json};

const MEASURES: [&str; 6] = [
    "frozen",
    "frozen, own figure",
    "checkpoint",
    "restore",
    "restore, own figure",
    "lazy restore",
];

/// Tool, MiB, measure: microseconds of each turn.
type Figures = BTreeMap<(&'static str, u32, &'static str), Vec<u64>>;

fn main() {
    // `cargo test --benches` starts us too, with a flag of libtest's.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    if let Some(why) = missing(&[Need::Root, Need::Runc, Need::Gcc]) {
        println!("skipped: {why}");
        return;
    }
    let rounds: u32 = parsed("ROUNDS").unwrap_or(7);
    let sizes = std::env::var("SIZES").unwrap_or_else(|_| "16,1024".into());
    let sizes: Vec<u32> = sizes
        .split(',')
        .filter_map(|size| size.trim().parse().ok())
        .collect();
    let scratch = Scratch::new("bench");
    let mut tools = vec![("dunlin", criu_dir(&scratch).join("criu"))];
    tools.extend(criu().map(|path| ("criu", path)));
    if let Ok(only) = std::env::var("ONLY") {
        tools.retain(|(name, _)| *name == only);
    }

    let _alone = whole_machine();
    let mut figures = Figures::new();
    let mut failures: BTreeMap<(&str, u32), String> = BTreeMap::new();
    for &mib in &sizes {
        for turn in 0..rounds {
            for (tool, path) in &tools {
                if failures.contains_key(&(*tool, mib)) {
                    continue;
                }
                let done = catch_unwind(AssertUnwindSafe(|| one_turn(tool, path, mib)));
                match done {
                    Ok(turn_figures) => {
                        for (measure, us) in turn_figures {
                            figures.entry((tool, mib, measure)).or_default().push(us);
                        }
                    }
                    Err(_) => {
                        failures.insert((tool, mib), format!("failed in turn {turn}"));
                    }
                }
            }
        }
    }
    print_table(&figures, &sizes, criu().is_some());
    for ((tool, mib), why) in &failures {
        println!("{tool}, {mib} MiB: {why}");
    }
    store(&figures, rounds, &failures);
    if !failures.is_empty() {
        std::process::exit(1);
    }
}

fn parsed<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

fn now_us() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock");
    u64::try_from(since.as_micros()).expect("microseconds")
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).expect("microseconds")
}

/// Everything once, in a fresh container.
fn one_turn(tool: &str, criu: &Path, mib: u32) -> Vec<(&'static str, u64)> {
    // What others have left in the page cache would slow down whoever writes next.
    nix::unistd::sync();
    let scratch = Scratch::new(&format!("bench-{tool}"));
    let runc = Runc::with_criu(&scratch, criu);
    let size = mib.to_string();
    let bundle = Bundle::new(
        &scratch,
        "bundle",
        &[&sample("ticker")],
        &["/bin/ticker", &size, "/data/gaps"],
    );
    let gaps = bundle.rootfs().join("data/gaps");
    let mut container = Container::run(&runc, bundle, scratch.name());
    container.lines.expect("ready", PATIENCE);

    let left = scratch.join("left");
    let from = now_us();
    container.dumped(&left, &["--leave-running"]);
    let (_, frozen) = largest_gap(&gaps, from, now_us());
    let own = own_stats(
        "stats-dump",
        Kind::StatsDump,
        &scratch.join("left.work"),
        &left,
    );
    let own = own.dump.expect("figures of a dump");
    let own = u64::from(own.freezing_time) + u64::from(own.frozen_time);

    let images = scratch.join("images");
    let start = Instant::now();
    container.dumped(&images, &[]);
    let checkpoint = micros(start.elapsed());

    let from = now_us();
    container.restored(&images, &[]);
    let restore = first_tick_after(&gaps, from) - from;
    let work = scratch.join("images.work");
    let own_restore = own_stats("stats-restore", Kind::StatsRestore, &work, &images);
    let own_restore = own_restore.restore.expect("figures of a restore");

    // The same images once more, lazily.
    let init = container.init();
    let lazy = scratch.dir("lazy.work");
    let mut command = Command::new(criu);
    command
        .args(["lazy-pages", "-D"])
        .arg(&images)
        .arg("-W")
        .arg(&lazy);
    command.args(["-o", "lazy-pages.log"]);
    container.signal("KILL");
    init.wait_gone(PATIENCE);
    let images_of_lazy = scratch.join("lazy");
    std::os::unix::fs::symlink(&images, &images_of_lazy).expect("name the images again");
    let mut server = Program::start(&mut command);
    let socket = lazy.join("lazy-pages.socket");
    wait_exists(&socket);
    let from = now_us();
    container.restored(&images_of_lazy, &["--lazy-pages"]);
    let lazy_restore = first_tick_after(&gaps, from) - from;
    let status = server.wait(PATIENCE);
    assert!(status.success(), "lazy-pages ends with {status}");

    vec![
        (MEASURES[0], frozen),
        (MEASURES[1], own),
        (MEASURES[2], checkpoint),
        (MEASURES[3], restore),
        (MEASURES[4], u64::from(own_restore.restore_time)),
        (MEASURES[5], lazy_restore),
    ]
}

fn wait_exists(path: &Path) {
    let name = path.file_name().expect("a name");
    let dir = path.parent().expect("a directory");
    let found = || fs::read_dir(dir).is_ok_and(|all| all.flatten().any(|e| e.file_name() == name));
    wait_dir(dir, PATIENCE, found);
}

/// Lines `BEFORE GAP` of the program.
fn read_gaps(path: &Path) -> Vec<(u64, u64)> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (before, gap) = line.split_once(' ')?;
            Some((before.parse().ok()?, gap.parse().ok()?))
        })
        .collect()
}

fn largest_gap(path: &Path, from: u64, to: u64) -> (u64, u64) {
    let gaps = read_gaps(path);
    let within = gaps
        .iter()
        .filter(|(before, gap)| before + gap >= from && *before <= to);
    // A freeze of less than the 2 ms that the program notices counts as 2 ms.
    within
        .copied()
        .max_by_key(|(_, gap)| *gap)
        .unwrap_or((from, 2000))
}

/// The time at which the program looked at the clock for the first time after `from`.
fn first_tick_after(path: &Path, from: u64) -> u64 {
    let find = |_: &str| {
        read_gaps(path)
            .iter()
            .any(|(before, gap)| *before < from && before + gap > from)
    };
    wait_file(path, PATIENCE, find);
    let gaps = read_gaps(path);
    let (before, gap) = gaps
        .iter()
        .find(|(before, gap)| *before < from && before + gap > from)
        .expect("just seen");
    before + gap
}

/// What the tool says of itself.
fn own_stats(name: &str, kind: Kind, work: &Path, images: &Path) -> StatsEntry {
    let bytes = [work, images]
        .iter()
        .find_map(|dir| fs::read(dir.join(name)).ok())
        .expect("the tool leaves figures");
    let mut set = Set::new();
    set.put_raw(name, bytes).expect("take figures");
    set.require(kind, 0).expect("read figures")
}

fn median(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

fn print_table(figures: &Figures, sizes: &[u32], compared: bool) {
    println!(
        "{:<10} {:<20} {:>12} {:>12} {:>8}",
        "memory", "measure", "dunlin", "criu", "ratio"
    );
    for &mib in sizes {
        for measure in MEASURES {
            let of = |tool| figures.get(&(tool, mib, measure)).map(|all| median(all));
            let text = |us: Option<u64>| {
                us.map_or_else(
                    || "-".to_owned(),
                    |us| format!("{}.{} ms", us / 1000, us % 1000 / 100),
                )
            };
            let ratio = match (of("dunlin"), of("criu")) {
                (Some(ours), Some(theirs)) if ours > 0 => {
                    let hundredths = theirs * 100 / ours;
                    format!("{}.{:02}", hundredths / 100, hundredths % 100)
                }
                _ => "-".to_owned(),
            };
            println!(
                "{:<10} {measure:<20} {:>12} {:>12} {ratio:>8}",
                format!("{mib} MiB"),
                text(of("dunlin")),
                text(of("criu")),
            );
        }
    }
    println!("medians; ratio: how many times longer the other takes");
    if !compared {
        println!("(no CRIU given: make bench CRIU=/path/to/criu)");
    }
}

fn store(figures: &Figures, rounds: u32, failures: &BTreeMap<(&str, u32), String>) {
    let all: Vec<Value> = figures
        .iter()
        .map(|((tool, mib, measure), values)| {
            json!({"tool": tool, "mib": mib, "measure": measure,
                   "median_us": median(values), "us": values})
        })
        .collect();
    let failures: Vec<Value> = failures
        .iter()
        .map(|((tool, mib), why)| json!({"tool": tool, "mib": mib, "why": why}))
        .collect();
    let path = std::env::var_os("BENCH_JSON")
        .map_or_else(|| top().join("target/bench.json"), PathBuf::from);
    let report = json!({"rounds": rounds, "figures": all, "failures": failures});
    fs::write(&path, format!("{report:#}\n")).expect("write the figures");
    println!("{}", path.display());
}
