//! Scenarios over real sockets: a scripted peer for what no honest back-end does, and real back-ends.

mod apart;
mod channel;
mod giving_up;
mod harness;
mod hostile;
mod loading;
mod moving;
mod moving_hostile;
mod moving_real;
mod negotiation;
mod peer;
mod preparing;
mod qemu;
mod restoring;
mod ring;
mod saving;
mod slow;
mod storage_daemon;
mod suspend;
mod suspend_hostile;
mod suspend_real;
mod suspend_slow;
mod virtiofsd;
mod wire;
