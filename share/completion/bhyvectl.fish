# SPDX-License-Identifier: BSD-2-Clause
# bhyvectl(8), made of the table of options by `UPDATE=1 cargo test -p bhyvectl completion`.
complete -c bhyvectl -l vm -d 'name of the VM' -r -f
complete -c bhyvectl -l cpu -d 'vCPU that the other options are about (0)' -r -f
complete -c bhyvectl -l rundir -d 'where the VM\'s control socket is' -r -f -a "(__fish_complete_directories)"
complete -c bhyvectl -l set-mem -d 'give a VM that has none guest memory' -r -f
complete -c bhyvectl -l set-efer -d 'set efer' -r -f
complete -c bhyvectl -l set-cr0 -d 'set cr0' -r -f
complete -c bhyvectl -l set-cr2 -d 'set cr2' -r -f
complete -c bhyvectl -l set-cr3 -d 'set cr3' -r -f
complete -c bhyvectl -l set-cr4 -d 'set cr4' -r -f
complete -c bhyvectl -l set-dr0 -d 'set dr0' -r -f
complete -c bhyvectl -l set-dr1 -d 'set dr1' -r -f
complete -c bhyvectl -l set-dr2 -d 'set dr2' -r -f
complete -c bhyvectl -l set-dr3 -d 'set dr3' -r -f
complete -c bhyvectl -l set-dr6 -d 'set dr6' -r -f
complete -c bhyvectl -l set-dr7 -d 'set dr7' -r -f
complete -c bhyvectl -l set-rsp -d 'set rsp' -r -f
complete -c bhyvectl -l set-rip -d 'set rip' -r -f
complete -c bhyvectl -l set-rax -d 'set rax' -r -f
complete -c bhyvectl -l set-rflags -d 'set rflags' -r -f
complete -c bhyvectl -l desc-base -d 'base for the --set-desc options' -r -f
complete -c bhyvectl -l desc-limit -d 'limit for the --set-desc options' -r -f
complete -c bhyvectl -l desc-access -d 'access rights for the --set-desc options' -r -f
complete -c bhyvectl -l set-cs -d 'set cs\'s selector' -r -f
complete -c bhyvectl -l set-ds -d 'set ds\'s selector' -r -f
complete -c bhyvectl -l set-es -d 'set es\'s selector' -r -f
complete -c bhyvectl -l set-fs -d 'set fs\'s selector' -r -f
complete -c bhyvectl -l set-gs -d 'set gs\'s selector' -r -f
complete -c bhyvectl -l set-ss -d 'set ss\'s selector' -r -f
complete -c bhyvectl -l set-tr -d 'set tr\'s selector' -r -f
complete -c bhyvectl -l set-ldtr -d 'set ldtr\'s selector' -r -f
complete -c bhyvectl -l set-x2apic-state -d '0: xAPIC, 1: x2APIC' -r -f
complete -c bhyvectl -l unassign-pptdev -d 'take a passthrough device away' -r -f
complete -c bhyvectl -l assert-lapic-lvt -d 'assert an entry of the local APIC\'s vector table' -r -f
complete -c bhyvectl -l get-gpa-pmap -d 'nested page table entries of a guest physical address' -r -f
complete -c bhyvectl -l rtc-nvram-offset -d 'CMOS byte that the rtc-nvram options are about (0)' -r -f
complete -c bhyvectl -l set-rtc-nvram -d 'set a byte of the CMOS memory' -r -f
complete -c bhyvectl -l set-rtc-time -d 'set the clock, in seconds since the epoch' -r -f
complete -c bhyvectl -l capname -d 'capability for --getcap and --setcap' -r -f
complete -c bhyvectl -l setcap -d 'set the capability' -r -f
complete -c bhyvectl -l checkpoint -d 'write a checkpoint; the VM goes on' -r -F
complete -c bhyvectl -l suspend -d 'write a checkpoint and end the VM; `bhyve -r filename` goes on with it' -r -F
complete -c bhyvectl -l checkpoint-info -d 'what a checkpoint is of; needs no VM' -r -F
complete -c bhyvectl -l checkpoint-verify -d 'check every byte of a checkpoint; needs no VM' -r -F
complete -c bhyvectl -l create -d 'make the VM first (with the kernel\'s vmm: a software VM lives in its bhyve)'
complete -c bhyvectl -l get-memseg -d 'memory segments'
complete -c bhyvectl -l get-memmap -d 'memory map'
complete -c bhyvectl -l set-desc-ds -d 'set ds\'s descriptor from --desc-base, --desc-limit and --desc-access'
complete -c bhyvectl -l set-desc-es -d 'set es\'s descriptor from --desc-base, --desc-limit and --desc-access'
complete -c bhyvectl -l set-desc-fs -d 'set fs\'s descriptor from --desc-base, --desc-limit and --desc-access'
complete -c bhyvectl -l set-desc-gs -d 'set gs\'s descriptor from --desc-base, --desc-limit and --desc-access'
complete -c bhyvectl -l set-desc-ss -d 'set ss\'s descriptor from --desc-base, --desc-limit and --desc-access'
complete -c bhyvectl -l set-desc-cs -d 'set cs\'s descriptor from --desc-base, --desc-limit and --desc-access'
complete -c bhyvectl -l set-desc-tr -d 'set tr\'s descriptor from --desc-base, --desc-limit and --desc-access'
complete -c bhyvectl -l set-desc-ldtr -d 'set ldtr\'s descriptor from --desc-base, --desc-limit and --desc-access'
complete -c bhyvectl -l set-desc-gdtr -d 'set gdtr\'s descriptor from --desc-base, --desc-limit and --desc-access'
complete -c bhyvectl -l set-desc-idtr -d 'set idtr\'s descriptor from --desc-base, --desc-limit and --desc-access'
complete -c bhyvectl -l inject-nmi -d 'inject a non-maskable interrupt'
complete -c bhyvectl -l get-efer -d 'efer'
complete -c bhyvectl -l get-cr0 -d 'cr0'
complete -c bhyvectl -l get-cr2 -d 'cr2'
complete -c bhyvectl -l get-cr3 -d 'cr3'
complete -c bhyvectl -l get-cr4 -d 'cr4'
complete -c bhyvectl -l get-dr0 -d 'dr0'
complete -c bhyvectl -l get-dr1 -d 'dr1'
complete -c bhyvectl -l get-dr2 -d 'dr2'
complete -c bhyvectl -l get-dr3 -d 'dr3'
complete -c bhyvectl -l get-dr6 -d 'dr6'
complete -c bhyvectl -l get-dr7 -d 'dr7'
complete -c bhyvectl -l get-rsp -d 'rsp'
complete -c bhyvectl -l get-rip -d 'rip'
complete -c bhyvectl -l get-rax -d 'rax'
complete -c bhyvectl -l get-rbx -d 'rbx'
complete -c bhyvectl -l get-rcx -d 'rcx'
complete -c bhyvectl -l get-rdx -d 'rdx'
complete -c bhyvectl -l get-rsi -d 'rsi'
complete -c bhyvectl -l get-rdi -d 'rdi'
complete -c bhyvectl -l get-rbp -d 'rbp'
complete -c bhyvectl -l get-r8 -d 'r8'
complete -c bhyvectl -l get-r9 -d 'r9'
complete -c bhyvectl -l get-r10 -d 'r10'
complete -c bhyvectl -l get-r11 -d 'r11'
complete -c bhyvectl -l get-r12 -d 'r12'
complete -c bhyvectl -l get-r13 -d 'r13'
complete -c bhyvectl -l get-r14 -d 'r14'
complete -c bhyvectl -l get-r15 -d 'r15'
complete -c bhyvectl -l get-rflags -d 'rflags'
complete -c bhyvectl -l get-desc-ds -d 'ds\'s descriptor'
complete -c bhyvectl -l get-desc-es -d 'es\'s descriptor'
complete -c bhyvectl -l get-desc-fs -d 'fs\'s descriptor'
complete -c bhyvectl -l get-desc-gs -d 'gs\'s descriptor'
complete -c bhyvectl -l get-desc-ss -d 'ss\'s descriptor'
complete -c bhyvectl -l get-desc-cs -d 'cs\'s descriptor'
complete -c bhyvectl -l get-desc-tr -d 'tr\'s descriptor'
complete -c bhyvectl -l get-desc-ldtr -d 'ldtr\'s descriptor'
complete -c bhyvectl -l get-desc-gdtr -d 'gdtr\'s descriptor'
complete -c bhyvectl -l get-desc-idtr -d 'idtr\'s descriptor'
complete -c bhyvectl -l get-cs -d 'cs\'s selector'
complete -c bhyvectl -l get-ds -d 'ds\'s selector'
complete -c bhyvectl -l get-es -d 'es\'s selector'
complete -c bhyvectl -l get-fs -d 'fs\'s selector'
complete -c bhyvectl -l get-gs -d 'gs\'s selector'
complete -c bhyvectl -l get-ss -d 'ss\'s selector'
complete -c bhyvectl -l get-tr -d 'tr\'s selector'
complete -c bhyvectl -l get-ldtr -d 'ldtr\'s selector'
complete -c bhyvectl -l get-x2apic-state -d 'mode of the local APIC'
complete -c bhyvectl -l get-eptp -d 'root of the nested page tables'
complete -c bhyvectl -l get-exception-bitmap -d 'intercepted exceptions'
complete -c bhyvectl -l get-io-bitmap-address -d 'I/O permission map'
complete -c bhyvectl -l get-tsc-offset -d 'what is added to the host\'s TSC'
complete -c bhyvectl -l get-msr-bitmap-address -d 'MSR permission map\'s address'
complete -c bhyvectl -l get-guest-pat -d 'page attribute table'
complete -c bhyvectl -l get-guest-sysenter -d 'SYSENTER\'s MSRs'
complete -c bhyvectl -l get-exit-reason -d 'reason of the last exit'
complete -c bhyvectl -l get-msr-bitmap -d 'MSRs that the guest reaches without an exit'
complete -c bhyvectl -l get-rtc-nvram -d 'a byte of the CMOS memory'
complete -c bhyvectl -l get-rtc-time -d 'the clock'
complete -c bhyvectl -l get-intinfo -d 'event being delivered and pending exception'
complete -c bhyvectl -l getcap -d 'the capability, or all of them'
complete -c bhyvectl -l get-active-cpus -d 'vCPUs that have been activated'
complete -c bhyvectl -l get-debug-cpus -d 'vCPUs that are stopped for a debugger or a checkpoint'
complete -c bhyvectl -l get-suspended-cpus -d 'vCPUs that have left the guest for good'
complete -c bhyvectl -l get-stats -d 'counters of the vCPU'
complete -c bhyvectl -l get-cpu-topology -d 'sockets, cores and threads'
complete -c bhyvectl -l get-all -d 'everything that the --get options show'
complete -c bhyvectl -l run -d 'run the vCPU until its next exit'
complete -c bhyvectl -l force-reset -d 'reset the VM'
complete -c bhyvectl -l force-poweroff -d 'power the VM off'
complete -c bhyvectl -l destroy -d 'destroy the VM'
complete -c bhyvectl -l list -d 'the names of the VMs that have a control socket; needs no VM'
complete -c bhyvectl -l json -d 'make --checkpoint-info and --checkpoint-verify print JSON'
complete -c bhyvectl -s h -l help -d 'Print help'
