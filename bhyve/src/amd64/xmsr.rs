// SPDX-License-Identifier: BSD-2-Clause

//! Model-specific registers that the vmm leaves to userland (`usr.sbin/bhyve/amd64/xmsr.c`). They are those that guests
//! touch because of what the processor claims to be; none of them has an effect.

use std::ops::RangeInclusive;
use vmm_x86::specialreg::*;

/// The processor's maker, as CPUID leaf 0 tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// `GenuineIntel`.
    Intel,
    /// `AuthenticAMD` or `HygonGenuine`.
    Amd,
}

/// C3, C6 and C7.
const PKG_C_RESIDENCY: RangeInclusive<u32> = MSR_PKG_C3_RESIDENCY..=MSR_PKG_C3_RESIDENCY + 2;
/// TscFreqSel and WBINVD-to-INVD conversion: what every processor of these families has set.
const HWCR_VALUE: u64 = 1 << 24 | 1 << 4;
/// Selectors and counters, four of each.
const PERF_LEGACY: RangeInclusive<u32> = MSR_PERFEVSEL0..=MSR_PERFEVSEL0 + 7;
/// Limit, control, status and eight states.
const P_STATES: RangeInclusive<u32> = MSR_AMD_PSTATE_LIMIT..=MSR_AMD_PSTATE_LIMIT + 10;
/// Selectors and counters in turn, six of each.
const PERF_EXTENDED: RangeInclusive<u32> = MSR_AMD_PERFEVSEL_EXT0..=MSR_AMD_PERFEVSEL_EXT0 + 11;

/// The value of a register; `None` for one that does not exist.
pub fn rdmsr(vendor: Vendor, msr: u32) -> Option<u64> {
    match (vendor, msr) {
        (_, MSR_BIOS_SIGN) => Some(0),
        (Vendor::Intel, MSR_DEBUGCTLMSR | MSR_RAPL_POWER_UNIT) => Some(0),
        (
            Vendor::Intel,
            MSR_PKG_ENERGY_STATUS
            | MSR_DRAM_ENERGY_STATUS
            | MSR_PP0_ENERGY_STATUS
            | MSR_PP1_ENERGY_STATUS,
        ) => Some(0),
        (Vendor::Intel, msr) if PKG_C_RESIDENCY.contains(&msr) => Some(0),
        (Vendor::Amd, MSR_HWCR) => Some(HWCR_VALUE),
        (
            Vendor::Amd,
            MSR_SYSCFG | MSR_NB_CFG1 | MSR_LS_CFG | MSR_IC_CFG | MSR_DC_CFG | MSR_FP_CFG
            | MSR_DE_CFG,
        ) => Some(0),
        (Vendor::Amd, msr) if is_amd_counter(msr) => Some(0),
        _ => None,
    }
}

/// Whether a write is taken, and does nothing.
pub fn wrmsr(vendor: Vendor, msr: u32, _value: u64) -> bool {
    match (vendor, msr) {
        (_, MSR_BIOS_SIGN) => true,
        (Vendor::Intel, MSR_DEBUGCTLMSR) => true,
        (Vendor::Amd, MSR_TSC | MSR_HWCR | MSR_SYSCFG | MSR_NB_CFG1 | MSR_K8_UCODE_UPDATE) => true,
        (Vendor::Amd, MSR_LS_CFG | MSR_IC_CFG | MSR_DC_CFG | MSR_FP_CFG | MSR_DE_CFG) => true,
        (Vendor::Amd, msr) => is_amd_counter(msr),
        _ => false,
    }
}

fn is_amd_counter(msr: u32) -> bool {
    PERF_LEGACY.contains(&msr) || PERF_EXTENDED.contains(&msr) || P_STATES.contains(&msr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_belong_to_makers() {
        assert_eq!(rdmsr(Vendor::Amd, MSR_HWCR), Some(HWCR_VALUE));
        assert_eq!(rdmsr(Vendor::Intel, MSR_HWCR), None);
        assert_eq!(rdmsr(Vendor::Intel, MSR_RAPL_POWER_UNIT), Some(0));
        assert_eq!(rdmsr(Vendor::Amd, 0x4000_0000), None);
        assert!(wrmsr(Vendor::Amd, 0xc001_0000, 1));
        assert!(!wrmsr(Vendor::Intel, 0xc001_0000, 1));
    }
}
