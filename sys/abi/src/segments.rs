//! Selectors, descriptor types and exception vectors, of `sys/x86/include/segments.h`.

bits! { SELECTOR_BITS: u16 {
    SEL_RPL_MASK = 0x3 => "Requested privilege level.",
    SEL_LDT = 0x4 => "The selector is one of the LDT.",
    SEL_INDEX_MASK = 0xfff8 => "Byte offset in the descriptor table.",
}}

bits! { TYPES: u32 {
    SDT_SYS286TSS = 1 => "16-bit TSS, available.",
    SDT_SYSLDT = 2 => "LDT.",
    SDT_SYS286BSY = 3 => "16-bit TSS, busy.",
    SDT_SYS286CGT = 4 => "16-bit call gate.",
    SDT_SYSTASKGT = 5 => "Task gate.",
    SDT_SYS286IGT = 6 => "16-bit interrupt gate.",
    SDT_SYS286TGT = 7 => "16-bit trap gate.",
    SDT_SYS386TSS = 9 => "32-bit or 64-bit TSS, available.",
    SDT_SYS386BSY = 11 => "32-bit or 64-bit TSS, busy.",
    SDT_SYS386CGT = 12 => "32-bit or 64-bit call gate.",
    SDT_SYS386IGT = 14 => "32-bit or 64-bit interrupt gate.",
    SDT_SYS386TGT = 15 => "32-bit or 64-bit trap gate.",
    SDT_MEMRO = 16 => "Data, read only.",
    SDT_MEMRW = 18 => "Data, read and write.",
    SDT_MEMRWA = 19 => "Data, read and write, accessed.",
    SDT_MEME = 24 => "Code, execute only.",
    SDT_MEMER = 26 => "Code, execute and read.",
    SDT_MEMERA = 27 => "Code, execute and read, accessed.",
}}

bits! { VECTORS: u32 {
    IDT_DE = 0 => "#DE, divide error.",
    IDT_DB = 1 => "#DB, debug.",
    IDT_NMI = 2 => "NMI.",
    IDT_BP = 3 => "#BP, breakpoint.",
    IDT_OF = 4 => "#OF, overflow.",
    IDT_BR = 5 => "#BR, bound range.",
    IDT_UD = 6 => "#UD, invalid opcode.",
    IDT_NM = 7 => "#NM, no x87.",
    IDT_DF = 8 => "#DF, double fault.",
    IDT_TS = 10 => "#TS, invalid TSS.",
    IDT_NP = 11 => "#NP, segment not present.",
    IDT_SS = 12 => "#SS, stack fault.",
    IDT_GP = 13 => "#GP, general protection.",
    IDT_PF = 14 => "#PF, page fault.",
    IDT_MF = 16 => "#MF, x87 error.",
    IDT_AC = 17 => "#AC, alignment check.",
    IDT_MC = 18 => "#MC, machine check.",
    IDT_XF = 19 => "#XF, SIMD floating-point exception.",
}}
