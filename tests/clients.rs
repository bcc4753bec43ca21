// SPDX-License-Identifier: BSD-2-Clause

//! The loops of vm-bhyve (`lib/vm-run`) and CBSD (`share/bhyverun.sh`) around bhyve(8): what they pass, and what they make of its exit
//! status. Nothing is lost in them, and none comes to a point from which it cannot start the guest.

use vmm_tests::bench::Once;
use vmm_tests::host::image;
use vmm_tests::{Bench, Guest, guests, on_each_vmm};

on_each_vmm!(
    vm_bhyve_resumes_a_guest_once,
    vm_bhyve_resumes_a_guest_without_disks_once,
    a_checkpoint_that_is_past_is_refused_in_words,
    a_reboot_goes_back_only_in_words,
    cbsd_does_not_start_a_suspended_guest,
    a_cold_start_over_a_suspended_state_is_no_secret,
    a_monitor_ends_with_the_status_too,
    what_is_past_is_not_what_is_broken,
);

/// What libvirt looks for in what bhyve(8) says (`src/bhyve/bhyve_capabilities.c`): it believes in each device of which that is not said.
#[test]
fn libvirt_finds_out_what_is_not_built() {
    let bench = Bench::once(Once::NoGuest);
    let lacks = |model: &str| {
        let output = bench.run(&["-s", &format!("0,{model}")]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        errors.contains(&format!("pci slot 0:0: unknown device \"{model}\""))
    };
    let list = bench.run(&["-s", "help"]);
    let models = String::from_utf8(list.stdout).unwrap();
    for model in models.lines() {
        assert!(!lacks(model), "{model}");
    }
    for model in ["hda", "nvme", "virtio-9p", "virtio-scsi", "passthru"] {
        assert_eq!(
            lacks(model),
            !models.lines().any(|there| there == model),
            "{model}"
        );
    }
    let help = String::from_utf8(bench.run(&["-h"]).stderr).unwrap();
    assert!(help.contains("-u:") && !help.contains("-c vcpus"), "{help}");
    let password = bench.run(&["-s", "0,fbuf,password="]);
    let errors = String::from_utf8_lossy(&password.stderr);
    assert!(
        !errors.contains("Invalid fbuf emulation \"password\""),
        "{errors}"
    );
}

/// A guest that types back what it is typed, resets for `r`, powers off for `q`, and says `up` when it starts.
fn machine(bench: &Bench, disk: Option<&str>, more: &[&str]) -> Vec<String> {
    let slot = disk.map(|disk| format!("3,virtio-blk,{disk}"));
    let mut options: Vec<&str> = slot.iter().flat_map(|slot| ["-s", slot.as_str()]).collect();
    options.extend(more);
    bench.machine(&guests::typed(), &options)
}

/// One turn of a loop that passes `-r` whenever there is a saved state, as vm-bhyve does.
fn turn(bench: &Bench, machine: &[String]) -> Guest {
    let mut args = machine.to_vec();
    if bench.path("vm.save").exists() {
        args.extend(["-r".to_owned(), bench.text("vm.save")]);
    }
    args.push("vm".to_owned());
    bench.start(&args)
}

fn suspend(bench: &Bench, guest: &mut Guest) -> Option<i32> {
    let output = bench.ctl(&["--vm=vm", "--suspend=vm.save"]);
    assert!(output.status.success(), "{output:?}");
    guest.wait().code()
}

/// What a guest does to its disk, as far as a checkpoint can tell.
fn write(disk: &str) {
    std::fs::write(disk, vec![1; 1 << 20]).unwrap();
}

fn types_back(guest: &mut Guest) {
    guest.send("x");
    guest.expect("x");
    assert!(!guest.console().contains("up"), "it was started anew");
}

fn vm_bhyve_resumes_a_guest_once(bench: &Bench) {
    let disk = image(bench, "disk", 1 << 20);
    resumes_once(bench, Some(&disk));
}

fn vm_bhyve_resumes_a_guest_without_disks_once(bench: &Bench) {
    resumes_once(bench, None);
}

fn resumes_once(bench: &Bench, disk: Option<&str>) {
    let machine = machine(bench, disk, &["-o", "snapshot.stale=boot"]);
    let mut guest = turn(bench, &machine);
    guest.expect("up\n");
    assert_eq!(suspend(bench, &mut guest), Some(0));
    let mut guest = turn(bench, &machine);
    types_back(&mut guest);
    if let Some(path) = disk {
        write(path);
    }
    guest.send("r");
    assert_eq!(guest.wait().code(), Some(0), "{}", guest.errors());
    assert_eq!(guest.errors(), "");
    // The state is still there, and passed each time.
    for _ in 0..2 {
        let mut guest = turn(bench, &machine);
        guest.expect("up\n");
        guest.send("r");
        assert_eq!(guest.wait().code(), Some(0), "{}", guest.errors());
        let errors = guest.errors();
        assert!(
            errors.contains("starting without the checkpoint"),
            "{errors}"
        );
    }
    // A new suspension counts again.
    let mut guest = turn(bench, &machine);
    guest.expect("up\n");
    assert_eq!(suspend(bench, &mut guest), Some(0));
    let mut guest = turn(bench, &machine);
    types_back(&mut guest);
    guest.send("q");
    assert_eq!(guest.wait().code(), Some(1), "{}", guest.errors());
}

/// Status 1 would be that of a guest that has powered itself off.
fn a_checkpoint_that_is_past_is_refused_in_words(bench: &Bench) {
    let disk = image(bench, "disk", 1 << 20);
    let machine = machine(bench, Some(&disk), &[]);
    let mut guest = turn(bench, &machine);
    guest.expect("up\n");
    suspend(bench, &mut guest);
    types_back(&mut turn(bench, &machine));
    write(&disk);
    let mut guest = turn(bench, &machine);
    assert_eq!(guest.wait().code(), Some(4));
    let errors = guest.errors();
    assert_eq!(errors.trim_end().lines().count(), 1, "{errors}");
    let parts = [
        "vm.save",
        disk.as_str(),
        "has been written",
        "start without -r, or delete it",
    ];
    let found: Vec<_> = parts.iter().filter_map(|part| errors.find(part)).collect();
    assert!(found.len() == parts.len() && found.is_sorted(), "{errors}");
    let force = errors
        .find("snapshot.disks=force")
        .expect("what else there is");
    assert!(
        found.iter().all(|at| *at < force),
        "the safe way comes first: {errors}"
    );
    // As it says.
    let without = [&machine[..], &["vm".to_owned()]].concat();
    bench.start(&without).expect("up\n");
}

/// A state without disks is continued as often as one likes, so a loop that passes `-r` each time takes the guest back.
fn a_reboot_goes_back_only_in_words(bench: &Bench) {
    let machine = machine(bench, None, &[]);
    let mut guest = turn(bench, &machine);
    guest.expect("up\n");
    suspend(bench, &mut guest);
    for _ in 0..2 {
        let mut guest = turn(bench, &machine);
        types_back(&mut guest);
        guest.send("r");
        assert_eq!(guest.wait().code(), Some(0));
        let errors = guest.errors();
        assert!(errors.contains("start it without -r"), "{errors}");
    }
}

/// CBSD starts the guest again after status 0, and stops after 1.
fn cbsd_does_not_start_a_suspended_guest(bench: &Bench) {
    let disk = image(bench, "disk", 1 << 20);
    let flags = ["-o", "snapshot.exit_status=1", "-o", "snapshot.stale=boot"];
    let machine = machine(bench, Some(&disk), &flags);
    let mut guest = turn(bench, &machine);
    guest.expect("up\n");
    guest.send("r");
    assert_eq!(guest.wait().code(), Some(0), "a reboot is a reboot");
    let mut guest = turn(bench, &machine);
    guest.expect("up\n");
    assert_eq!(suspend(bench, &mut guest), Some(1));
    // bstart checkpoint=NAME, and all that its loop passes again.
    let mut guest = turn(bench, &machine);
    types_back(&mut guest);
    write(&disk);
    guest.send("r");
    assert_eq!(guest.wait().code(), Some(0));
    let mut guest = turn(bench, &machine);
    guest.expect("up\n");
    // The checkpoint has the variable, and the command line another one.
    assert_eq!(suspend(bench, &mut guest), Some(1));
    for (options, status) in [(&[][..], 1), (&["-o", "snapshot.exit_status=200"], 200)] {
        let args = [options, &["-r", "vm.save"]].concat();
        let mut guest = bench.start(&args);
        types_back(&mut guest);
        assert_eq!(suspend(bench, &mut guest), Some(status));
    }
}

fn a_cold_start_over_a_suspended_state_is_no_secret(bench: &Bench) {
    let disk = image(bench, "disk", 1 << 20);
    let file = format!("snapshot.file={}", bench.text("vm.save"));
    let machine = machine(bench, Some(&disk), &["-o", &file, "vm"]);
    let cold = || {
        let mut guest = bench.start(&machine);
        guest.expect("up\n");
        guest
    };
    let said = |mut guest: Guest| {
        guest.send("q");
        assert_eq!(guest.wait().code(), Some(1));
        guest.errors()
    };
    let mut guest = cold();
    suspend(bench, &mut guest);
    assert_eq!(guest.errors(), "", "there was no state");
    let errors = said(cold());
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(
        errors.contains("vm.save holds a suspended state of vm"),
        "{errors}"
    );
    // The disks have gone on: nothing is left to go on from.
    write(&disk);
    assert_eq!(said(cold()), "");
}

fn a_monitor_ends_with_the_status_too(bench: &Bench) {
    let flags = [
        "-M",
        "-o",
        "snapshot.exit_status=7",
        "-o",
        "snapshot.stale=boot",
    ];
    let machine = machine(bench, None, &flags);
    let mut guest = turn(bench, &machine);
    guest.expect("up\n");
    guest.send("r");
    guest.expect("up\n");
    assert_eq!(suspend(bench, &mut guest), Some(7));
    let mut guest = turn(bench, &machine);
    types_back(&mut guest);
    guest.send("r");
    guest.expect("up\n");
    guest.send("q");
    assert_eq!(guest.wait().code(), Some(1), "{}", guest.errors());
    let mut guest = turn(bench, &machine);
    guest.expect("up\n");
    guest.send("q");
    assert_eq!(guest.wait().code(), Some(1), "{}", guest.errors());
}

/// A checkpoint that is damaged, or of another machine, is refused, whatever is made of one that is past.
fn what_is_past_is_not_what_is_broken(bench: &Bench) {
    let machine = machine(bench, None, &["-o", "snapshot.stale=boot"]);
    let mut guest = turn(bench, &machine);
    guest.expect("up\n");
    suspend(bench, &mut guest);
    let kern = bench.path("vm.save.kern");
    let good = std::fs::read(&kern).unwrap();
    std::fs::write(&kern, &good[1..]).unwrap();
    let mut guest = turn(bench, &machine);
    assert_eq!(guest.wait().code(), Some(4));
    assert!(
        guest.errors().contains("vm.save.kern"),
        "{}",
        guest.errors()
    );
}
