// SPDX-License-Identifier: BSD-2-Clause

//! The part of the matrix that is run on every change: every device of it, with several of one model. `make matrix` runs all.

use vmm_tests::matrix::{Case, play};
use vmm_tests::{Bench, on_each_vmm};

on_each_vmm!(
    virtio_devices_go_on,
    two_nics_three_disks_a_cd_and_a_display_go_on,
    an_e1000_goes_on,
    #[ignore = "a long run: make soak"]
    goes_on_a_hundred_times,
);

fn virtio_devices_go_on(bench: &Bench) {
    let case = Case {
        rounds: 3,
        ..Case::new("virtio-net", "virtio-blk", 2)
    };
    play(bench, &case);
}

fn two_nics_three_disks_a_cd_and_a_display_go_on(bench: &Bench) {
    let case = Case {
        nics: 2,
        disks: 3,
        cd: true,
        display: true,
        reordered: true,
        ..Case::new("e1000", "ahci-hd", 2)
    };
    play(bench, &case);
}

fn an_e1000_goes_on(bench: &Bench) {
    let case = Case {
        rounds: 2,
        ..Case::new("e1000", "virtio-blk", 2)
    };
    play(bench, &case);
}

fn goes_on_a_hundred_times(bench: &Bench) {
    let case = Case {
        rounds: 100,
        ..Case::new("virtio-net", "virtio-blk", 2)
    };
    play(bench, &case);
}
