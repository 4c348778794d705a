//! Any chunked body, whole and split: no panic, and the same outcome.
#![no_main]

use libfuzzer_sys::fuzz_target;
mod split;

fuzz_target!(|input: (u8, &[u8])| {
    let (step, body) = input;
    let bytes = [b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", body].concat();
    assert_eq!(split::outcome(&bytes, bytes.len()), split::outcome(&bytes, usize::from(step)));
});
