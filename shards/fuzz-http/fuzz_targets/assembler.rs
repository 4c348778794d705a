//! Any bytes, whole and split: no panic, and the same outcome.
#![no_main]

use libfuzzer_sys::fuzz_target;
mod split;

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    assert_eq!(split::outcome(bytes, bytes.len()), split::outcome(bytes, usize::from(step)));
});
