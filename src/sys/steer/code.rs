//! The loop itself: position-independent, under 200 bytes, data only by `rbx`.

std::arch::global_asm!(
    ".pushsection .rodata.dunlin_loop, \"a\"",
    ".globl dunlin_loop_start",
    ".globl dunlin_loop_end",
    ".hidden dunlin_loop_start",
    ".hidden dunlin_loop_end",
    "dunlin_loop_start:",
    // rbx: next record, r12: records left
    "2: test r12, r12",
    "jz 6f",
    "mov rax, [rbx]",
    "mov rdi, [rbx + 8]",
    "mov rsi, [rbx + 16]",
    "cmp rax, -1",
    "je 5f",
    "mov rdx, [rbx + 24]",
    "mov r10, [rbx + 32]",
    "mov r8, [rbx + 40]",
    "mov r9, [rbx + 48]",
    "syscall",
    "mov [rbx + 56], rax",
    "cmp rax, -4095",
    "jb 3f",
    // failed: go on only if the record says so
    "test byte ptr [rbx + 64], 1",
    "jz 6f",
    "3: add rbx, 72",
    "dec r12",
    "jmp 2b",
    // copy a result into a later record
    "5: mov rax, [rdi]",
    "mov [rsi], rax",
    "jmp 3b",
    "6: int3",
    "dunlin_loop_end:",
    ".popsection",
);

unsafe extern "C" {
    static dunlin_loop_start: u8;
    static dunlin_loop_end: u8;
}

/// The bytes of the loop; it traps at their end.
pub(super) fn loop_code() -> &'static [u8] {
    // SAFETY: both symbols delimit one run of bytes that global_asm! placed in .rodata.
    unsafe {
        let start = &raw const dunlin_loop_start;
        let end = &raw const dunlin_loop_end;
        std::slice::from_raw_parts(start, end.offset_from_unsigned(start))
    }
}
