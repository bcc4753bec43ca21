// SPDX-License-Identifier: BSD-2-Clause

//! `sys/cpuset.h`: sets of virtual CPUs.

use std::sync::atomic::{AtomicU64, Ordering};

use vmm_abi::CPUSET_BYTES;

/// Number of virtual CPUs that a set can hold, and so the most that a VM can have: all xAPIC ids but the broadcast.
pub const MAX_CPUS: usize = 255;

/// A set of virtual CPUs by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CpuSet([u64; 4]);

impl CpuSet {
    /// The empty set.
    pub const EMPTY: Self = Self([0; 4]);

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    /// Whether `cpu` is in it.
    pub fn contains(&self, cpu: usize) -> bool {
        self.0
            .get(cpu / 64)
            .is_some_and(|word| word & 1 << (cpu % 64) != 0)
    }

    /// Adds `cpu`; a number that a set cannot hold changes nothing.
    pub fn insert(&mut self, cpu: usize) {
        if let Some(word) = self.0.get_mut(cpu / 64) {
            *word |= 1 << (cpu % 64);
        }
    }

    /// Removes `cpu`.
    pub fn remove(&mut self, cpu: usize) {
        if let Some(word) = self.0.get_mut(cpu / 64) {
            *word &= !(1 << (cpu % 64));
        }
    }

    /// Those in either set.
    pub fn union(&self, other: &Self) -> Self {
        let mut all = *self;
        for (word, more) in all.0.iter_mut().zip(other.0) {
            *word |= more;
        }
        all
    }

    /// Those that are not in `other`.
    pub fn without(&self, other: &Self) -> Self {
        let mut left = *self;
        for (word, gone) in left.0.iter_mut().zip(other.0) {
            *word &= !gone;
        }
        left
    }

    /// Whether one is in both sets.
    pub fn intersects(&self, other: &Self) -> bool {
        self.0
            .iter()
            .zip(other.0)
            .any(|(word, more)| word & more != 0)
    }

    /// Whether everybody in `self` is in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0
            .iter()
            .zip(other.0)
            .all(|(word, all)| word & !all == 0)
    }

    /// Everybody, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + use<> {
        let words = self.0;
        words.into_iter().enumerate().flat_map(|(index, mut word)| {
            std::iter::from_fn(move || {
                let bit = word.trailing_zeros() as usize;
                word &= word.wrapping_sub(1);
                (bit < 64).then_some(index * 64 + bit)
            })
        })
    }

    /// The kernel's `cpuset_t`.
    pub fn to_bytes(self) -> [u8; CPUSET_BYTES] {
        let mut bytes = [0; CPUSET_BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// A `cpuset_t`, if each number in it can be a vCPU of a VM.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut set = Self::EMPTY;
        for (index, byte) in bytes.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte & 1 << bit != 0) {
                let cpu = index * 8 + bit;
                if cpu >= MAX_CPUS {
                    return None;
                }
                set.insert(cpu);
            }
        }
        Some(set)
    }
}

impl FromIterator<usize> for CpuSet {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> Self {
        let mut set = Self::EMPTY;
        cpus.into_iter().for_each(|cpu| set.insert(cpu));
        set
    }
}

/// A set that is changed under a lock and looked into without it.
#[derive(Debug, Default)]
pub struct SharedCpuSet([AtomicU64; 4]);

impl SharedCpuSet {
    /// Whether `cpu` is in it.
    pub fn contains(&self, cpu: usize) -> bool {
        self.0
            .get(cpu / 64)
            .is_some_and(|word| word.load(Ordering::Acquire) & 1 << (cpu % 64) != 0)
    }

    /// Makes it what `set` is.
    pub fn set(&self, set: &CpuSet) {
        for (word, new) in self.0.iter().zip(set.0) {
            if word.load(Ordering::Relaxed) != new {
                word.store(new, Ordering::SeqCst);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members() {
        let mut set: CpuSet = [0, 63, 64, 254].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 254]);
        assert_eq!(CpuSet::from_bytes(&set.to_bytes()), Some(set));
        set.remove(63);
        assert!(!set.contains(63) && set.contains(64) && !set.contains(4000));
        assert_eq!(CpuSet::from_bytes(&[0xff; CPUSET_BYTES]), None);
    }
}
