//! What needs more than one crate: guests, scenarios, command lines, faults.
