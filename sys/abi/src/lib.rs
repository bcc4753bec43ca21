//! vmm(4)'s ABI for amd64 as data.
