//! Extended state: x87, vectors and what came later, in the uncompacted format of XSAVE (Intel SDM, volume 1, 13.4).

use kvm_bindings::{Xsave, kvm_xsave, kvm_xsave2};
use kvm_ioctls::VcpuFd;
use zerocopy::{FromBytes, IntoBytes};

use super::{Blob, Error, Host, refused};

/// Bytes that there are always.
pub const LEAST: usize = size_of::<kvm_xsave>();
/// Where XSTATE_BV is: the components that are not in their initial state.
const IN_USE: usize = 512;

/// Names of the components (Intel SDM, volume 1, 13.1).
const COMPONENTS: [&str; 20] = [
    "x87",
    "SSE",
    "AVX",
    "MPX bounds",
    "MPX control",
    "AVX-512 masks",
    "AVX-512 ZMM",
    "AVX-512 high ZMM",
    "processor trace",
    "PKRU",
    "PASID",
    "CET user",
    "CET supervisor",
    "HDC",
    "user interrupts",
    "LBR",
    "HWP",
    "AMX configuration",
    "AMX tiles",
    "APX",
];

/// Names of the components in a mask.
pub fn names(mask: u64) -> impl Iterator<Item = String> {
    (0..64)
        .filter(move |bit| mask & 1 << bit != 0)
        .map(|bit| match COMPONENTS.get(bit) {
            Some(name) => format!("extended state {name}"),
            None => format!("extended state component {bit}"),
        })
}

/// The components that are in use in a saved state.
pub fn in_use(state: &Blob) -> u64 {
    let bytes = state.0.get(IN_USE..IN_USE + 8);
    bytes.map_or(0, |bytes| {
        bytes
            .iter()
            .rev()
            .fold(0, |mask, byte| mask << 8 | u64::from(*byte))
    })
}

/// Takes the state out of a vCPU.
pub fn read(vcpu: &VcpuFd, index: u8, host: &Host) -> Result<Blob, Error> {
    let step = "give the extended state";
    if host.xsave == LEAST {
        let state = vcpu.get_xsave().map_err(refused(step, index))?;
        return Ok(Blob(state.region.as_bytes().to_vec()));
    }
    let mut state = buffer([0; LEAST / 4], &vec![0; (host.xsave - LEAST) / 4]);
    // SAFETY: the buffer has the size that KVM_CAP_XSAVE2 tells, and Ferry enables no feature dynamically.
    unsafe { vcpu.get_xsave2(&mut state) }.map_err(refused(step, index))?;
    let mut bytes = state.as_fam_struct_ref().xsave.region.as_bytes().to_vec();
    bytes.extend(state.as_slice().as_bytes());
    Ok(Blob(bytes))
}

/// Puts a saved state into a vCPU. What this host has no room for has to be in its initial state.
pub fn write(vcpu: &VcpuFd, index: u8, host: &Host, state: &Blob) -> Result<(), Error> {
    let Ok((head, tail)) = <[u32; LEAST / 4]>::read_from_prefix(&state.0) else {
        return Err(Error::Impossible {
            vcpu: index,
            reason: format!("its extended state has {} bytes", state.0.len()),
        });
    };
    let room = host.xsave - LEAST;
    let (tail, beyond) = tail.split_at(tail.len().min(room));
    if beyond.iter().any(|byte| *byte != 0) {
        return Err(Error::Lacking {
            names: vec![format!("extended state beyond {} bytes", host.xsave)],
        });
    }
    let mut padded = vec![0u32; room / 4];
    for (to, from) in padded.as_mut_bytes().iter_mut().zip(tail) {
        *to = *from;
    }
    let state = buffer(head, &padded);
    // SAFETY: the buffer has the size that KVM_CAP_XSAVE2 tells, or the 4096 bytes of a KVM without it.
    unsafe { vcpu.set_xsave2(&state) }.map_err(refused("set the extended state", index))
}

fn buffer(region: [u32; LEAST / 4], extra: &[u32]) -> Xsave {
    let header = kvm_xsave2 {
        len: extra.len(),
        xsave: kvm_xsave {
            region,
            ..Default::default()
        },
    };
    #[expect(
        clippy::expect_used,
        reason = "fails above u32::MAX words; the size is the kernel's"
    )]
    let mut buffer = Xsave::from_header(header).expect("some kilobytes");
    buffer.as_mut_slice().copy_from_slice(extra);
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_in_use_have_names() {
        let mut state = Blob(vec![0; LEAST]);
        state.0[IN_USE] = 0b111;
        state.0[IN_USE + 2] = 0b100;
        let names: Vec<_> = names(in_use(&state) & !0b11).collect();
        assert_eq!(names, ["extended state AVX", "extended state AMX tiles"]);
    }
}
