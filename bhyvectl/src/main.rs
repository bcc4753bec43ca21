//! bhyvectl(8): control utility for bhyve instances.

fn main() {}
