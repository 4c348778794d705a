//! Any bytes as gzip and as zstd: no panic, and no output beyond the bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use metricstream_shards::http::{Bounds, Inflater};

fuzz_target!(|bytes: &[u8]| {
    let bounds = Bounds { inflated_bytes_max: 1 << 16, ..Bounds::default() };
    let mut inflater = Inflater::new().expect("memory");
    for coding in [&b"gzip"[..], b"zstd"] {
        if let Ok(out) = inflater.decode(Some(coding), bytes, &bounds) {
            assert!(out.len() <= 1 << 16);
        }
    }
});
