#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# Makes a Debian guest: a kernel and busybox, both from Debian's packages, fetched now and never kept in the tree.
#
#   debian.sh DIR            leaves DIR/vmlinuz and DIR/initrd.img; does nothing if they are there
#   debian.sh DIR generic    the same with the kernel for real machines, which has a driver for everything
#
# Exit status 3: there is no apt here, so there is no Debian guest to be had.
set -eu

dir=${1:?usage: debian.sh DIR [generic]}
virtio="virtio_pci virtio_blk virtio_net virtio-rng virtio_console"
case ${2:-cloud} in
cloud)
    image=linux-image-cloud-amd64
    wanted="$virtio button evdev"
    ;;
generic)
    image=linux-image-amd64
    wanted="$virtio button evdev psmouse e1000 ahci sd_mod sr_mod xhci-pci usbhid hid-generic crc32c_generic ext4 isofs"
    ;;
*)
    echo "debian.sh: there is no guest \"$2\", but cloud and generic" >&2
    exit 2
    ;;
esac
[ -f "$dir/vmlinuz" ] && [ -f "$dir/initrd.img" ] && exit 0
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { echo "debian.sh: no apt-get here" >&2; exit 3; }
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
work=$(mktemp -d "$dir/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

kernel_package() {
    apt-cache depends "$image" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1
}
if [ -z "$(kernel_package)" ]; then
    echo "debian.sh: apt-get update" >&2
    if [ "$(id -u)" = 0 ]; then apt-get update -qq; else sudo apt-get update -qq; fi
fi
package=$(kernel_package)
[ -n "$package" ] || { echo "debian.sh: apt knows no package $image" >&2; exit 3; }
echo "debian.sh: fetching $package and busybox-static" >&2
# As root, apt would fetch as a user of its own, who cannot write here.
apt-get -qq -o APT::Sandbox::User=root download "$package" busybox-static
for deb in *.deb; do dpkg-deb -x "$deb" root; done

mkdir -p initrd/bin initrd/dev initrd/proc initrd/sys initrd/tmp initrd/mnt initrd/lib
cp root/bin/busybox initrd/bin/busybox
release=$(basename root/lib/modules/*)
root/bin/busybox depmod -b "$work/root" "$release"
# What is wanted and all that it needs, in the order in which they need each other.
awk -v wanted="$wanted" '
    function need(path,    count, i, on) {
        if (path in had) return
        had[path] = 1
        count = split(needs[path], on, " ")
        for (i = count; i > 0; i--) need(on[i])
        print path
    }
    { path = $1; sub(/:$/, "", path); name = path; sub(/.*\//, "", name); sub(/\.ko$/, "", name)
      $1 = ""; needs[path] = $0; path_of[name] = path }
    END {
        count = split(wanted, names, " ")
        for (i = 1; i <= count; i++) if (names[i] in path_of) need(path_of[names[i]])  # else it is in the kernel
    }
' "root/lib/modules/$release/modules.dep" > order
while read -r module; do
    cp "root/lib/modules/$release/$module" initrd/lib/
    echo "/lib/${module##*/}" >> initrd/lib/order
done < order

cat > initrd/init <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp PS1='guest# '
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
while read -r module; do insmod "$module"; done < /lib/order
ip link set lo up
# The power button powers off.
mkdir -p /etc/acpi/PWRF /var/log /var/run
printf '#!/bin/sh\nexec poweroff -f\n' > /etc/acpi/PWRF/00000080
chmod 755 /etc/acpi/PWRF/00000080
acpid
# The nonce is in memory only: a guest that was started anew cannot know the one from before.
head -c 8 /dev/urandom | hexdump -v -e '/1 "%02x"' > /tmp/nonce
echo "guest is up: nonce $(cat /tmp/nonce)"
cd /tmp
while :; do setsid -c sh -i; done < /dev/console > /dev/console 2>&1
INIT
chmod 755 initrd/init
(cd initrd && find . | ../root/bin/busybox cpio -o -H newc 2>/dev/null | gzip -1) > initrd.img
cp root/boot/vmlinuz-* vmlinuz
mv initrd.img "$dir/initrd.img"
mv vmlinuz "$dir/vmlinuz"
