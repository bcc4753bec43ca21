//! The part of the matrix that is run on every change: every device of it, with several of one model. `make matrix` runs all.

use vmm_tests::matrix::{Case, play};

#[test]
fn virtio_devices_go_on() {
    play(&Case {
        rounds: 3,
        ..Case::new("virtio-net", "virtio-blk", 2)
    });
}

#[test]
fn two_nics_three_disks_a_cd_and_a_display_go_on() {
    play(&Case {
        nics: 2,
        disks: 3,
        cd: true,
        display: true,
        reordered: true,
        ..Case::new("e1000", "ahci-hd", 2)
    });
}
