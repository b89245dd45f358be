//! Those who descend from a process: /proc/PID/task/TID/children.

use super::raw::{Path, each_number, number};

/// Deeper families are left to what else ends them.
const DEPTH: u32 = 64;

/// Kills all that descend from `pid`, youngest first, so that nobody loses its
/// parent before it is found.
pub(super) fn kill_children(pid: i32) {
    below(pid, DEPTH);
}

fn below(pid: i32, depth: u32) {
    if depth == 0 || pid <= 0 {
        return;
    }
    let threads =
        Path::of(format_args!("/proc/{pid}/task")).and_then(|p| p.open(libc::O_DIRECTORY));
    let Some(threads) = threads else {
        return; // gone
    };
    each_number(threads, |tid| of_thread(pid, tid, depth));
}

fn of_thread(pid: i32, tid: i32, depth: u32) {
    let path = Path::of(format_args!("/proc/{pid}/task/{tid}/children"));
    let Some(file) = path.and_then(|p| p.open(0)) else {
        return;
    };
    // What is behind it is found the next time round.
    let mut text = [0u8; 512];
    // SAFETY: `text` has the length that is given.
    let n = unsafe { libc::read(file, text.as_mut_ptr().cast(), text.len()) };
    // SAFETY: opened above.
    unsafe { libc::close(file) };
    let text = usize::try_from(n).ok().and_then(|n| text.get(..n));
    // Each is followed by a blank: a number that was cut has none.
    let whole = text.unwrap_or(&[]).split_inclusive(|b| *b == b' ');
    for child in whole.filter(|w| w.ends_with(b" ")).filter_map(number) {
        below(child, depth - 1);
        // SAFETY: plain values. It is a child of a process that lives, or is not
        // reaped yet: its number is its own.
        unsafe { libc::kill(child, libc::SIGKILL) };
    }
}
