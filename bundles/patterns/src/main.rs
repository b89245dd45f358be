//! A program that knows whether it was moved rightly.
//!
//! ```text
//! patterns [--mib 512] [--threads 2] [--rate 256] [--port 7070] [--dir /data]
//! patterns gaps FILE [SINCE]
//! ```
//!
//! It fills `--mib` MiB with words that follow from their address and round.
//! A quarter is never written again (`steady`); in the rest, `--threads` writers
//! go round, check every page and give every fourth a new round, `--rate` MiB a
//! second together. Beside that it holds one of nearly everything that a
//! program may hold, and checks it ten times a second (`things`), has a child
//! whose heart it hears (`family`), writes down the time every millisecond
//! (`ticks`), and on SIGUSR1 does what disturbs memory that follows lazily:
//! forks, mremaps, madvises (`acts`).
//!
//! In `--dir` it keeps `log` (what happened), `status` (one line, the same that
//! it answers on `--port`), and `ticks`. If anything is ever wrong, it says so in
//! the log and on stderr, puts `wrong` into the status and ends with exit code 1.
//! SIGTERM ends it with 0.

mod acts;
mod family;
mod memory;
mod report;
mod sys;
mod things;
mod ticks;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use report::Report;

struct Options {
    mib: usize,
    threads: usize,
    rate: usize,
    port: u16,
    dir: PathBuf,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        mib: 512,
        threads: 2,
        rate: 256,
        port: 7070,
        dir: PathBuf::from("/data"),
    };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or(format!("{flag} needs a value"))?;
        let number = || {
            value
                .parse::<usize>()
                .map_err(|e| format!("{flag} {value}: {e}"))
        };
        match flag.as_str() {
            "--mib" => options.mib = number()?,
            "--threads" => options.threads = number()?.max(1),
            "--rate" => options.rate = number()?.max(1),
            "--port" => options.port = value.parse().map_err(|e| format!("{value}: {e}"))?,
            "--dir" => options.dir = PathBuf::from(value),
            _ => return Err(format!("unknown: {flag}")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("gaps") {
        return ticks::gaps(args.next(), args.next());
    }
    let options = match options() {
        Ok(options) => options,
        Err(why) => {
            eprintln!("patterns: {why}");
            return ExitCode::from(2);
        }
    };
    live(&options)
}

fn live(options: &Options) -> ExitCode {
    std::fs::create_dir_all(&options.dir).expect("make the directory");
    let report = Arc::new(Report::new(&options.dir));
    sys::ignore(libc::SIGPIPE);
    let signals = sys::signals_to_pipe(&[libc::SIGUSR1, libc::SIGTERM]);

    // The child comes first: it is forked before there are threads.
    let family = family::Family::start();
    let memory = memory::Memory::fill(options.mib, options.threads);
    report.say(&format!(
        "pid {} steady {:#x} {} changing {:#x} {}",
        std::process::id(),
        memory.steady.address(),
        memory.steady.bytes(),
        memory.changing.address(),
        memory.changing.bytes()
    ));
    report.set_steady(memory.steady.address(), memory.steady.bytes());

    let listener = TcpListener::bind(("0.0.0.0", options.port)).expect("listen");
    let answering = Arc::clone(&report);
    thread::Builder::new()
        .name("answer".into())
        .spawn(move || report::answer(&listener, &answering))
        .expect("start a thread");
    let ticking = Arc::clone(&report);
    let tick_file = options.dir.join("ticks");
    thread::Builder::new()
        .name("ticks".into())
        .spawn(move || ticks::tick(&tick_file, &ticking))
        .expect("start a thread");
    for number in 0..options.threads {
        let (memory, report) = (Arc::clone(&memory), Arc::clone(&report));
        let pages_per_ms = (options.rate * 256 / 1000 / options.threads).max(1);
        thread::Builder::new()
            .name(format!("writer-{number}"))
            .spawn(move || memory.write_rounds(number, pages_per_ms, &report))
            .expect("start a thread");
    }
    let acts = acts::Acts::start(Arc::clone(&memory), Arc::clone(&report));
    let mut things = things::Things::new(&options.dir, signals, family);
    report.say("ready");
    println!("ready");
    things.watch(&report, &acts)
}
