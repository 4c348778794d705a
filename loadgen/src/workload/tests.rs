//! The same plan gives the same bytes; every point has an identity of its own; parsers read back what was written.

use std::collections::HashSet;

use super::testing::plan;
use super::*;
use crate::plan::{Plan, Timestamps, Values};

/// Batches of three clients as an open loop makes them, two minutes long.
fn batches() -> Vec<Batch> {
    let start = plan().epoch_ns;
    (0..120)
        .flat_map(|number| {
            (0..3).map(move |client| Batch { client, number, stamp_ns: start + number as i64 * 1_000_000_000 })
        })
        .collect()
}

/// Every kind of load.
fn plans() -> Vec<(&'static str, Plan)> {
    let mut all = Vec::new();
    for (protocol, name) in [(Protocol::Line, "line"), (Protocol::Json, "json")] {
        let kind = |change: &dyn Fn(&mut plan::Workload)| {
            let mut plan = plan();
            plan.workload.protocol = protocol;
            change(&mut plan.workload);
            plan
        };
        all.push((name, kind(&|_| {})));
        all.push((name, kind(&|load| load.values = Values::Counter)));
        all.push((name, kind(&|load| load.values = Values::Latency)));
        all.push((name, kind(&|load| load.timestamps = Timestamps::Skewed { by_ms: 30_000 })));
        all.push((name, kind(&|load| load.timestamps = Timestamps::Late { share: 0.2, by_ms: 60_000 })));
        all.push((name, kind(&|load| load.timestamps = Timestamps::Shuffled { within_ms: 500 })));
        all.push((name, kind(&|load| load.bad_share = 0.05)));
        all.push((name, kind(&|load| load.churn_per_minute = 0.5)));
        all.push((name, kind(&|load| (load.tags, load.series) = (0, 1))));
        all.push((name, kind(&|load| (load.tags, load.series, load.batch_points) = (14, 5_000, 1))));
    }
    all
}

/// FNV-1a 64: a few lines, so that the constants below hang on nothing else.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// Whoever changes one of these changes what old ledgers mean: raise the ledger's version with it.
#[test]
fn the_same_plan_gives_the_same_bytes() {
    let hashes: Vec<u64> = plans()
        .iter()
        .map(|(_, plan)| {
            let workload = Workload::new(plan);
            let mut out = Vec::new();
            for batch in batches() {
                workload.body(&mut out, &[batch]);
            }
            fnv(&out)
        })
        .collect();
    assert_eq!(hashes, SAME_BYTES, "now {hashes:#018x?}");
}

const SAME_BYTES: [u64; 20] = [
    0x549e_a60c_cdc2_6321,
    0xdac4_ac35_d98f_4f01,
    0x1115_1da1_dbc0_14a2,
    0xb58a_5d81_0f65_14d7,
    0xedef_5f05_c282_5179,
    0xfc41_17fb_1787_fa92,
    0x0541_1782_1a54_b150,
    0xc93f_e401_e8b6_83ae,
    0xd489_5d51_c6d0_3f8a,
    0x926c_f816_262a_fbc4,
    0x8c35_dec1_c614_ff47,
    0x4e9b_2724_9fd2_c353,
    0xed97_17cd_4939_9a9a,
    0x68f8_ed20_536b_b985,
    0xa32e_075f_b6d6_ea09,
    0xc758_f1d7_b75e_1caa,
    0xf3e1_c1a5_9fdf_3076,
    0xfac0_dacb_fd83_b12a,
    0x0bc0_229f_dcaa_bd08,
    0x7dc0_3baf_0a76_0834,
];

#[test]
fn a_body_is_made_again_alone_and_other_seeds_give_others() {
    for (_, plan) in plans() {
        let workload = Workload::new(&plan);
        let mut first = Vec::new();
        for batch in batches() {
            first.clear();
            workload.body(&mut first, &[batch]);
        }
        let last = *batches().last().expect("batches");
        let mut again = b"kept".to_vec();
        Workload::new(&plan).body(&mut again, &[last]);
        assert_eq!(&again[4..], &first[..]);

        let other = Plan { seed: 43, ..plan };
        again.clear();
        Workload::new(&other).body(&mut again, &[last]);
        assert_ne!(again, first);
    }
}

/// What a reader finds in a body.
#[derive(Debug, PartialEq)]
struct Read {
    name: String,
    tags: Vec<(String, String)>,
    value: f64,
    timestamp_ns: i64,
}

fn read_line(line: &str) -> Option<Read> {
    let [series, field, timestamp] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
    let mut parts = series.split(',');
    let name = parts.next()?.to_string();
    let tags = parts.map(|tag| tag.split_once('=').map(|(k, v)| (k.into(), v.into()))).collect::<Option<_>>()?;
    let value = field.strip_prefix("value=")?.parse().ok()?;
    Some(Read { name, tags, value, timestamp_ns: timestamp.parse().ok()? })
}

fn read_element(element: &serde_json::Value) -> Option<Read> {
    // By the text of the number: serde_json alone rounds some a bit off.
    let value = element["value"].is_number().then(|| element["value"].to_string().parse().ok())??;
    let mut tags: Vec<(String, String)> = Vec::new();
    for (key, value) in element["tags"].as_object()? {
        tags.push((key.clone(), value.as_str()?.to_string()));
    }
    Some(Read { name: element["name"].as_str()?.into(), tags, value, timestamp_ns: element["timestamp"].as_i64()? })
}

fn read(protocol: Protocol, body: &[u8]) -> Vec<Option<Read>> {
    match protocol {
        Protocol::Line => std::str::from_utf8(body).expect("text").lines().map(read_line).collect(),
        Protocol::Json => {
            let document: serde_json::Value = serde_json::from_slice(body).expect("JSON");
            document["metrics"].as_array().expect("a list").iter().map(read_element).collect()
        }
    }
}

#[test]
fn a_reader_finds_the_points_in_the_body_and_the_bad_ones_as_many_as_said() {
    for (name, plan) in plans() {
        let workload = Workload::new(&plan);
        let mut bad_total = 0;
        for pair in batches().chunks(3).collect::<Vec<_>>().chunks(2) {
            // Two batches of one client, joined.
            let batches = [pair[0][1], pair[1][1]];
            let mut body = Vec::new();
            let rendered = workload.body(&mut body, &batches);
            let found = read(plan.workload.protocol, &body);
            let mut expected = Vec::new();
            for batch in batches {
                workload.points(batch, |point| {
                    assert_eq!(point, workload.point(batch, point.index));
                    let mut tags = workload.tags(point.slot);
                    if plan.workload.protocol == Protocol::Json {
                        tags.sort();
                    }
                    expected.push(point.fault.is_none().then(|| Read {
                        name: workload.series().name(point.slot),
                        tags,
                        value: point.value.to_f64(),
                        timestamp_ns: point.timestamp_ns,
                    }));
                });
            }
            assert_eq!(found, expected, "{name}");
            assert_eq!(rendered.points as usize, found.len());
            assert_eq!(rendered.bad as usize, found.iter().filter(|read| read.is_none()).count());
            bad_total += rendered.bad;
        }
        assert_eq!(bad_total > 0, plan.workload.bad_share > 0.0);
    }
}

#[test]
fn every_point_has_an_identity_of_its_own() {
    for (name, mut plan) in plans() {
        // As hard as it gets: all batches of a client at one moment.
        for step_ns in [1_000_000_000, 0] {
            plan.workload.clients = 3;
            let workload = Workload::new(&plan);
            let mut seen = HashSet::new();
            let mut points = 0;
            for mut batch in batches() {
                batch.stamp_ns = plan.epoch_ns + batch.number as i64 * step_ns;
                workload.points(batch, |point| {
                    points += 1;
                    let identity = (point.slot.client, point.slot.number, point.slot.life, point.timestamp_ns);
                    assert!(seen.insert(identity), "{name}: {point:?} has the identity of another");
                });
            }
            assert_eq!(points, 360 * plan.workload.batch_points);
        }
    }
}

#[test]
fn answers_mean_what_the_protocols_say() {
    use Answer::*;
    let partial_v1 = br#"{"error":"partial write: line 2: missing_value: no field dropped=1"}"#;
    let partial_v3 = br#"{"error":"partial write of line protocol occurred","data":[]}"#;
    for (protocol, status, body, means) in [
        (Protocol::Line, 204, &b""[..], Acknowledged),
        (Protocol::Line, 200, b"", Acknowledged),
        (Protocol::Line, 400, partial_v1, Acknowledged),
        (Protocol::Line, 400, partial_v3, Acknowledged),
        (Protocol::Line, 400, br#"{"error":"unable to parse: line 1: .. dropped=1"}"#, Refused),
        (Protocol::Line, 503, br#"{"error":"partial write"}"#, Refused),
        (Protocol::Line, 429, b"", Refused),
        (
            Protocol::Json,
            200,
            br#"{"accepted":9,"rejected":1,"errors":[{"index":3,"reason":"missing_value"}]}"#,
            Acknowledged,
        ),
        (Protocol::Json, 400, br#"{"error":"no JSON"}"#, Refused),
        (Protocol::Json, 413, b"", Refused),
    ] {
        assert_eq!(answer(protocol, status, body), means, "{protocol:?} {status}");
    }
}
