//! JSON against serde_json.
#![no_main]
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;
use metricstream_shards::decode::{Bounds, TimestampUnit, json, line};
use metricstream_shards::point::{
    Batch, Kind, NO_TIMESTAMP, Reason, Rejection, Rejections, SeriesId, SeriesRef, SeriesResolver,
};

#[path = "../../src/decode/reference.rs"]
mod reference;
#[path = "../../src/decode/testing.rs"]
mod testing;

fuzz_target!(|body: &[u8]| testing::check_json(body));
