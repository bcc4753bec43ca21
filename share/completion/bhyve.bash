# SPDX-License-Identifier: BSD-2-Clause
# bhyve(8) for bash, made of the table of options by `UPDATE=1 cargo test -p bhyve completion`.
_bhyve()
{
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    COMPREPLY=()
    case $prev in
    -k)
        COMPREPLY=($(compgen -f -- "$cur"))
        return
        ;;
    -l)
        compopt -o nospace
        COMPREPLY=($(compgen -S ',' -W 'bootrom com1 com2 com3 com4 tpm pc-testdev' -- "$cur"))
        return
        ;;
    -o)
        compopt -o nospace
        COMPREPLY=($(compgen -S '=' -W 'acpi_tables bios.release_date bios.vendor bios.version board.asset_tag board.location board.manufacturer board.product_name board.serial_number board.version boot.cmdline boot.initrd boot.kernel chassis.asset_tag chassis.manufacturer chassis.serial_number chassis.sku chassis.version config.dump cores cpus destroy_on_poweroff gdb.address gdb.port gdb.wait lpc.pcireg.device lpc.pcireg.revid lpc.pcireg.subdevice lpc.pcireg.subvendor lpc.pcireg.vendor memory.guest_in_core memory.size memory.wired monitor name rtc.start rtc.use_localtime rundir snapshot.at snapshot.disks snapshot.exit_status snapshot.file snapshot.pulse snapshot.rtc snapshot.stale snapshot.trust sockets system.family_name system.manufacturer system.product_name system.serial_number system.sku system.version threads uuid virtio_msix vmm vmm.clock x86.mptable x86.strictio x86.strictmsr x86.verbosemsr x86.vmexit_on_hlt x86.vmexit_on_pause x86.x2apic' -- "$cur"))
        return
        ;;
    -r)
        COMPREPLY=($(compgen -f -- "$cur"))
        return
        ;;
    -s)
        local models='hostbridge amd_hostbridge lpc virtio-blk virtio-net e1000 virtio-rnd virtio-console ahci ahci-hd ahci-cd xhci fbuf'
        [[ $cur == *,* ]] && COMPREPLY=($(compgen -P "${cur%%,*}," -W "$models" -- "${cur#*,}"))
        return
        ;;
    -c | -f | -G | -K | -k | -l | -m | -n | -o | -p | -r | -s | -U)
        return
        ;;
    esac
    COMPREPLY=($(compgen -W '-A -a -C -c -D -e -f -G -H -h -I -K -k -l -M -m -n -o -P -p -r -S -s -U -u -W -w -x -Y --help --version' -- "$cur"))
}
complete -F _bhyve bhyve
