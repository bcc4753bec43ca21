// SPDX-License-Identifier: BSD-2-Clause

//! Names of the capabilities of vCPUs (`lib/libvmmapi/amd64/vmmapi_machdep.c`).

use vmm_abi::VM_CAP_MAX;

/// Names of the capabilities, in the order of their numbers (`vm_capstrmap`).
pub const CAPABILITY_NAMES: [&str; VM_CAP_MAX as usize] = [
    "hlt_exit",
    "mtrap_exit",
    "pause_exit",
    "unrestricted_guest",
    "enable_invpcid",
    "bpt_exit",
    "rdpid",
    "rdtscp",
    "ipi_exit",
    "mask_hwintr",
    "rflags_tf",
];

/// `vm_capability_type2name`.
pub fn capability_name(captype: i32) -> Option<&'static str> {
    usize::try_from(captype)
        .ok()
        .and_then(|index| CAPABILITY_NAMES.get(index))
        .copied()
}

/// `vm_capability_name2type`.
pub fn capability_type(name: &str) -> Option<i32> {
    CAPABILITY_NAMES
        .iter()
        .position(|known| *known == name)
        .and_then(|index| i32::try_from(index).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_abi::{VM_CAP_IPI_EXIT, VM_CAP_RFLAGS_TF};

    #[test]
    fn capabilities_have_names() {
        assert_eq!(capability_name(VM_CAP_IPI_EXIT), Some("ipi_exit"));
        assert_eq!(capability_type("rflags_tf"), Some(VM_CAP_RFLAGS_TF));
        assert_eq!(
            (
                capability_name(VM_CAP_MAX),
                capability_name(-1),
                capability_type("")
            ),
            (None, None, None)
        );
    }
}
