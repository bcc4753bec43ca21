// SPDX-License-Identifier: BSD-2-Clause

//! Sets of vCPUs (`cpuset_t` of `sys/sys/cpuset.h`).

use vmm_abi::{CPU_SETSIZE, CPUSET_BYTES};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const WORD_BITS: usize = 64;
const WORDS: usize = CPU_SETSIZE / WORD_BITS;

/// A set of vCPU numbers below `CPU_SETSIZE`.
#[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct CpuSet([u64; WORDS]);

const _: () = assert!(size_of::<CpuSet>() == CPUSET_BYTES);

impl CpuSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self([0; WORDS])
    }

    /// Adds a vCPU; a number beyond the set's size is ignored.
    pub fn insert(&mut self, cpu: usize) {
        if let Some(word) = self.0.get_mut(cpu / WORD_BITS) {
            *word |= 1 << (cpu % WORD_BITS);
        }
    }

    /// Removes a vCPU.
    pub fn remove(&mut self, cpu: usize) {
        if let Some(word) = self.0.get_mut(cpu / WORD_BITS) {
            *word &= !(1 << (cpu % WORD_BITS));
        }
    }

    /// Whether a vCPU is in the set.
    pub fn contains(&self, cpu: usize) -> bool {
        self.0
            .get(cpu / WORD_BITS)
            .is_some_and(|word| word & 1 << (cpu % WORD_BITS) != 0)
    }

    /// Whether no vCPU is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Number of vCPUs in the set.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The vCPUs in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..CPU_SETSIZE).filter(|cpu| self.contains(*cpu))
    }
}

impl FromIterator<usize> for CpuSet {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> Self {
        let mut set = Self::new();
        cpus.into_iter().for_each(|cpu| set.insert(cpu));
        set
    }
}

impl std::fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_lie_where_the_kernel_has_them() {
        let set: CpuSet = [0, 9, 1023, 1024].into_iter().collect();
        let bytes = set.as_bytes();
        assert_eq!((bytes[0], bytes[1], bytes[127]), (1, 2, 0x80));
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 9, 1023]);
        assert_eq!(set.len(), 3);
    }
}
