//! The format holds: columns and records come back as they went in, FORMAT.md says what the code writes, and the golden
//! file of each version stays readable.

use super::block::{BLOCK_HEADER_BYTES, BlockHeader};
use super::crash_tests::{Keys, config, envelope, push, read_all, scratch_dir};
use super::record::BatchEncoder;
use super::*;
use crate::point::{Batch, Kind, NO_TIMESTAMP, Protocol, SeriesId, SeriesRef};
use crate::random::Random;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

const FORMAT: &str = include_str!("FORMAT.md");

fn encoded(envelope: &Envelope, batch: &Batch) -> AlignedBuf {
    let mut out = AlignedBuf::with_capacity(64);
    BatchEncoder::default().encode(envelope, 42, batch, &mut out);
    assert!(out.len() <= BatchEncoder::bound(envelope, batch), "{} bytes", out.len());
    out
}

fn comes_back(batch: &Batch) {
    let bytes = encoded(&envelope(), batch);
    let mut decoder = BatchDecoder::default();
    let (view, back) = decoder.decode(&bytes).expect("just written");
    assert_eq!((view.points, view.stamp_ns, view.client), (batch.len(), 42, "10.0.0.1"));
    assert_eq!(back, batch);
}

fn timestamps() -> impl Strategy<Value = i64> {
    let near = 1_700_000_000_000_000_000i64;
    prop_oneof![
        Just(NO_TIMESTAMP),
        any::<i64>(),
        (0..100_000i64).prop_map(move |ms| near + ms * 1_000_000),
        (0..100i64).prop_map(move |s| near + s * 1_000_000_000),
    ]
}

fn values() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>(),
        (-1_000_000..1_000_000i64, 0..6u32).prop_map(|(m, k)| m as f64 / 10f64.powi(k as i32)),
        prop_oneof![Just(0.0), Just(-0.0), Just(1e300), Just(5e-324), Just(9007199254740993.0), Just(0.1 + 0.2)],
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_batch_comes_back_as_it_was(
        points in prop::collection::vec((any::<u32>(), timestamps(), 0..5u8, any::<u64>()), 0..200),
        series_bits in 0..31u32,
    ) {
        let mut batch = Batch { inline_keys: vec![b"a\xFFb".to_vec().into()], ..Batch::default() };
        batch.strings.push(b"text".to_vec().into());
        for (series, timestamp, kind, bits) in points {
            let kind = Kind::from_u8(kind).expect("a kind");
            let bits = if kind == Kind::Text { 0 } else { bits };
            let inline = series % 7 == 0 && series_bits % 2 == 0;
            let series = series & ((1u32 << series_bits) - 1);
            let series = if inline { SeriesRef::Inline(0) } else { SeriesRef::Known(SeriesId(series)) };
            batch.push(series, timestamp, kind, bits);
        }
        comes_back(&batch);
    }

    #[test]
    fn columns_of_one_manner_come_back_bit_for_bit(
        floats in prop::collection::vec(values(), 1..100),
        decimals in prop::collection::vec(-100_000..100_000i64, 1..100),
        k in 0..10i32,
        step in 0..4u32,
    ) {
        let mut batch = Batch::default();
        for (n, &v) in floats.iter().enumerate() {
            batch.push(SeriesRef::Known(SeriesId(n as u32 * step)), 1_000 * n as i64, Kind::Float, v.to_bits());
        }
        comes_back(&batch);
        batch.clear();
        for &m in &decimals {
            batch.push(SeriesRef::Known(SeriesId(7)), NO_TIMESTAMP, Kind::Float, (m as f64 / 10f64.powi(k)).to_bits());
        }
        comes_back(&batch);
    }

    #[test]
    fn any_bytes_decode_to_an_error_or_a_sound_batch(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        own in any::<bool>(),
    ) {
        if own {
            let mut batch = Batch::default();
            (0..40).for_each(|n| push(&mut batch, n, u64::from(n)));
            bytes = encoded(&envelope(), &batch).to_vec();
            flips.iter().for_each(|(at, byte)| { let at = at.index(bytes.len()); bytes[at] ^= byte });
        }
        let mut decoder = BatchDecoder::default();
        if let Ok((view, batch)) = decoder.decode(&bytes) {
            prop_assert_eq!(view.points, batch.len());
            prop_assert!(batch.timestamps_ns.len() == view.points && batch.kinds.len() == view.points);
            prop_assert_eq!(batch.bits.len(), view.points);
        }
        let _ = parse_block(&bytes);
        let _ = SegmentHeader::parse(&bytes);
        names_in(&bytes).for_each(drop);
        Records::new(&bytes).for_each(drop);
    }
}

#[test]
fn an_envelope_comes_back_whole() {
    let envelope = Envelope {
        client: "tenant-a",
        protocol: Protocol::Influx,
        route: 9,
        request_id: "r-1",
        traceparent: "00-ab-cd-01",
        idempotency_key: b"\x00\xFF",
        same_timestamp_all: true,
    };
    let mut batch = Batch::default();
    push(&mut batch, 1, 2);
    let bytes = encoded(&envelope, &batch);
    let view = BatchDecoder::envelope(&bytes).expect("just written");
    assert_eq!((view.client, view.protocol, view.route), ("tenant-a", Protocol::Influx, 9));
    assert_eq!((view.request_id, view.traceparent), ("r-1", "00-ab-cd-01"));
    assert_eq!((view.idempotency_key, view.same_timestamp_all), (&b"\x00\xFF"[..], true));
}

/// `(offset, bytes, field)` of the table under `## title`.
fn table(title: &str) -> Vec<(usize, usize, String)> {
    let section =
        FORMAT.split(&format!("## {title}\n")).nth(1).expect("a section").split("\n## ").next().expect("text");
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_string()).collect::<Vec<_>>();
    let rows = section.lines().filter(|line| line.starts_with('|')).map(cells);
    rows.filter_map(|row| Some((row[1].parse().ok()?, row[2].parse().ok()?, row[3].clone()))).collect()
}

/// Writes with one field set to a value of its own at a time: the bytes that change are the field's (and the CRC's).
fn check_table(title: &str, crc_at: usize, write: impl Fn(&str) -> Vec<u8>) {
    let plain = write("");
    let rows = table(title);
    assert!(rows.len() >= 15, "{title}");
    for (at, bytes, field) in rows {
        if matches!(field.as_str(), "magic" | "version" | "crc") {
            assert!(plain[at..at + bytes].iter().any(|&b| b != 0), "{title}: {field}");
            continue;
        }
        let changed = write(&field);
        let at_all = (0..plain.len()).filter(|&n| plain[n] != changed[n] && n < crc_at).collect::<Vec<_>>();
        assert_eq!(at_all, (at..at + bytes).collect::<Vec<_>>(), "{title}: {field}");
    }
}

#[test]
fn the_tables_of_format_md_say_where_every_field_is() {
    check_table("Segment header", PAGE_BYTES - 4, |field| {
        let v = |name: &str| if name == field { u64::MAX } else { 0 };
        let mut page = vec![0; PAGE_BYTES];
        SegmentHeader {
            log_id: v("log_id") as u32,
            node_id: if field == "node_id" { u128::MAX } else { 0 },
            segment_id: v("segment_id"),
            epoch: v("epoch"),
            created_stamp_ns: v("created_stamp_ns") as i64,
            salt: v("salt"),
            previous_segment: v("previous_segment"),
            previous_end: v("previous_end"),
            previous_crc: v("previous_crc") as u32,
            first_block: v("first_block"),
            first_point: v("first_point"),
            durable_upto: v("durable_upto"),
            segment_bytes: v("segment_bytes"),
        }
        .write(&mut page);
        page
    });
    check_table("Block", BLOCK_HEADER_BYTES - 4, |field| {
        let v = |name: &str| if name == field { u64::MAX } else { 0 };
        let mut page = vec![0; BLOCK_HEADER_BYTES];
        BlockHeader {
            log_id: v("log_id") as u32,
            segment_id: v("segment_id"),
            epoch: v("epoch"),
            block_seq: v("block_seq"),
            first_point: v("first_point"),
            points: v("points") as u32,
            payload_bytes: v("payload_bytes") as u32,
            durable_upto: v("durable_upto"),
            first_stamp_ns: v("first_stamp_ns") as i64,
            last_stamp_ns: v("last_stamp_ns") as i64,
            payload_crc: v("payload_crc") as u32,
            previous_crc: v("previous_crc") as u32,
            records: v("records") as u32,
            offset: v("offset"),
            salt: v("salt"),
        }
        .write(&mut page);
        page
    });
}

fn typical(points: usize, random: &mut Random) -> Batch {
    let mut batch = Batch::default();
    for _ in 0..points {
        let series = random.below(10_000) as u32;
        let timestamp = 1_700_000_000_000_000_000 + random.below(60_000) as i64 * 1_000_000;
        let value = random.below(10_000) as f64 / 100.0;
        batch.push(SeriesRef::Known(SeriesId(series)), timestamp, Kind::Float, value.to_bits());
    }
    batch
}

#[test]
fn four_hundred_typical_points_cost_at_most_ten_bytes_each() {
    let mut random = Random(1);
    let mut rows = String::new();
    for points in [1, 10, 100, 400, 1_000, 10_000] {
        let record = encoded(&envelope(), &typical(points, &mut random)).len() + 8;
        let block = pages(BLOCK_HEADER_BYTES + record.next_multiple_of(8));
        let each = |bytes: usize| bytes as f64 / points as f64;
        rows += &format!("| {points} | {:.1} | {:.1} |\n", each(record), each(block));
        assert!(points < 400 || each(record) <= 10.0, "{points} points: {} bytes each", each(record));
    }
    assert!(FORMAT.ends_with(&rows), "the table of FORMAT.md should be:\n{rows}");
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/log/v1.seg")
}

#[test]
fn the_golden_file_of_version_one_stays_readable() {
    let dir = scratch_dir();
    std::fs::copy(golden(), dir.path().join(segment_file_name(1))).expect("the golden file");
    let recovered = recover(dir.path(), 3, 77).expect("recover");
    assert_eq!((recovered.start.next_point, recovered.start.epoch, recovered.last_stamp_ns), (8, 2, Some(2_000)));
    assert_eq!(recovered.notes, Vec::<String>::new());
    let mut seen = Vec::new();
    let report = dump(dir.path(), 3, 77, |record| {
        let Some((view, batch)) = &record.batch else {
            seen.push(format!("{:?} {:?}", record.kind, record.bytes.len()));
            return;
        };
        for n in 0..batch.len() {
            let key = String::from_utf8_lossy(record.key(n).expect("a name")).into_owned();
            let (kind, time, bits) = (batch.kinds[n], batch.timestamps_ns[n], batch.bits[n]);
            seen.push(format!("{} {key:?} {kind} {time} {bits:x}", view.client));
        }
    });
    assert!(report.expect("dump").is_clean());
    let expected = include_str!("../../testdata/log/v1.txt");
    assert_eq!(seen.join("\n"), expected.trim_end());
}

#[test]
fn a_batch_of_any_size_is_split_and_comes_back_in_order() {
    let keys = Keys::new(1_000);
    let dir = scratch_dir();
    let large = WriterConfig {
        segment_bytes: 8 << 20,
        block_bytes: 256 << 10,
        undurable_bytes_max: 64 << 20,
        ..WriterConfig::new(3, 77, 1)
    };
    let mut log = BlockingLog::new(dir.path(), LogWriter::new(large, LogStart::empty()));
    let mut batch = Batch::default();
    (0..200_000).for_each(|n| push(&mut batch, n % 1_000, u64::from(n)));
    log.append_batch(&envelope(), 1, &batch, &keys).expect("room");
    log.flush(&keys).expect("flush");
    let spans = log.writer().read_plan(Position::default());
    let (values, damage) = read_all(3, spans, &keys, true);
    assert_eq!((values, damage), ((0..200_000).collect(), vec![]));
    // A reader that begins in the middle has the names all the same.
    let end = log.writer().durable_end();
    let middle = {
        let spans = log.writer().read_plan(Position::default());
        let mut reader = LogReader::new(3, spans, None);
        let Some(ReadItem::Block(block)) = reader.next_item() else { panic!("a block") };
        block.end()
    };
    assert!(middle < end);
    let (values, _) = read_all(3, log.writer().read_plan(middle), &keys, true);
    assert!(!values.is_empty() && values.len() < 200_000 && values.last() == Some(&199_999));
}

#[test]
fn appends_are_refused_at_the_bound_and_taken_again_after_a_flush() {
    let keys = Keys::new(300);
    let dir = scratch_dir();
    let mut log = BlockingLog::new(dir.path(), LogWriter::new(config(), LogStart::empty()));
    let mut batch = Batch::default();
    (0..300).for_each(|n| push(&mut batch, n, u64::from(n)));
    let mut taken = 0;
    while let Ok(_commit) = log.append_batch(&envelope(), 1, &batch, &keys) {
        taken += 1;
    }
    assert!(taken > 3);
    assert_eq!(log.append_batch(&envelope(), 1, &batch, &keys), Err(AppendError::Full));
    assert!(log.writer().undurable_bytes() < 2 * config().undurable_bytes_max);
    let durable = log.flush(&keys).expect("flush");
    assert_eq!((durable, log.writer().undurable_bytes()), (log.writer().last_commit(), 0));
    log.append_batch(&envelope(), 1, &batch, &keys).expect("room again");
}

#[test]
fn a_recycled_segment_shows_nothing_of_its_old_blocks() {
    let keys = Keys::new(300);
    let dir = scratch_dir();
    let mut log = BlockingLog::new(dir.path(), LogWriter::new(config(), LogStart::empty()));
    let mut batch = Batch::default();
    (0..300).for_each(|n| push(&mut batch, n, u64::from(n)));
    let mut appended = 0;
    for _ in 0..150 {
        log.append_batch(&envelope(), 1, &batch, &keys).expect("room");
        log.flush(&keys).expect("flush");
        appended += 300;
        let first = log.writer().read_plan(Position::default())[0].clone();
        if first.segment_id + 2 < log.writer().durable_end().segment_id {
            log.writer_mut().forget_segments_below(first.segment_id + 1);
            log.recycle(first.path);
        }
    }
    drop(log);
    let recovered = recover(dir.path(), 3, 77).expect("recover");
    assert_eq!((recovered.start.next_point, recovered.torn, recovered.damage.len()), (appended, false, 0));
    let (values, damage) = read_all(3, recovered.start.history, &keys, true);
    assert_eq!((values.len() % 300, damage.len()), (0, 0));
    assert!(verify(dir.path(), 3, 77).expect("verify").is_clean());
}

/// The last block of a log, rotted after a clean stop, passed for the torn end of a crash: dropped, and not counted.
#[test]
fn a_last_block_that_rots_after_a_clean_stop_is_damage_and_counted() {
    let keys = Keys::new(300);
    // So many blocks that the seal of some log needs a segment of its own.
    for blocks in 1..40 {
        let dir = scratch_dir();
        let mut log = BlockingLog::new(dir.path(), LogWriter::new(config(), LogStart::empty()));
        let mut last = Position::default();
        for n in 0..blocks {
            let mut batch = Batch::default();
            (0..300).for_each(|n| push(&mut batch, n, u64::from(n)));
            log.append_batch(&envelope(), n, &batch, &keys).expect("room");
            log.flush(&keys).expect("flush");
            last = log.writer().durable_end();
        }
        log.seal(blocks, &keys).expect("seal");
        assert!(log.writer().durable_end() > last, "{blocks} blocks");
        log.seal(blocks, &keys).expect("nothing to do");
        assert!(!log.writer_mut().append_seal(blocks), "one seal is enough");
        drop(log);
        let points = blocks as u64 * 300;
        let clean = recover(dir.path(), 3, 77).expect("recover");
        assert_eq!((clean.start.next_point, clean.torn, clean.damage), (points, false, vec![]));
        assert!(verify(dir.path(), 3, 77).expect("verify").is_clean());

        let path = dir.path().join(segment_file_name(last.segment_id));
        let mut bytes = std::fs::read(&path).expect("a segment");
        // The last page of the block: the header stays sound. Then the header as well.
        for at in [last.offset as usize - PAGE_BYTES + 200, PAGE_BYTES + 17] {
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).expect("rot");
            let report = verify(dir.path(), 3, 77).expect("verify");
            let lost = report.points_lost;
            assert!(lost > 0 && report.points + lost == points && report.torn.is_empty(), "{blocks}: {report:?}");
            let recovered = recover(dir.path(), 3, 77).expect("recover");
            assert_eq!((recovered.start.next_point, recovered.torn), (points, false));
        }
    }
}
