//! Pages whose every word follows from its address and its page's round.

use std::io::Read as _;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::report::Report;
use crate::sys;

pub const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;

/// What stands at word `word` of the page that is called `name`, in `round`.
pub fn pattern(name: usize, word: usize, round: u32) -> u64 {
    let mut x = (name + word * 8) as u64 ^ u64::from(round).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 32;
    x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ (x >> 29)
}

/// A mapping of whole pages.
#[derive(Debug)]
pub struct Area {
    at: NonNull<u8>,
    pages: usize,
}

// SAFETY: an Area is plain memory; who writes which page is settled by its users
// (one writer a page, under a lock that a fork takes too).
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// Private (or shared) anonymous memory.
    pub fn anonymous(pages: usize, shared: bool) -> Self {
        let kind = if shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        Self::map(pages, kind | libc::MAP_ANONYMOUS, -1)
    }

    /// A mapping of the beginning of a file.
    pub fn of_file(file: &std::fs::File, pages: usize, shared: bool) -> Self {
        use std::os::fd::AsRawFd as _;
        let kind = if shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        Self::map(pages, kind, file.as_raw_fd())
    }

    fn map(pages: usize, flags: i32, fd: i32) -> Self {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping wherever the kernel likes.
        let at = unsafe { libc::mmap(ptr::null_mut(), pages * PAGE, prot, flags, fd, 0) };
        assert!(
            at != libc::MAP_FAILED,
            "mmap: {}",
            std::io::Error::last_os_error()
        );
        let at = NonNull::new(at.cast()).expect("mmap gives an address");
        Self { at, pages }
    }

    pub fn address(&self) -> usize {
        self.at.as_ptr().addr()
    }

    pub fn pages(&self) -> usize {
        self.pages
    }

    pub fn bytes(&self) -> usize {
        self.pages * PAGE
    }

    fn word(&self, page: usize, word: usize) -> *mut u64 {
        assert!(page < self.pages && word < WORDS);
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.at.as_ptr().cast::<u64>().add(page * WORDS + word) }
    }

    pub fn load(&self, page: usize, word: usize) -> u64 {
        // SAFETY: a valid, aligned word of the mapping; volatile, since other
        // processes and the kernel write it too.
        unsafe { self.word(page, word).read_volatile() }
    }

    pub fn store(&self, page: usize, word: usize, value: u64) {
        // SAFETY: as in `load`.
        unsafe { self.word(page, word).write_volatile(value) }
    }

    /// Writes the page as `name` in `round`.
    pub fn write_as(&self, page: usize, name: usize, round: u32) {
        for word in 0..WORDS {
            self.store(page, word, pattern(name, word, round));
        }
    }

    /// The first word of the page that is not as `name` in `round`.
    pub fn differs(&self, page: usize, name: usize, round: u32) -> Option<usize> {
        (0..WORDS).find(|&word| self.load(page, word) != pattern(name, word, round))
    }

    /// The first word of the page that is not zero.
    pub fn not_zero(&self, page: usize) -> Option<usize> {
        (0..WORDS).find(|&word| self.load(page, word) != 0)
    }

    fn name(&self, page: usize) -> usize {
        self.address() + page * PAGE
    }

    /// Forbids writing.
    pub fn seal(&self) {
        // SAFETY: our own mapping; nothing writes it from here on.
        let result =
            unsafe { libc::mprotect(self.at.as_ptr().cast(), self.bytes(), libc::PROT_READ) };
        assert!(result == 0, "mprotect: {}", std::io::Error::last_os_error());
    }

    /// Moves to another address, `pages` long from then on.
    pub fn move_and_resize(&mut self, pages: usize) {
        let target = Self::map(
            pages,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
        );
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both ranges are our own; nothing else points into them.
        let at = unsafe {
            libc::mremap(
                self.at.as_ptr().cast(),
                self.bytes(),
                pages * PAGE,
                flags,
                target.at.as_ptr(),
            )
        };
        assert!(
            at != libc::MAP_FAILED,
            "mremap: {}",
            std::io::Error::last_os_error()
        );
        *self = target;
    }

    /// Gives pages back: they read as zeros afterwards.
    pub fn forget(&self, first: usize, pages: usize) {
        assert!(first + pages <= self.pages);
        let at = self.word(first, 0);
        // SAFETY: inside our own mapping.
        let result = unsafe { libc::madvise(at.cast(), pages * PAGE, libc::MADV_DONTNEED) };
        assert!(result == 0, "madvise: {}", std::io::Error::last_os_error());
    }

    /// Ends the mapping. (Dropping an `Area` does not.)
    pub fn unmap(self) {
        // SAFETY: our own mapping, and we are its last user.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes()) };
    }
}

/// All of the patterned memory.
#[derive(Debug)]
pub struct Memory {
    /// Written once, then read-only.
    pub steady: Area,
    /// Written in rounds.
    pub changing: Area,
    rounds: Vec<AtomicU32>,
    passes: Vec<AtomicU64>,
    /// Each writer holds its own while it works on a page; who holds all sees no
    /// page half written.
    writing: Vec<Mutex<()>>,
}

impl Memory {
    /// Maps and fills `mib` MiB for `writers`.
    pub fn fill(mib: usize, writers: usize) -> Arc<Self> {
        let pages = (mib * 256).max(8 * writers);
        let steady = Area::anonymous(pages / 4, false);
        let changing = Area::anonymous(pages - pages / 4, false);
        for page in 0..steady.pages() {
            steady.write_as(page, steady.name(page), 0);
        }
        steady.seal();
        for page in 0..changing.pages() {
            changing.write_as(page, changing.name(page), 1);
        }
        Arc::new(Self {
            rounds: (0..changing.pages()).map(|_| AtomicU32::new(1)).collect(),
            passes: (0..writers).map(|_| AtomicU64::new(0)).collect(),
            writing: (0..writers).map(|_| Mutex::new(())).collect(),
            steady,
            changing,
        })
    }

    /// One writer's life: goes through its share again and again, in an order that
    /// jumps, at `pages_per_ms`.
    pub fn write_rounds(&self, number: usize, pages_per_ms: usize, report: &Report) {
        let writers = self.writing.len();
        let share = |total: usize| (total * number / writers, total * (number + 1) / writers);
        let (first, end) = share(self.changing.pages());
        let (steady_first, steady_end) = share(self.steady.pages());
        let (count, steady_count) = (end - first, steady_end - steady_first);
        let step = coprime_step(count);
        let mut clock = sys::timerfd(1000, 1000);
        let mut late = [0; 8];
        let mut at = 0;
        for pass in 0_u64.. {
            for turn in 0..count {
                if turn % pages_per_ms == 0 && clock.read_exact(&mut late).is_err() {
                    report.wrong("the clock of a writer cannot be read");
                }
                at = (at + step) % count;
                let lock = self.writing[number].lock().expect("no writer panics");
                self.check(first + at, report);
                if (turn as u64 + pass).is_multiple_of(4) {
                    self.renew(first + at);
                }
                drop(lock);
                if steady_count > 0 && turn % 3 == 0 {
                    self.check_steady(steady_first + at % steady_count, report);
                }
            }
            self.passes[number].fetch_add(1, Ordering::Relaxed);
            let slowest = self.passes.iter().map(|p| p.load(Ordering::Relaxed)).min();
            report.rounds.store(slowest.unwrap_or(0), Ordering::Relaxed);
        }
    }

    fn check(&self, page: usize, report: &Report) {
        let round = self.rounds[page].load(Ordering::Relaxed);
        if let Some(word) = self.changing.differs(page, self.changing.name(page), round) {
            report.wrong(&format!(
                "word {word} of page {:#x} (round {round}) holds {:#x}",
                self.changing.name(page),
                self.changing.load(page, word)
            ));
        }
        report.checked.fetch_add(1, Ordering::Relaxed);
    }

    fn check_steady(&self, page: usize, report: &Report) {
        if let Some(word) = self.steady.differs(page, self.steady.name(page), 0) {
            report.wrong(&format!(
                "word {word} of steady page {:#x} holds {:#x}",
                self.steady.name(page),
                self.steady.load(page, word)
            ));
        }
        report.checked.fetch_add(1, Ordering::Relaxed);
    }

    fn renew(&self, page: usize) {
        let round = self.rounds[page].load(Ordering::Relaxed).wrapping_add(1);
        self.changing
            .write_as(page, self.changing.name(page), round);
        self.rounds[page].store(round, Ordering::Relaxed);
    }

    /// Runs `work` while no page is half written.
    pub fn while_whole<T>(&self, work: impl FnOnce() -> T) -> T {
        let _all: Vec<_> = self
            .writing
            .iter()
            .map(|lock| lock.lock().expect("no writer panics"))
            .collect();
        work()
    }

    /// True when every page is as it must be. Neither allocates nor locks: a
    /// forked child may call it.
    pub fn is_right(&self) -> bool {
        let changing = (0..self.changing.pages()).all(|page| {
            let round = self.rounds[page].load(Ordering::Relaxed);
            self.changing
                .differs(page, self.changing.name(page), round)
                .is_none()
        });
        changing
            && (0..self.steady.pages()).all(|page| {
                self.steady
                    .differs(page, self.steady.name(page), 0)
                    .is_none()
            })
    }
}

/// A step that visits all of `count` before it comes back.
fn coprime_step(count: usize) -> usize {
    fn gcd(a: usize, b: usize) -> usize {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    (count * 5 / 13..)
        .find(|&step| step > 0 && gcd(step, count) == 1)
        .unwrap_or(1)
}
