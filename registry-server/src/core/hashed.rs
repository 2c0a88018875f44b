//! A hasher for what is a hash already.

use std::hash::Hasher;

/// Takes a number of a hash's bits as the hash.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hashed(u64);

impl Hasher for Hashed {
    fn write(&mut self, bytes: &[u8]) {
        // Of nothing but a number is it ever asked.
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash << 8 | u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    /// Half of a hash. Maps go by the first bits and by the last.
    fn write_u32(&mut self, half: u32) {
        self.0 = u64::from(half) << 32 | u64::from(half);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
