#!/usr/bin/env bash
# Runs programs of a build on an emulated Sapphire Rapids (AVX-512, VNNI, BF16, AMX): the instructions as they are encoded, detection, and
# Linux's permission for tiles, on a machine that has none of it. Slow (some 50 times), and no word about speed.
#
#   BOCHS=… KERNEL=… scripts/run-in-bochs.sh BUILD 'COMMAND; COMMAND…'
#
# BUILD's programs lie in the current folder of the commands; $XSR_GOLDEN and $XSR_FORCE_ISA are passed on. BOCHS is a bochs 3.0 built with
# --enable-x86-64 --enable-avx --enable-evex --enable-amx --with-nogui and the mends of docs/decisions/0019 (the first two suffice for one thread that
# nothing interrupts); KERNEL a Linux of 6.15 or newer but not 6.19, which hangs (Debian's linux-image-*-cloud-amd64 of trixie-backports, unpacked),
# whose setcpuid= makes up for what this Bochs does not report.
# Needs Debian's isolinux, syslinux-common, xorriso, bochsbios, vgabios, cpio and busybox-static. Exit status: 0 all commands succeeded, 1 one failed or the machine
# stopped, 2 wrong usage.
set -euo pipefail
fail() { echo "run-in-bochs: $*" >&2; exit 2; }
[ $# = 2 ] || fail "usage: BOCHS=… KERNEL=… scripts/run-in-bochs.sh BUILD 'COMMANDS'"
build=$1 commands=$2
: "${BOCHS:?run-in-bochs: where bochs 3.0 is}" "${KERNEL:?run-in-bochs: a Linux kernel image}"
for tool in xorriso cpio busybox; do command -v "$tool" > /dev/null || fail "$tool is missing"; done
isolinux=$(find /usr/lib/ISOLINUX /usr/lib/syslinux -name isolinux.bin 2> /dev/null | head -n 1)
ldlinux=$(find /usr/lib/syslinux -path '*bios*' -name ldlinux.c32 2> /dev/null | head -n 1)
[ -n "$isolinux" ] && [ -n "$ldlinux" ] || fail "isolinux or syslinux-common is missing"
bios=/usr/share/bochs/BIOS-bochs-latest vgabios=/usr/share/vgabios/vgabios.bin
[ -e "$bios" ] && [ -e "$vgabios" ] || fail "bochsbios or vgabios is missing"

folder=$(mktemp -d); machine=
trap '[ -z "$machine" ] || kill "$machine" 2> /dev/null || true; rm -rf "$folder"' EXIT
root=$folder/root; iso=$folder/iso
mkdir -p "$root"/{bin,proc,sys,dev,tmp,run,golden} "$iso/isolinux"
cp "$(command -v busybox)" "$root/bin/busybox"
find "$build" -path '*/CMakeFiles' -prune -o -type f -perm -u+x \( -name '*_test' -o -name 'xsr-*' \) -print | while read -r program; do
  cp "$program" "$root/run/"; strip "$root/run/${program##*/}"
  ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
    [ -e "$root$library" ] || { mkdir -p "$root${library%/*}"; cp -L "$library" "$root$library"; }
  done
done
[ -z "${XSR_GOLDEN:-}" ] || cp -r "$XSR_GOLDEN/." "$root/golden/"
cat > "$root/init" <<INIT
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp XSR_GOLDEN=/golden ${XSR_FORCE_ISA:+XSR_FORCE_ISA=$XSR_FORCE_ISA}
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
exec > /dev/ttyS0 2>&1 < /dev/null
cd /run
( set -e
$commands
)
echo "STATUS \$?"
sleep 5; poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc 2> /dev/null | gzip -1) > "$iso/initrd.gz"
cp "$KERNEL" "$iso/vmlinuz"; cp "$isolinux" "$iso/isolinux/isolinux.bin"; cp "$ldlinux" "$iso/isolinux/"
# setcpuid=324: XFD, without which Linux keeps tiles off. no5lvl, acpi=off: this Bochs stops where SMM meets five-level paging.
printf 'DEFAULT x\nLABEL x\nKERNEL /vmlinuz\nAPPEND initrd=/initrd.gz console=ttyS0 loglevel=3 mitigations=off nokaslr %s\n' \
  "setcpuid=324 no5lvl acpi=off random.trust_cpu=on tsc=reliable nowatchdog" > "$iso/isolinux/isolinux.cfg"
xorriso -as mkisofs -o "$folder/disk.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot -boot-load-size 4 \
  -boot-info-table "$iso" 2> /dev/null
cat > "$folder/bochsrc" <<BOCHSRC
display_library: nogui
memory: guest=2048, host=2048
romimage: file="$bios"
vgaromimage: file="$vgabios"
cpu: model=sapphire_rapids, count=1, ips=100000000, reset_on_triple_fault=0, ignore_bad_msrs=1
clock: sync=none
boot: cdrom
ata0-master: type=cdrom, path="$folder/disk.iso", status=inserted
com1: enabled=1, mode=file, dev="$folder/serial.txt"
log: $folder/log.txt
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
BOCHSRC
: > "$folder/serial.txt"
"$BOCHS" -q -f "$folder/bochsrc" > "$folder/out.txt" 2>&1 < /dev/null &
machine=$!
tail -n +1 -F --pid="$machine" "$folder/serial.txt" 2> /dev/null | while IFS= read -r line; do
  line=${line%$'\r'}
  case $line in STATUS\ *) echo "${line#STATUS }" > "$folder/status"; kill "$machine" ;; *) printf '%s\n' "$line" ;; esac
done
[ -e "$folder/status" ] || { echo "run-in-bochs: the machine stopped early" >&2; tail -n 5 "$folder/log.txt" "$folder/out.txt" >&2; exit 1; }
[ "$(cat "$folder/status")" = 0 ]
