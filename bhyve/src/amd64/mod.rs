// SPDX-License-Identifier: BSD-2-Clause

//! What is particular to x86-64 (`usr.sbin/bhyve/amd64`): the platform, the exits of VM_RUN, MMIO instructions, MSRs and the start of
//! application processors.

pub mod bhyverun_machdep;
pub mod spinup_ap;
pub mod vmexit;
pub mod vmm_instruction_emul;
pub mod xmsr;
