//! Model-specific registers that the vmm leaves to userland (`usr.sbin/bhyve/amd64/xmsr.c`). They are those that guests
//! touch because of what the processor claims to be; none of them has an effect.

/// The processor's maker, as CPUID leaf 0 tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// `GenuineIntel`.
    Intel,
    /// `AuthenticAMD` or `HygonGenuine`.
    Amd,
}

const BIOS_SIGN: u32 = 0x8b;
const TSC: u32 = 0x10;
const DEBUGCTL: u32 = 0x1d9;

const RAPL_POWER_UNIT: u32 = 0x606;
const PKG_ENERGY_STATUS: u32 = 0x611;
const DRAM_ENERGY_STATUS: u32 = 0x619;
const PP0_ENERGY_STATUS: u32 = 0x639;
const PP1_ENERGY_STATUS: u32 = 0x641;
const PKG_C_RESIDENCY: std::ops::RangeInclusive<u32> = 0x3f8..=0x3fa;

const HWCR: u32 = 0xc001_0015;
/// TscFreqSel and WBINVD-to-INVD conversion: what every processor of these families has set.
const HWCR_VALUE: u64 = 0x0100_0010;
const PERF_LEGACY: std::ops::RangeInclusive<u32> = 0xc001_0000..=0xc001_0007;
const SYSCFG: u32 = 0xc001_0010;
const NB_CFG: u32 = 0xc001_001f;
const P_STATES: std::ops::RangeInclusive<u32> = 0xc001_0061..=0xc001_006b;
const PERF_EXTENDED: std::ops::RangeInclusive<u32> = 0xc001_0200..=0xc001_020b;
const LS_CFG: u32 = 0xc001_1020;
const IC_CFG: u32 = 0xc001_1021;
const DC_CFG: u32 = 0xc001_1022;
const FP_CFG: u32 = 0xc001_1028;
const DE_CFG: u32 = 0xc001_1029;
const PATCH_LEVEL_LOAD: u32 = 0xc001_0020;

/// The value of a register; `None` for one that does not exist.
pub fn rdmsr(vendor: Vendor, msr: u32) -> Option<u64> {
    match (vendor, msr) {
        (_, BIOS_SIGN) => Some(0),
        (Vendor::Intel, DEBUGCTL | RAPL_POWER_UNIT) => Some(0),
        (
            Vendor::Intel,
            PKG_ENERGY_STATUS | DRAM_ENERGY_STATUS | PP0_ENERGY_STATUS | PP1_ENERGY_STATUS,
        ) => Some(0),
        (Vendor::Intel, msr) if PKG_C_RESIDENCY.contains(&msr) => Some(0),
        (Vendor::Amd, HWCR) => Some(HWCR_VALUE),
        (Vendor::Amd, SYSCFG | NB_CFG | LS_CFG | IC_CFG | DC_CFG | FP_CFG | DE_CFG) => Some(0),
        (Vendor::Amd, msr) if is_amd_counter(msr) => Some(0),
        _ => None,
    }
}

/// Whether a write is taken, and does nothing.
pub fn wrmsr(vendor: Vendor, msr: u32, _value: u64) -> bool {
    match (vendor, msr) {
        (_, BIOS_SIGN) => true,
        (Vendor::Intel, DEBUGCTL) => true,
        (Vendor::Amd, TSC | HWCR | SYSCFG | NB_CFG | PATCH_LEVEL_LOAD) => true,
        (Vendor::Amd, LS_CFG | IC_CFG | DC_CFG | FP_CFG | DE_CFG) => true,
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
        assert_eq!(rdmsr(Vendor::Amd, HWCR), Some(HWCR_VALUE));
        assert_eq!(rdmsr(Vendor::Intel, HWCR), None);
        assert_eq!(rdmsr(Vendor::Intel, RAPL_POWER_UNIT), Some(0));
        assert_eq!(rdmsr(Vendor::Amd, 0x4000_0000), None);
        assert!(wrmsr(Vendor::Amd, 0xc001_0000, 1));
        assert!(!wrmsr(Vendor::Intel, 0xc001_0000, 1));
    }
}
