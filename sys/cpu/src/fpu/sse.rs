//! The SSE operations.

use super::op::Op;
use super::{Fault, Memory, Outcome, State};

/// LDMXCSR.
pub(super) fn ldmxcsr(
    _: &Op,
    state: &mut State,
    _: &mut [u64; 16],
    _: &mut u64,
    memory: &mut Memory,
) -> Result<Outcome, Fault> {
    let [a, b, c, d, ..] = memory.bytes;
    state.set_mxcsr(u32::from_le_bytes([a, b, c, d]))?;
    Ok(Outcome::Done)
}

/// STMXCSR.
pub(super) fn stmxcsr(
    _: &Op,
    state: &mut State,
    _: &mut [u64; 16],
    _: &mut u64,
    memory: &mut Memory,
) -> Result<Outcome, Fault> {
    memory.bytes[..4].copy_from_slice(&state.mxcsr().to_le_bytes());
    Ok(Outcome::Done)
}
