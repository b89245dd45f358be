//! The memory map: areas, their kinds, brk, arguments, auxv, exe. Rebuild.
