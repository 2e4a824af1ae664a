//! KVM's own structs in saved state: as their bytes, which the kernel promises never to change.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A struct of KVM's, saved as its bytes. Any other number of bytes is refused, and not filled up.
#[derive(Clone, Copy)]
pub struct Abi<T>(pub T);

impl<T: IntoBytes + Immutable> PartialEq for Abi<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes() == other.0.as_bytes()
    }
}

impl<T> fmt::Debug for Abi<T> {
    // A guest's registers are no one's to read in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = std::any::type_name::<T>();
        f.write_str(name.rsplit("::").next().unwrap_or(name))
    }
}

impl<T: IntoBytes + Immutable> Serialize for Abi<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.as_bytes())
    }
}

impl<'de, T: FromBytes> Deserialize<'de> for Abi<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = deserializer.deserialize_bytes(Bytes)?;
        T::read_from_bytes(bytes)
            .map(Abi)
            .map_err(|_| D::Error::invalid_length(bytes.len(), &Sized::<T>(PhantomData)))
    }
}

/// A struct of KVM's whose length is only known where it is used, as its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_bytes(Bytes)
            .map(|bytes| Blob(bytes.to_vec()))
    }
}

/// Takes bytes as they lie in the input.
struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = &'de [u8];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
        Ok(bytes)
    }
}

/// What is expected in place of bytes of another number.
struct Sized<T>(PhantomData<T>);

impl<T> serde::de::Expected for Sized<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = std::any::type_name::<T>();
        write!(f, "{} bytes of {name}", size_of::<T>())
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_regs;
    use vm_migration::stream::{decode, encode};

    use super::*;

    #[test]
    fn only_the_exact_number_of_bytes_is_taken() {
        let regs = kvm_regs {
            rip: 0x1234,
            ..Default::default()
        };
        let bytes = encode(&Abi(regs)).unwrap();
        assert_eq!(decode::<Abi<kvm_regs>>(&bytes).unwrap(), Abi(regs));
        for length in [0, 1, 143, 145] {
            let other = encode(&Blob(vec![0; length])).unwrap();
            assert!(decode::<Abi<kvm_regs>>(&other).is_err(), "{length}");
        }
    }
}
