//! Percent-encoding, forms and the statements of `/query`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use metricstream_shards::http::{query_stub, target};

fuzz_target!(|bytes: &[u8]| {
    let mut scratch = Vec::new();
    if target::is_decodable(bytes, &mut scratch) {
        // Whatever names there are, the first value of each can be had.
        for pair in bytes.split(|b| *b == b'&').filter(|pair| !pair.is_empty()) {
            let name = pair.split(|b| *b == b'=').next().unwrap_or(b"");
            let mut decoded = Vec::new();
            assert!(target::percent_decode(name, true, &mut decoded));
            if let Ok(name) = std::str::from_utf8(&decoded) {
                assert!(target::form_value(bytes, name).is_some());
            }
        }
    }
    if let Some(q) = query_stub::statement(b"", bytes) {
        query_stub::answer(&mut scratch, &q, ["a"].into_iter());
        query_stub::created_database(&q);
    }
});
