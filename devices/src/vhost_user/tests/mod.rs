//! Scenarios over real sockets: a scripted peer for the wire, and the real qemu-storage-daemon.
