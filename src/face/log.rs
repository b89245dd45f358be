//! Where the lines of `tracing` go, for every face.
//!
//! One format for all: seconds since the start, then `Error (module):` or
//! `Warn  (module):` for what a person should see. It is the format in which
//! callers look for errors in a log of a checkpoint backend. Before [`start`]
//! nothing is written.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Mutex;
use std::time::Instant;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// Where lines go.
#[derive(Debug)]
pub(crate) enum Sink {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// This file, from its position on.
    File(File),
}

/// CRIU's default level: errors and warnings.
pub(crate) const DEFAULT_VERBOSITY: u32 = 2;

/// Sends all lines up to `verbosity` to `sink`, from now to the end of the
/// process. CRIU's levels: 0 nothing, 1 errors, 2 warnings, 3 information, 4
/// debug; more is everything. A second call changes nothing.
pub(crate) fn start(sink: Sink, verbosity: u32) {
    let level = match verbosity {
        0 => LevelFilter::OFF,
        1 => LevelFilter::ERROR,
        2 => LevelFilter::WARN,
        3 => LevelFilter::INFO,
        4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .event_format(Lines {
            start: Instant::now(),
        })
        .with_writer(Output(Mutex::new(sink)))
        .finish();
    // Fails only if one is there already, which then goes on.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

struct Lines {
    start: Instant,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let since = self.start.elapsed();
        write!(
            line,
            "({:02}.{:06}) ",
            since.as_secs(),
            since.subsec_micros()
        )?;
        let meta = event.metadata();
        match *meta.level() {
            Level::ERROR => write!(line, "Error ({}): ", meta.target())?,
            Level::WARN => write!(line, "Warn  ({}): ", meta.target())?,
            Level::INFO => {}
            Level::DEBUG | Level::TRACE => write!(line, "{}: ", meta.target())?,
        }
        ctx.format_fields(line.by_ref(), event)?;
        writeln!(line)
    }
}

struct Output(Mutex<Sink>);

struct Line<'a>(&'a Mutex<Sink>);

impl<'a> MakeWriter<'a> for Output {
    type Writer = Line<'a>;
    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut sink = self.0.lock().unwrap_or_else(|e| e.into_inner());
        // A line that cannot be written is lost. Whoever writes it must not fail by
        // that: the reader of a log may be gone in the middle of a migration.
        let _ = match &mut *sink {
            Sink::Stderr => io::stderr().write_all(bytes),
            Sink::Stdout => io::stdout().write_all(bytes),
            Sink::File(file) => file.write_all(bytes),
        };
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
