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

/// With FreeBSD's kernel, which is stood in for, or on the software vmm.
fn a_hundred_rounds(vmm: Option<&'static str>) {
    play(&Case {
        rounds: 100,
        vmm,
        ..Case::new("virtio-net", "virtio-blk", 2)
    });
}

#[test]
fn an_e1000_goes_on() {
    play(&Case {
        rounds: 2,
        ..Case::new("e1000", "virtio-blk", 2)
    });
}

#[test]
#[ignore = "a long run: make soak"]
fn goes_on_a_hundred_times() {
    a_hundred_rounds(None);
}

#[test]
#[ignore = "a long run: make soak"]
fn goes_on_a_hundred_times_with_the_kernel_of_14() {
    a_hundred_rounds(Some("standin-14"));
}

#[test]
#[ignore = "a long run: make soak"]
fn goes_on_a_hundred_times_with_the_kernel_of_15() {
    a_hundred_rounds(Some("standin-15"));
}

#[test]
#[ignore = "a long run: make soak"]
fn goes_on_a_hundred_times_with_the_kernel_of_16() {
    a_hundred_rounds(Some("standin-16"));
}
