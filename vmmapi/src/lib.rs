//! libvmmapi(3) in Rust: VM handles, guest memory, back ends, the control socket and the checkpoint files.

pub mod checkpoint;
