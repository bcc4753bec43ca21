//! The usage text. libvirt looks for an option it may use as `-x:` in it, so every line has that form.

/// What `-h` and a wrong command line print on stderr.
pub fn usage() -> &'static str {
    "\
Usage: bhyve [-AaCDeHhIMPSuWwxY]
             [-c [[cpus=]numcpus][,sockets=n][,cores=n][,threads=n]]
             [-G [w][bind_address:]port] [-K layout] [-k config_file]
             [-l help|lpcdevice[,conf]] [-m mem] [-n id=n,size=mem,cpus=list]
             [-o var=value] [-p vcpu:hostcpu] [-r checkpoint]
             [-s help|slot,device[,conf]] [-U uuid] vmname
       bhyve -r checkpoint [options] [vmname]
       -A: accepted and ignored; ACPI tables are always there
       -a: local APICs in xAPIC mode (the default)
       -C: keep guest memory in core files
       -c: number and arrangement of virtual processors
       -D: destroy the virtual machine when the guest powers off
       -e: exit when the guest uses an I/O port that nothing answers at
       -f: fw_cfg item (needs fwcfg=qemu)
       -G: port of the debug server
       -H: leave the guest when a virtual processor halts
       -h: this help
       -I: accepted and ignored; the I/O APIC is always there
       -K: keyboard layout of the frame buffer
       -k: file with lines of the form variable=value
       -l: device on the LPC bus
       -M: stay as a monitor that restarts the guest when it reboots
       -m: memory size, by default in megabytes
       -n: NUMA domain
       -o: set a configuration variable
       -P: leave the guest when a virtual processor executes PAUSE
       -p: run a virtual processor on this host processor
       -r: continue from a checkpoint
       -S: wire guest memory
       -s: PCI slot, device and its options
       -U: UUID of the machine
       -u: the RTC keeps UTC
       -W: virtio devices have no MSI-X
       -w: ignore unknown model-specific registers
       -x: local APICs in x2APIC mode
       -Y: no MP table
"
}
