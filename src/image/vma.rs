//! Bits of `VmaEntry::status`: what an area is.

/// Restored with its content; without it an area is only known of.
pub const REGULAR: u32 = 1 << 0;
/// Grows down.
pub const STACK: u32 = 1 << 1;
/// The kernel's own page at the end of the address space.
pub const VSYSCALL: u32 = 1 << 2;
/// The code that the kernel lends, see vdso(7).
pub const VDSO: u32 = 1 << 3;
/// Ends at the break, see brk(2).
pub const HEAP: u32 = 1 << 5;
/// A private mapping of a file.
pub const FILE_PRIVATE: u32 = 1 << 6;
/// A shared mapping of a file.
pub const FILE_SHARED: u32 = 1 << 7;
/// Shared memory without a file.
pub const ANON_SHARED: u32 = 1 << 8;
/// Private memory without a file.
pub const ANON_PRIVATE: u32 = 1 << 9;
/// Attached by shmat(2).
pub const SYSVIPC: u32 = 1 << 10;
/// A ring of a packet socket.
pub const SOCKET: u32 = 1 << 11;
/// The data that the kernel lends beside the vDSO.
pub const VVAR: u32 = 1 << 12;
/// A ring of io_setup(2).
pub const AIORING: u32 = 1 << 13;
/// A mapping of a memfd.
pub const MEMFD: u32 = 1 << 14;
/// A shadow stack.
pub const SHSTK: u32 = 1 << 15;
/// Not an area: pages guarded by `MADV_GUARD_INSTALL`.
pub const GUARD: u32 = 1 << 16;
/// Breakpoints of the kernel.
pub const UPROBES: u32 = 1 << 17;
