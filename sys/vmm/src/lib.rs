//! A vmm(4) in a library.
