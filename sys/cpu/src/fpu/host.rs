//! The host's instructions: the only `unsafe` module of the unit.

/// The address of a host instruction followed by RET.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stub(usize);

impl Stub {
    /// For operations that execute nothing on the host.
    pub(super) const NONE: Self = Self(0);
}
