// SPDX-License-Identifier: BSD-2-Clause

//! Starts an application processor (`usr.sbin/bhyve/amd64/spinup_ap.c`).

use vmmapi::abi::{SegDesc, VM_CAP_UNRESTRICTED_GUEST, VM_REG_GUEST_CS, VM_REG_GUEST_RIP};
use vmmapi::{Result, Vcpu, access_rights};

const REAL_MODE_LIMIT: u32 = 0xffff;

/// Puts `vcpu` where a start-up IPI with `vector` sends it: real mode, at page `vector`.
pub fn spinup_ap(vcpu: &Vcpu, vector: u8) -> Result<()> {
    vcpu.reset()?;
    vcpu.set_capability(VM_CAP_UNRESTRICTED_GUEST, 1)?;
    let base = u64::from(vector) << 12;
    vcpu.set_desc(
        VM_REG_GUEST_CS,
        SegDesc::new(base, REAL_MODE_LIMIT, access_rights::DATA16),
    )?;
    vcpu.set_register(VM_REG_GUEST_CS, base >> 4)?;
    vcpu.set_register(VM_REG_GUEST_RIP, 0)
}
