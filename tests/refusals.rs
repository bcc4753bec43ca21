// SPDX-License-Identifier: BSD-2-Clause

//! What cannot be done is refused: one line that names the thing, the documented exit status, and nothing lost.

use std::process::Output;

use vmm_tests::bench::Once;
use vmm_tests::host::{free_port, image};
use vmm_tests::{Bench, Guest, guests, on_each_vmm};
use vmmapi::checkpoint::{CpuContract, Meta};

on_each_vmm!(
    command_lines,
    options_that_no_device_has,
    a_name_in_use,
    a_checkpoint_that_cannot_be_written,
    names_that_are_taken,
    a_full_disk,
    damaged_checkpoints,
    machines_that_are_not_the_checkpoints,
    processors_that_are_not_the_checkpoints,
    disks_that_have_moved_on,
    disks_that_no_restore_could_have,
    discs_that_are_others,
    checkpoints_of_strangers,
    a_disk_that_has_grown,
);
#[cfg(target_os = "linux")]
on_each_vmm!(memory_that_cannot_be_wired, a_limit_of_file_sizes);
#[cfg(target_os = "linux")]
on_each_vmm!(devices_that_a_guest_has_gone_on_with);

/// One line on standard error that contains every one of `named`, and that exit status.
fn refused(output: &Output, status: i32, named: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{errors}");
    assert_eq!(
        errors.trim_end().lines().count(),
        1,
        "more or less than one line:\n{errors}"
    );
    for name in named {
        assert!(errors.contains(name), "{name:?} is not named: {errors}");
    }
}

const MACHINE: [&str; 6] = ["-s", "0,hostbridge", "-s", "31,lpc", "-l", "com1,stdio"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = MACHINE.to_vec();
    args.extend(more);
    args
}

fn running(bench: &Bench, name: &str) -> Guest {
    let mut guest = bench.start(&bench.machine(&guests::nonce(), &[name]));
    guest.expect("\n");
    guest
}

fn command_lines(bench: &Bench) {
    let kernel = bench.kernel("guest", &guests::nonce());
    let boot = format!("boot.kernel={kernel}");
    bench.kernel("text", b"this is no kernel, whatever it says");
    let cases: &[(&[&str], i32, &[&str])] = &[
        (
            &["-s", "3,nonsense"],
            4,
            &["pci slot 3:0: unknown device \"nonsense\""],
        ),
        (&["-s", "33,virtio-rnd"], 4, &["33"]),
        (&["-s", "3:9,virtio-rnd"], 4, &["3:9"]),
        (&["-s", "0,virtio-rnd"], 4, &["0:0:0 already occupied"]),
        (&["-l", "com9,stdio"], 4, &["com9"]),
        (
            &["-s", "3,virtio-blk,/nowhere/at/all.img"],
            4,
            &["/nowhere/at/all.img"],
        ),
        (&["-s", "3,virtio-blk"], 4, &["virtio-blk"]),
        (&["-s", "3,nvme,/dev/null"], 4, &["nvme"]),
        (&["-m", "a lot"], 4, &["a lot"]),
        (&["-m", "0"], 4, &["memory"]),
        (&["-m", "900T"], 4, &["900T"]),
        (&["-c", "cpus=3,sockets=2"], 4, &["cpus"]),
        (&["-c", "99999"], 4, &["99999"]),
        (&["-c", "65"], 4, &["cpus=65 (-c)", "at most 64"]),
        (
            &["-o", "boot.kernel=/nowhere/vmlinuz"],
            4,
            &["/nowhere/vmlinuz"],
        ),
        (&["-o", "boot.kernel=text"], 4, &["text", "kernel"]),
        (
            &["-o", "boot.initrd=/nowhere/initrd"],
            4,
            &["/nowhere/initrd"],
        ),
        (&["-o", "vmm=tea"], 4, &["tea"]),
        (&["-o", "vmm.clock=sundial"], 4, &["sundial"]),
        (&["-o", "rundir=/nowhere/run"], 4, &["/nowhere/run"]),
        (&["-r", "/nowhere/state"], 4, &["/nowhere/state"]),
        (&["-k", "/nowhere/config"], 4, &["/nowhere/config"]),
    ];
    for (more, status, named) in cases {
        let mut args = with(&["-m", "64M", "-o", &boot]);
        args.extend(*more);
        args.push("vm");
        let output = bench.run(&args);
        eprintln!("{more:?}");
        refused(&output, *status, named);
    }
}

/// As upstream they are no error, but they do not go unnoticed; and none of the options that there are is taken for one of them.
fn options_that_no_device_has(bench: &Bench) {
    let [disk, sata, cd] = ["disk", "sata", "cd"].map(|name| image(bench, name, 1 << 20));
    let models = [
        format!(
            "3,virtio-blk,{disk},nocache,direct,ro,nodelete,sectorsize=512/4096,ser=a,bootindex=1"
        ),
        format!("4,ahci,hd:{sata},cd:{cd},cd:"),
        format!("5,ahci-hd,{disk},ro,ser=a,rev=1,model=b,nmrr=7200,bootindex=2"),
        "6,virtio-net,slirp,open,mtu=1500,mac=58:9c:fc:00:00:01".to_owned(),
        "7,e1000,slirp,mac=58:9c:fc:00:00:02".to_owned(),
        format!("8,virtio-console,port1={}", bench.text("port")),
        format!(
            "9,fbuf,tcp=127.0.0.1:{},w=800,h=600,vga=io,password=secret",
            free_port()
        ),
        "10,xhci,tablet".to_owned(),
        "11,virtio-rnd".to_owned(),
    ];
    let mut more: Vec<&str> = models.iter().flat_map(|model| ["-s", model]).collect();
    more.push("vm");
    let mut guest = bench.start(&bench.machine(&guests::poweroff(), &more));
    assert_eq!(guest.wait().code(), Some(1), "{}", guest.errors());
    assert_eq!(guest.errors(), "");

    let misspelt = ["-s", "3,virtio-rnd,speling=1", "vm"];
    let mut guest = bench.start(&bench.machine(&guests::poweroff(), &misspelt));
    assert_eq!(guest.wait().code(), Some(1), "{}", guest.errors());
    let errors = guest.errors();
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.contains("pci.0.3.0.speling"), "{errors}");
}

/// With a privilege that lets it lock what it likes, there is nothing to refuse: it is given up first.
#[cfg(target_os = "linux")]
fn memory_that_cannot_be_wired(bench: &Bench) {
    let kernel = format!("boot.kernel={}", bench.kernel("guest", &guests::nonce()));
    let bhyve = bench.bhyve(&with(&["-S", "-m", "64M", "-o", &kernel, "vm"]));
    let script = "ulimit -l 1024; drop=; [ $(id -u) = 0 ] && drop='setpriv --bounding-set=-ipc_lock'; exec $drop \"$@\"";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script, "sh"]).arg(bhyve.get_program());
    let output = command.args(bhyve.get_args()).output().unwrap();
    refused(
        &output,
        4,
        &["memory.wired", "64M", "RLIMIT_MEMLOCK is 1048576 bytes"],
    );
    let left: Vec<_> = std::fs::read_dir(bench.path("run")).unwrap().collect();
    assert!(left.is_empty(), "left in the rundir: {left:?}");
}

fn a_name_in_use(bench: &Bench) {
    let mut guest = running(bench, "vm");
    let kernel = format!("boot.kernel={}", bench.text("guest"));
    refused(
        &bench.run(&with(&["-m", "64M", "-o", &kernel, "vm"])),
        4,
        &["vm", "in use"],
    );
    assert!(guest.is_running());
    guest.expect("\n");
}

#[test]
fn vms_that_are_not_there() {
    let bench = Bench::once(Once::NoGuest);
    for option in [
        "--destroy",
        "--get-all",
        "--suspend=x",
        "--checkpoint=x",
        "--inject-nmi",
    ] {
        let output = bench.ctl(&["--vm=nobody", option]);
        assert_eq!(output.status.code(), Some(1), "{option}: {output:?}");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("nobody"), "{option}: {errors}");
    }
}

fn a_checkpoint_that_cannot_be_written(bench: &Bench) {
    let mut guest = running(bench, "vm");
    let good = bench.ctl(&["--vm=vm", "--checkpoint=state"]);
    assert!(good.status.success(), "{good:?}");
    refused(
        &bench.ctl(&["--vm=vm", "--suspend=/nowhere/at/all/state"]),
        1,
        &["/nowhere/at/all"],
    );
    // A directory has the name that the memory is to have.
    std::fs::create_dir(bench.path("dir.new")).unwrap();
    refused(&bench.ctl(&["--vm=vm", "--suspend=dir"]), 1, &["dir"]);
    guest.expect("\n");
    assert!(guest.is_running());
    let verified = bench.ctl(&["--checkpoint-verify=state"]);
    assert!(verified.status.success(), "{verified:?}");
}

/// A name given by mistake costs nothing: not the VM's own files, and not anybody else's.
fn names_that_are_taken(bench: &Bench) {
    let disk = image(bench, "disk", 1 << 20);
    let cd = image(bench, "vm.new", 1 << 20);
    std::fs::write(bench.path("initrd"), "an initrd").unwrap();
    let initrd = format!("boot.initrd={}", bench.text("initrd"));
    let slots = [format!("3,virtio-blk,{disk}"), format!("4,ahci-cd,{cd}")];
    let more = ["-s", &slots[0], "-s", &slots[1], "-o", &initrd, "vm"];
    let mut guest = bench.start(&bench.machine(&guests::nonce(), &more));
    guest.expect("\n");
    std::fs::hard_link(&disk, bench.path("hard")).unwrap();
    std::os::unix::fs::symlink(&disk, bench.path("soft.kern")).unwrap();
    std::fs::write(bench.path("notes.commit"), "my notes").unwrap();
    std::fs::create_dir(bench.path("directory")).unwrap();
    let list = || {
        let entries = std::fs::read_dir(bench.path("")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = list();
    for (name, why) in [
        ("disk", "disk exists and is a disk"),
        ("hard", "hard exists and is a disk"),
        ("vm", "vm.new exists and is a disk"),
        ("soft", "soft.kern exists and is not a regular file"),
        ("guest", "guest exists and is not"),
        ("initrd", "initrd exists and is not"),
        ("notes", "notes.commit exists and is not"),
        ("directory", "directory exists and is a directory"),
    ] {
        for option in ["checkpoint", "suspend"] {
            let output = bench.ctl(&["--vm=vm", &format!("--{option}={name}")]);
            refused(&output, 1, &[why, "choose another name"]);
        }
        assert_eq!(list(), before, "{name}");
    }
    guest.expect("\n");
    // An older checkpoint of ours is replaced, but for one that is a disk by now.
    for _ in 0..2 {
        let good = bench.ctl(&["--vm=vm", "--checkpoint=state"]);
        assert!(good.status.success(), "{good:?}");
    }
    drop(guest);
    let slot = format!("3,virtio-blk,{},ro", bench.text("state"));
    let mut guest = bench.start(&bench.machine(&guests::nonce(), &["-s", &slot, "vm"]));
    guest.expect("\n");
    let output = bench.ctl(&["--vm=vm", "--checkpoint=state"]);
    refused(&output, 1, &["state exists and is a disk"]);
    guest.expect("\n");
    // Whatever was refused, the disk is as it was.
    assert_eq!(std::fs::read(&disk).unwrap(), vec![0; 1 << 20]);
}

/// A limit that the memory file does not fit in costs the checkpoint and not the guest. Here the guest's memory is a file, too, so
/// the limit comes when that is there.
#[cfg(target_os = "linux")]
fn a_limit_of_file_sizes(bench: &Bench) {
    let mut guest = running(bench, "vm");
    let pid = guest.pid().to_string();
    let limited = std::process::Command::new("prlimit")
        .args(["--pid", &pid, "--fsize=1048576"])
        .status();
    assert!(limited.is_ok_and(|status| status.success()));
    let output = bench.ctl(&["--vm=vm", "--suspend=state"]);
    refused(&output, 1, &["state.new", "File too large"]);
    assert!(!bench.path("state.new").exists());
    guest.expect("\n");
}

fn a_full_disk(bench: &Bench) {
    let mount = bench.path("full");
    std::fs::create_dir(&mount).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16k", "none"])
        .arg(&mount)
        .output();
    if !mounted.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: this user cannot mount a small file system");
        return;
    }
    let mut guest = running(bench, "vm");
    let output = bench.ctl(&["--vm=vm", "--suspend=full/state"]);
    let left = std::fs::read_dir(&mount).unwrap().count();
    let unmounted = std::process::Command::new("umount").arg(&mount).status();
    refused(&output, 1, &["state", "No space left"]);
    assert_eq!(left, 0, "something is left of the checkpoint that failed");
    assert!(unmounted.is_ok_and(|s| s.success()));
    guest.expect("\n");
    let good = bench.ctl(&["--vm=vm", "--suspend=state"]);
    assert!(good.status.success(), "{good:?}");
    assert_eq!(guest.wait().code(), Some(0));
}

fn damaged_checkpoints(bench: &Bench) {
    for name in ["a", "b"] {
        let mut guest = running(bench, name);
        assert!(
            bench
                .ctl(&[&format!("--vm={name}"), &format!("--suspend={name}")])
                .status
                .success()
        );
        guest.wait();
    }
    for suffix in ["", ".kern", ".dev", ".meta"] {
        let path = bench.path(&format!("a{suffix}"));
        let good = std::fs::read(&path).unwrap();
        let file = format!("a{suffix}");
        for at in [0, good.len() / 3, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, bad).unwrap();
            refused(&bench.run(&["-r", "a"]), 4, &[&file]);
            refused(&bench.ctl(&["--checkpoint-verify=a"]), 1, &[&file]);
        }
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        refused(&bench.run(&["-r", "a"]), 4, &[&file]);
        if suffix != ".meta" {
            std::fs::copy(bench.path(&format!("b{suffix}")), &path).unwrap();
            refused(&bench.run(&["-r", "a"]), 4, &[&file]);
        }
        std::fs::remove_file(&path).unwrap();
        refused(&bench.run(&["-r", "a"]), 4, &[&file]);
        std::fs::write(&path, &good).unwrap();
    }
    let mut guest = bench.start(&["-r", "a"]);
    guest.expect("\n");
}

fn machines_that_are_not_the_checkpoints(bench: &Bench) {
    let mut guest = running(bench, "vm");
    assert!(bench.ctl(&["--vm=vm", "--suspend=state"]).status.success());
    guest.wait();
    for (options, named) in [
        (&["-s", "5,virtio-rnd"][..], "pci.0.5.0"),
        (&["-s", "31,hostbridge"], "pci.0.31.0"),
    ] {
        let mut args = options.to_vec();
        args.extend(["-r", "state"]);
        refused(&bench.run(&args), 4, &[named]);
    }
    // What the guest sees of the machine stays, and one line says so; what it does not see is taken.
    for (options, named) in [
        (&["-c", "2"][..], Some("cpus")),
        (&["-m", "128M"], Some("memory.size=128M")),
        (&["-o", "vmm.clock=instructions"], Some("vmm.clock")),
        (&["-o", "boot.cmdline=quiet"], Some("boot.cmdline")),
        (&["-HPwCu", "-p", "0:0"], None),
    ] {
        let mut args = options.to_vec();
        args.extend(["-r", "state"]);
        let mut guest = bench.start(&args);
        guest.expect("\n");
        let errors = guest.errors();
        assert_eq!(errors.lines().count(), named.iter().count(), "{errors}");
        if let Some(name) = named {
            assert!(
                errors.contains(name) && errors.contains("is not taken"),
                "{errors}"
            );
        }
    }
    // The same again, as clients repeat it, contradicts nothing.
    let kernel = format!("boot.kernel={}", bench.text("guest"));
    let mut guest = bench.start(&with(&[
        "-c", "1", "-m", "64M", "-o", &kernel, "-r", "state", "vm",
    ]));
    guest.expect("\n");
}

/// A guest goes on only with the processor that it was told it has.
fn processors_that_are_not_the_checkpoints(bench: &Bench) {
    let mut guest = running(bench, "vm");
    assert!(bench.ctl(&["--vm=vm", "--suspend=state"]).status.success());
    guest.wait();
    let path = bench.path("state.meta");
    let good = std::fs::read(&path).unwrap();
    let meta = Meta::from_text("state.meta", &good).unwrap();
    // A kernel does not tell what it adds to the host's processor.
    let (other, own) = match meta.cpu.vmm.as_str() {
        "kernel" => ("soft", None),
        _ => ("kernel", Some("40000000.0=")),
    };
    let leaves = ["0.0=", "1.0=", "7.0=", "d.0=", "80000001.0="];
    for leaf in leaves.into_iter().chain(own) {
        let known = meta.cpu.cpuid.iter().any(|entry| entry.starts_with(leaf));
        assert!(known, "{leaf} is not in {:?}", meta.cpu.cpuid);
    }
    let refused_with = |change: &dyn Fn(&mut CpuContract), named: &[&str]| {
        let mut changed = meta.clone();
        change(&mut changed.cpu);
        assert_ne!(changed, meta);
        std::fs::write(&path, changed.to_text()).unwrap();
        refused(&bench.run(&["-r", "state"]), 4, named);
    };
    refused_with(
        &|cpu| cpu.vendor = "GenuineIntel".to_owned(),
        &["GenuineIntel", "AuthenticAMD"],
    );
    refused_with(&|cpu| cpu.layout = "vmx".to_owned(), &["vmx", "svm"]);
    refused_with(&|cpu| cpu.vmm = other.to_owned(), &["kernel", "soft"]);
    refused_with(&|cpu| cpu.tsc_hz *= 2, &["TSC", "2000000000", "1000000000"]);
    // One feature more or less, in any word of any leaf.
    for index in 0..meta.cpu.cpuid.len() {
        // How many leaves a hypervisor has is not compared.
        let named = meta.cpu.cpuid[index].starts_with("40000000.");
        let words = ["EAX", "EBX", "ECX", "EDX"].into_iter().enumerate();
        for (word, register) in words.skip(named.into()) {
            refused_with(
                &|cpu| flip(&mut cpu.cpuid[index], word),
                &["CPUID leaf", register],
            );
        }
    }
    refused_with(&|cpu| cpu.cpuid[0].push('0'), &["CPUID"]);
    refused_with(&|cpu| cpu.cpuid[0].push_str(":1"), &["CPUID entry"]);
    // A rate that is not known contradicts nothing.
    let mut unknown = meta.clone();
    unknown.cpu.tsc_hz = 0;
    std::fs::write(&path, unknown.to_text()).unwrap();
    let mut guest = bench.start(&["-r", "state"]);
    guest.expect("\n");
}

/// Turns over the lowest bit of one word of `leaf.subleaf=eax:ebx:ecx:edx`.
fn flip(entry: &mut String, word: usize) {
    let (name, words) = entry.split_once('=').unwrap();
    let mut words: Vec<u32> = words
        .split(':')
        .map(|word| u32::from_str_radix(word, 16).unwrap())
        .collect();
    words[word] ^= 1;
    let words: Vec<String> = words.iter().map(|word| format!("{word:x}")).collect();
    *entry = format!("{name}={}", words.join(":"));
}

/// Stale memory never meets a newer disk.
fn disks_that_have_moved_on(bench: &Bench) {
    let disk = bench.text("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let kernel = format!("boot.kernel={}", bench.kernel("guest", &guests::nonce()));
    let slot = format!("3,virtio-blk,{disk}");
    let mut guest = bench.start(&with(&["-m", "64M", "-o", &kernel, "-s", &slot, "vm"]));
    guest.expect("\n");
    assert!(bench.ctl(&["--vm=vm", "--suspend=state"]).status.success());
    guest.wait();
    let mut guest = bench.start(&["-r", "state"]);
    guest.expect("\n");
    drop(guest);
    std::fs::write(&disk, vec![1; 1 << 20]).unwrap();
    refused(
        &bench.run(&["-r", "state"]),
        4,
        &[&disk, "snapshot.disks=force"],
    );
    std::fs::write(&disk, vec![1; 2 << 20]).unwrap();
    refused(&bench.run(&["-r", "state"]), 4, &[&disk]);
    std::fs::write(&disk, vec![1; 1 << 20]).unwrap();
    let mut guest = bench.start(&["-o", "snapshot.disks=force", "-r", "state"]);
    guest.expect("\n");
}

/// What the guest cannot write is what it was given, too.
fn discs_that_are_others(bench: &Bench) {
    let disc = image(bench, "disc", 1 << 20);
    for slot in [
        format!("3,virtio-blk,{disc},ro"),
        format!("3,ahci-cd,{disc}"),
    ] {
        let mut guest = bench.start(&bench.machine(&guests::nonce(), &["-s", &slot, "vm"]));
        guest.expect("\n");
        assert!(bench.ctl(&["--vm=vm", "--suspend=state"]).status.success());
        guest.wait();
        bench.start(&["-r", "state"]).expect("\n");
        std::fs::remove_file(&disc).unwrap();
        image(bench, "disc", 1 << 20);
        let output = bench.run(&["-r", "state"]);
        refused(
            &output,
            4,
            &[&disc, "since the checkpoint", "start without -r"],
        );
        bench
            .start(&["-o", "snapshot.disks=force", "-r", "state"])
            .expect("\n");
    }
}

/// A checkpoint names what is opened, so it is shown what that is, and to whom the checkpoint belongs.
fn checkpoints_of_strangers(bench: &Bench) {
    let disk = image(bench, "disk", 1 << 20);
    let slot = format!("3,virtio-blk,{disk},ro");
    let trust = ["-s", &slot, "-o", "snapshot.trust=yes", "vm"];
    let mut guest = bench.start(&bench.machine(&guests::nonce(), &trust));
    guest.expect("\n");
    assert!(bench.ctl(&["--vm=vm", "--suspend=state"]).status.success());
    guest.wait();
    let opens = format!("pci.0.3.0.path={disk}");
    let not_restored = |whose: &str| {
        let named = [whose, "lpc.com1.path=stdio", &opens, "snapshot.trust=yes"];
        refused(&bench.run(&["-r", "state"]), 4, &named);
        let mut guest = bench.start(&["-o", "snapshot.trust=yes", "-r", "state"]);
        guest.expect("\n");
        drop(guest);
        // What is given is no news.
        let given = ["-s", &slot, "-l", "com1,stdio", "-r", "state"];
        let output = bench.run(&given);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{errors}");
        assert!(
            !errors.contains(&opens) && !errors.contains("com1"),
            "{errors}"
        );
    };
    let mode = |name: &str, mode| {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(bench.path(name), mode).unwrap();
    };
    for name in ["state", "state.meta"] {
        mode(name, 0o602);
        not_restored("every user can write it");
        mode(name, 0o600);
    }
    for name in ["state", "state.kern", "state.dev", "state.meta"] {
        let give = |user| std::os::unix::fs::chown(bench.path(name), Some(user), None);
        if give(65534).is_err() {
            eprintln!("skipped: this user cannot give files away");
            return;
        }
        not_restored("user 65534's");
        give(0).unwrap();
    }
    let mut guest = bench.start(&["-r", "state"]);
    guest.expect("\n");
    assert_eq!(guest.errors(), "");
}

/// A guest whose disks do not lie where a restore would look for them goes on: it would be lost by a suspension.
fn disks_that_no_restore_could_have(bench: &Bench) {
    const SIZE: u64 = 1 << 20;
    let [disk, sata, cd] = ["disk", "sata", "cd"].map(|name| image(bench, name, SIZE));
    std::os::unix::fs::symlink("disk", bench.path("link")).unwrap();
    let slots = [
        format!("3,virtio-blk,{}", bench.text("link")),
        format!("4,ahci,hd:{sata},cd:{cd}"),
    ];
    let more = ["-s", &slots[0], "-s", &slots[1], "vm"];
    let mut guest = bench.start(&bench.machine(&guests::nonce(), &more));
    guest.expect("\n");
    let mut refused_with = |named: &[&str]| {
        for option in ["--checkpoint=state", "--suspend=state"] {
            refused(&bench.ctl(&["--vm=vm", option]), 1, named);
            assert!(!bench.path("state.new").exists() && !bench.path("state.meta").exists());
        }
        guest.expect("\n");
    };
    let aside = bench.text("aside");
    for (path, device) in [(&disk, "virtio-blk@pci.0.3.0"), (&sata, "ahci@pci.0.4.0")] {
        std::fs::rename(path, &aside).unwrap();
        let shown = if path == &disk { "link" } else { path };
        refused_with(&[device, shown, "not there any more"]);
        std::fs::copy(&aside, path).unwrap();
        refused_with(&[device, shown, "has been replaced"]);
        std::fs::rename(&aside, path).unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(SIZE / 2).unwrap();
        refused_with(&[device, shown, "has shrunk"]);
        file.set_len(SIZE).unwrap();
    }
    // A link that leads to another disk.
    std::fs::remove_file(bench.path("link")).unwrap();
    std::os::unix::fs::symlink("sata", bench.path("link")).unwrap();
    refused_with(&["virtio-blk@pci.0.3.0", "link"]);
    std::fs::remove_file(bench.path("link")).unwrap();
    std::os::unix::fs::symlink("disk", bench.path("link")).unwrap();
    std::fs::rename(&cd, &aside).unwrap();
    refused_with(&["ahci@pci.0.4.0", &cd]);
    // Another file of that size is not the disc; a faithful copy of it is.
    std::fs::copy(&aside, &cd).unwrap();
    refused_with(&["ahci@pci.0.4.0", &cd, "has been replaced"]);
    let changed = std::fs::metadata(&aside).unwrap().modified().unwrap();
    let copy = std::fs::File::options().write(true).open(&cd).unwrap();
    copy.set_modified(changed).unwrap();
    let good = bench.ctl(&["--vm=vm", "--suspend=state"]);
    assert!(good.status.success(), "{good:?}");
    assert_eq!(guest.wait().code(), Some(0));
    bench.start(&["-r", "state"]).expect("\n");
}

/// The guest goes on with the size that it knows.
fn a_disk_that_has_grown(bench: &Bench) {
    let disk = image(bench, "disk", 1 << 20);
    let sata = image(bench, "sata", 1 << 20);
    let slots = [format!("3,virtio-blk,{disk}"), format!("4,ahci-hd,{sata}")];
    let more = ["-s", &slots[0], "-s", &slots[1], "vm"];
    let mut guest = bench.start(&bench.machine(&guests::nonce(), &more));
    for size in [2 << 20, 3 << 20] {
        guest.expect("\n");
        for path in [&disk, &sata] {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_len(size).unwrap();
        }
        let good = bench.ctl(&["--vm=vm", "--suspend=state"]);
        assert!(good.status.success(), "{good:?}");
        assert_eq!(guest.wait().code(), Some(0));
        guest = bench.start(&["-r", "state"]);
    }
    guest.expect("\n");
}

/// A kernel without `options BHYVE_SNAPSHOT`, as FreeBSD ships it, saves nothing; that is found out before the guest is
/// made to wait.
#[test]
fn a_generic_kernel() {
    const LACKS: &str = "options BHYVE_SNAPSHOT";
    for vmm in [
        "standin-14-generic",
        "standin-15-generic",
        "standin-16-generic",
    ] {
        let bench = Bench::once(Once::On(vmm));
        let mut guest = telling(&bench);
        for option in ["--checkpoint=state", "--suspend=state"] {
            refused(&bench.ctl(&["--vm=vm", option]), 1, &["state", LACKS]);
        }
        guest.expect("\n");
        assert!(guest.is_running());
        assert!(!guest.errors().contains(HELD), "{}", guest.errors());
        let left = std::fs::read_dir(bench.path("")).unwrap();
        let left = left.filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("state")
        });
        assert_eq!(left.count(), 0);
    }
    // Where it can be done, the guest is held, and says so.
    let bench = Bench::once(Once::On("standin-15"));
    let mut guest = telling(&bench);
    let good = bench.ctl(&["--vm=vm", "--suspend=state"]);
    assert!(good.status.success(), "{good:?}");
    assert_eq!(guest.wait().code(), Some(0));
    assert!(guest.errors().contains(HELD), "{}", guest.errors());
    // Nor can it go on there.
    let output = bench.run(&["-o", "vmm=standin-15-generic", "-r", "state"]);
    refused(&output, 4, &[LACKS]);
}

/// The kernel of FreeBSD 14 ends a processor's struct before the MTRRs.
#[test]
fn another_kernels_struct() {
    for (there, here, sizes) in [
        ("standin-15", "standin-14", ["2056 bytes", "has 1544"]),
        ("standin-14", "standin-15", ["1544 bytes", "has 2056"]),
    ] {
        let bench = Bench::once(Once::On(there));
        let mut guest = bench.start(&bench.machine(&guests::nonce(), &["-c", "2", "vm"]));
        guest.expect("\n");
        let asked = bench.ctl(&["--vm=vm", "--suspend=state"]);
        assert!(asked.status.success(), "{asked:?}");
        assert_eq!(guest.wait().code(), Some(0));
        let output = bench.run(&["-o", &format!("vmm={here}"), "-r", "state"]);
        refused(&output, 4, &["vmcx", sizes[0], sizes[1], "another kernel"]);
    }
}

/// What bhyve(8) says when it makes a guest wait.
const HELD: &str = "holding the processors";

/// A running guest whose bhyve(8) says what it does.
fn telling(bench: &Bench) -> Guest {
    let mut guest = bench.start_telling("debug", &bench.machine(&guests::nonce(), &["vm"]));
    guest.expect("\n");
    guest
}

/// FreeBSD 13's vmm(4) has another ABI, and is past its end of life.
#[test]
fn an_old_kernel() {
    let bench = Bench::once(Once::On("standin-13"));
    let kernel = format!("boot.kernel={}", bench.kernel("guest", &guests::nonce()));
    let output = bench.run(&with(&["-m", "64M", "-o", &kernel, "vm"]));
    refused(&output, 4, &["FreeBSD 13", "too old"]);
}

/// What one kind of vmm has saved is not taken for another's.
#[test]
fn a_checkpoint_of_another_vmm() {
    for (from, to) in [("standin-14", "soft"), ("soft", "standin-15")] {
        let bench = Bench::once(Once::On(from));
        let mut guest = running(&bench, "vm");
        assert!(bench.ctl(&["--vm=vm", "--suspend=state"]).status.success());
        guest.wait();
        let to = format!("vmm={to}");
        refused(
            &bench.run(&["-o", &to, "-r", "state"]),
            4,
            &["vmm", "kernel", "soft"],
        );
    }
}

/// A file as a block device, for as long as this value lives.
#[cfg(target_os = "linux")]
struct Loop(String);

#[cfg(target_os = "linux")]
impl Loop {
    /// None where this user has no such devices.
    fn new(file: &str) -> Option<Loop> {
        let output = std::process::Command::new("losetup")
            .args(["--find", "--show", file])
            .output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(Loop(
            String::from_utf8(output.stdout).ok()?.trim().to_owned(),
        ))
    }
}

#[cfg(target_os = "linux")]
impl Drop for Loop {
    fn drop(&mut self) {
        // The test has told what matters.
        let _ = std::process::Command::new("losetup")
            .args(["--detach", &self.0])
            .status();
    }
}

/// A device does not tell when it was written: a bhyve that goes on with it says so beside the checkpoint.
#[cfg(target_os = "linux")]
fn devices_that_a_guest_has_gone_on_with(bench: &Bench) {
    let image = bench.text("disk");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let Some(device) = Loop::new(&image) else {
        eprintln!("skipped: this user cannot make a block device");
        return;
    };
    let kernel = format!("boot.kernel={}", bench.kernel("guest", &guests::nonce()));
    let slot = format!("3,virtio-blk,{}", device.0);
    let machine = ["-m", "64M", "-o", &kernel, "-s", &slot, "vm"];
    let mut guest = bench.start(&with(&machine));
    guest.expect("\n");
    let mark = bench.path("state.resumed");
    let refused_device = || {
        refused(
            &bench.run(&["-r", "state"]),
            4,
            &["restore state", &device.0, "snapshot.disks=force"],
        );
    };
    // The guest went on with it.
    assert!(
        bench
            .ctl(&["--vm=vm", "--checkpoint=state"])
            .status
            .success()
    );
    refused_device();
    // It stopped for good, and goes on once.
    assert!(bench.ctl(&["--vm=vm", "--suspend=state"]).status.success());
    guest.wait();
    assert!(!mark.exists());
    let mut guest = bench.start(&["-r", "state"]);
    guest.expect("\n");
    assert!(mark.exists());
    drop(guest);
    refused_device();
    let info = bench.ctl(&["--checkpoint-info=state"]);
    assert!(
        String::from_utf8_lossy(&info.stdout).contains("resumed"),
        "{info:?}"
    );
    let mut guest = bench.start(&["-o", "snapshot.disks=force", "-r", "state"]);
    guest.expect("\n");
    // A new state of that name begins anew.
    assert!(bench.ctl(&["--vm=vm", "--suspend=state"]).status.success());
    guest.wait();
    assert!(!mark.exists());
    let mut guest = bench.start(&["-r", "state"]);
    guest.expect("\n");
    drop(guest);
    // A disk that the guest cannot write needs no mark.
    let slot = format!("3,virtio-blk,{},ro", device.0);
    let mut guest = bench.start(&with(&["-m", "64M", "-o", &kernel, "-s", &slot, "vm"]));
    guest.expect("\n");
    assert!(
        bench
            .ctl(&["--vm=vm", "--checkpoint=state"])
            .status
            .success()
    );
    drop(guest);
    for _ in 0..2 {
        let mut guest = bench.start(&["-r", "state"]);
        guest.expect("\n");
    }
    assert!(!mark.exists());
}
