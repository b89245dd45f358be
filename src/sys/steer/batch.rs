//! Batches of system calls as values: built, laid out for an address, read back.

use super::{COPY, RECORD_LEN};
use crate::base::{Error, HostPid, Result};

/// An argument of an injected call.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// A number, or an address in the task.
    Val(u64),
    /// The address of a buffer of the batch.
    Buf(Buf),
    /// The address `offset` bytes into a buffer of the batch.
    BufAt(Buf, u64),
    /// What an earlier call of the batch returned.
    Ret(CallId),
}

/// A buffer of a batch, input or output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buf {
    offset: usize,
    len: usize,
}

/// A call of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallId(usize);

macro_rules! arg_from {
    ($($t:ty),*) => {$(
        impl From<$t> for Arg {
            #[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, clippy::cast_lossless)]
            fn from(v: $t) -> Self { Arg::Val(v as i64 as u64) }
        }
    )*};
}
arg_from!(u64, i64, u32, i32, usize);

impl From<Buf> for Arg {
    fn from(b: Buf) -> Self {
        Arg::Buf(b)
    }
}

#[derive(Debug, Clone)]
struct Record {
    nr: u64,
    args: [Arg; 6],
    may_fail: bool,
    call: usize,
    what: &'static str,
}

/// System calls to run in a task, with their data.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    records: Vec<Record>,
    data: Vec<u8>,
    patches: Vec<(usize, Arg)>,
    calls: usize,
}

impl Batch {
    /// No calls.
    pub fn new() -> Self {
        Self::default()
    }

    /// Holds no call.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Input bytes, copied into the task.
    pub fn bytes(&mut self, bytes: &[u8]) -> Buf {
        let b = self.buffer(bytes.len());
        if let Some(dst) = self.data.get_mut(b.offset..b.offset + b.len) {
            dst.copy_from_slice(bytes);
        }
        b
    }

    /// A NUL-terminated string.
    pub fn cstr(&mut self, s: &[u8]) -> Buf {
        let mut v = s.to_vec();
        v.push(0);
        self.bytes(&v)
    }

    /// `len` zero bytes that calls may write to. Aligned to 64 bytes.
    pub fn buffer(&mut self, len: usize) -> Buf {
        let offset = self.data.len().next_multiple_of(64);
        self.data.resize(offset + len, 0);
        Buf { offset, len }
    }

    /// Makes the eight bytes at `at` in buffer `buf` hold `value` (an address of
    /// another buffer, or an earlier result) when the next call added runs.
    pub fn patch(&mut self, buf: Buf, at: usize, value: Arg) {
        match value {
            Arg::Ret(_) => {
                let call = self.calls;
                self.records.push(Record {
                    nr: COPY,
                    args: [
                        value,
                        Arg::BufAt(buf, at as u64),
                        0u64.into(),
                        0u64.into(),
                        0u64.into(),
                        0u64.into(),
                    ],
                    may_fail: false,
                    call,
                    what: "patch",
                });
            }
            _ => self.patches.push((buf.offset + at, value)),
        }
    }

    /// Adds a call that must not fail. `what` names it in errors.
    pub fn call(&mut self, what: &'static str, nr: i64, args: &[Arg]) -> CallId {
        self.add(what, nr, args, false)
    }

    /// Adds a call whose failure is only reported, as a negative result.
    pub fn try_call(&mut self, what: &'static str, nr: i64, args: &[Arg]) -> CallId {
        self.add(what, nr, args, true)
    }

    fn add(&mut self, what: &'static str, nr: i64, given: &[Arg], may_fail: bool) -> CallId {
        let mut args = [Arg::Val(0); 6];
        for (slot, a) in args.iter_mut().zip(given) {
            *slot = *a;
        }
        let id = CallId(self.calls);
        self.calls += 1;
        self.records.push(Record {
            nr: nr.unsigned_abs(),
            args,
            may_fail,
            call: id.0,
            what,
        });
        id
    }

    /// Lays the batch out for a data area at `base`. Returns the bytes, the
    /// number of records, and for each call the index of its record.
    pub(super) fn assemble(&self, base: u64) -> Result<Assembled> {
        let mut recs: Vec<[u64; 9]> = Vec::with_capacity(self.records.len());
        let mut at_call = vec![usize::MAX; self.calls];
        let mut whats = Vec::with_capacity(self.records.len());
        let copies: usize = self
            .records
            .iter()
            .map(|r| r.args.iter().filter(|a| matches!(a, Arg::Ret(_))).count())
            .sum();
        let total = self.records.iter().filter(|r| r.nr != COPY).count() + copies;
        let data_at = (total * RECORD_LEN).next_multiple_of(64);
        let buf_addr = |b: Buf, off: u64| base + (data_at + b.offset) as u64 + off;
        let ret_addr = |at_call: &[usize], c: CallId| -> Result<u64> {
            let i = at_call.get(c.0).copied().filter(|i| *i != usize::MAX);
            let i =
                i.ok_or_else(|| Error::bug("assemble batch", "a result is used before its call"))?;
            Ok(base + (i * RECORD_LEN) as u64 + 56)
        };
        for r in &self.records {
            if r.nr == COPY {
                let (Arg::Ret(c), Arg::BufAt(b, off)) = (r.args[0], r.args[1]) else {
                    return Err(Error::bug("assemble batch", "malformed patch"));
                };
                recs.push([
                    COPY,
                    ret_addr(&at_call, c)?,
                    buf_addr(b, off),
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                ]);
                whats.push(r.what);
                continue;
            }
            let uses = r.args.iter().filter(|a| matches!(a, Arg::Ret(_))).count();
            let mine = recs.len() + uses;
            let mut vals = [0u64; 6];
            for (n, a) in r.args.iter().enumerate() {
                vals[n] = match *a {
                    Arg::Val(v) => v,
                    Arg::Buf(b) => buf_addr(b, 0),
                    Arg::BufAt(b, off) => buf_addr(b, off),
                    Arg::Ret(c) => {
                        let dst = base + (mine * RECORD_LEN + 8 + 8 * n) as u64;
                        recs.push([COPY, ret_addr(&at_call, c)?, dst, 0, 0, 0, 0, 0, 0]);
                        whats.push(r.what);
                        0
                    }
                };
            }
            at_call[r.call] = recs.len();
            recs.push([
                r.nr,
                vals[0],
                vals[1],
                vals[2],
                vals[3],
                vals[4],
                vals[5],
                0,
                u64::from(r.may_fail),
            ]);
            whats.push(r.what);
        }
        let mut bytes = Vec::with_capacity(data_at + self.data.len());
        for r in &recs {
            for w in r {
                bytes.extend_from_slice(&w.to_le_bytes());
            }
        }
        bytes.resize(data_at, 0);
        bytes.extend_from_slice(&self.data);
        for (at, value) in &self.patches {
            let v = match *value {
                Arg::Val(v) => v,
                Arg::Buf(b) => buf_addr(b, 0),
                Arg::BufAt(b, off) => buf_addr(b, off),
                Arg::Ret(_) => return Err(Error::bug("assemble batch", "malformed patch")),
            };
            let dst = bytes
                .get_mut(data_at + at..data_at + at + 8)
                .ok_or_else(|| Error::bug("assemble batch", "patch outside of its buffer"))?;
            dst.copy_from_slice(&v.to_le_bytes());
        }
        Ok(Assembled {
            bytes,
            data_at,
            count: recs.len(),
            at_call,
            whats,
        })
    }
}

pub(super) struct Assembled {
    pub(super) bytes: Vec<u8>,
    pub(super) data_at: usize,
    pub(super) count: usize,
    pub(super) at_call: Vec<usize>,
    pub(super) whats: Vec<&'static str>,
}

/// What a batch gave: return values, output buffers, tasks made.
#[derive(Debug)]
pub struct Results {
    pub(super) bytes: Vec<u8>,
    pub(super) data_at: usize,
    pub(super) at_call: Vec<usize>,
    /// Tasks and threads that the calls made (host ids), in order; each is
    /// seized and starts stopped.
    pub made: Vec<HostPid>,
}

impl Results {
    /// The raw result of a call: negative errno on failure.
    pub fn ret(&self, call: CallId) -> i64 {
        let at = self.at_call.get(call.0).copied().unwrap_or(usize::MAX);
        at.checked_mul(RECORD_LEN)
            .and_then(|o| self.bytes.get(o + 56..o + 64))
            .and_then(|b| b.try_into().ok())
            .map_or(-i64::from(libc::EINVAL), i64::from_le_bytes)
    }

    /// A buffer as the calls left it. Foreign input.
    pub fn bytes(&self, buf: Buf) -> &[u8] {
        self.bytes
            .get(self.data_at + buf.offset..self.data_at + buf.offset + buf.len)
            .unwrap_or(&[])
    }

    /// The `index`th little-endian u64 of a buffer.
    pub fn u64_at(&self, buf: Buf, index: usize) -> u64 {
        self.bytes(buf)
            .get(index * 8..index * 8 + 8)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    }

    /// The `index`th little-endian u32 of a buffer.
    pub fn u32_at(&self, buf: Buf, index: usize) -> u32 {
        self.bytes(buf)
            .get(index * 4..index * 4 + 4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u32::from_le_bytes)
    }
}
