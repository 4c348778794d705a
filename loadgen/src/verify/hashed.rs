//! Tables whose keys are hashes already.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

#[derive(Default)]
pub struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 keys are hashed")
    }
    #[inline]
    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

pub type HashedMap<V> = HashMap<u64, V, BuildHasherDefault<AsIs>>;
pub type HashedSet = HashSet<u64, BuildHasherDefault<AsIs>>;
