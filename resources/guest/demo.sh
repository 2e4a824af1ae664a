# Writes checksummed data to the disk and to the shared directory and reads it back from the devices.
# `demo.sh shell` only mounts the directory, for someone at the guest's shell.
fail() { echo "ferry: $1: failed: $2"; exit 1; }
drop_caches() { sync; echo 3 > /proc/sys/vm/drop_caches; }
checksum() { sha256sum "$@" | cut -d ' ' -f 1; }

echo "ferry: kernel: ok $(uname -r)"
mount -t virtiofs share /mnt || fail share "cannot mount tag 'share'"
[ "$1" = shell ] && exit 0

mib=8
bytes=8388608
head -c $bytes /dev/urandom > /tmp/data || fail data "cannot make data"
sum=$(checksum /tmp/data)

[ -b /dev/vda ] || fail disk "there is no /dev/vda"
dd if=/tmp/data of=/dev/vda bs=1M conv=fsync 2> /dev/null || fail disk "cannot write"
drop_caches
blockdev --flushbufs /dev/vda
back=$(dd if=/dev/vda bs=1M count=$mib 2> /dev/null | checksum)
[ "$back" = "$sum" ] || fail disk "read back $back, wrote $sum"
echo "ferry: disk: ok $sum"

[ "$(checksum /mnt/from-host)" = "$(cat /mnt/from-host.sha256)" ] || fail share "the host's file reads differently here"
cp /tmp/data /mnt/from-guest || fail share "cannot write"
sync
umount /mnt || fail share "cannot unmount"
drop_caches
mount -t virtiofs share /mnt || fail share "cannot mount a second time"
back=$(checksum /mnt/from-guest)
[ "$back" = "$sum" ] || fail share "read back $back, wrote $sum"
echo "ferry: share: ok $sum"
