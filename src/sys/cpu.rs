//! Where this CPU keeps each part of its extended state: CPUID leaf 0xD, as in
//! the Intel SDM volume 1, chapter 13.

/// Numbers of the state components that XCR0 counts.
pub mod component {
    /// x87.
    pub const X87: u32 = 0;
    /// XMM registers and MXCSR.
    pub const SSE: u32 = 1;
    /// Upper halves of YMM0-15.
    pub const YMM: u32 = 2;
    /// MPX bounds.
    pub const BNDREGS: u32 = 3;
    /// MPX configuration.
    pub const BNDCSR: u32 = 4;
    /// AVX-512 masks.
    pub const OPMASK: u32 = 5;
    /// Upper halves of ZMM0-15.
    pub const ZMM_HI256: u32 = 6;
    /// ZMM16-31.
    pub const HI16_ZMM: u32 = 7;
    /// Protection keys.
    pub const PKRU: u32 = 9;
    /// AMX configuration.
    pub const XTILECFG: u32 = 17;
    /// AMX tiles.
    pub const XTILEDATA: u32 = 18;
}

/// Offset and size in bytes of a component in the standard (not compacted)
/// XSAVE format; `None` if this CPU does not have it.
#[cfg(target_arch = "x86_64")]
pub fn xstate_component(number: u32) -> Option<(usize, usize)> {
    match number {
        component::X87 => return Some((0, 160)),
        component::SSE => return Some((160, 256)),
        _ => {}
    }
    if number > 62 {
        return None;
    }
    let leaf = std::arch::x86_64::__cpuid_count(0xd, 0);
    let supported = u64::from(leaf.eax) | (u64::from(leaf.edx) << 32);
    if supported & (1 << number) == 0 {
        return None;
    }
    let c = std::arch::x86_64::__cpuid_count(0xd, number);
    let (size, offset) = (usize::try_from(c.eax).ok()?, usize::try_from(c.ebx).ok()?);
    (size > 0).then_some((offset, size))
}
