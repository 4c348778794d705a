//! The ledger over kills, damage and full disks, and its golden file.

use std::path::Path;

use super::*;
use crate::workload::Batch;
use crate::workload::testing::plan;

fn note_all(writer: &mut Writer) {
    for client in 0..3 {
        writer.batch(Batch { client, number: 0, stamp_ns: 1_767_225_600_000_000_000 - i64::from(client) });
        writer.sent(u64::from(client), client, 0, 1);
    }
    writer.flush().expect("written");
    writer.acknowledged(0, 204);
    writer.refused(1, 503);
    writer.unknown(2, NoAnswer::Reset);
    writer.batch(Batch { client: 2, number: 1, stamp_ns: i64::MIN });
    writer.sent(u64::MAX, 2, 0, 2);
    writer.flush().expect("written");
}

fn all(path: &Path) -> Result<(Vec<Event>, u64), Problem> {
    let mut reader = Reader::open(path)?;
    let mut events = Vec::new();
    while let Some(event) = reader.event()? {
        if !matches!(event, Event::Clock { .. }) {
            events.push(event);
        }
    }
    assert!(reader.event()?.is_none());
    Ok((events, reader.dropped_bytes()))
}

fn expected() -> Vec<Event> {
    let mut events = Vec::new();
    for client in 0..3 {
        events.push(Event::Batch(Batch { client, number: 0, stamp_ns: 1_767_225_600_000_000_000 - i64::from(client) }));
        events.push(Event::Sent { request: u64::from(client), client, first: 0, count: 1 });
    }
    events.push(Event::Acknowledged { request: 0, status: 204 });
    events.push(Event::Refused { request: 1, status: 503 });
    events.push(Event::Unknown { request: 2, cause: NoAnswer::Reset });
    events.push(Event::Batch(Batch { client: 2, number: 1, stamp_ns: i64::MIN }));
    events.push(Event::Sent { request: u64::MAX, client: 2, first: 0, count: 2 });
    events
}

#[test]
fn what_was_noted_is_read_back_with_its_plan() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ledger");
    note_all(&mut Writer::create(&path, &plan()).expect("made"));
    assert_eq!(all(&path).expect("read"), (expected(), 0));
    assert_eq!(*Reader::open(&path).expect("read").plan(), plan());
}

#[test]
fn a_file_that_exists_is_not_touched() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ledger");
    std::fs::write(&path, "precious").expect("written");
    let error = Writer::create(&path, &plan()).err().expect("refused").to_string();
    assert!(error.contains("ledger cannot be made: it exists") && error.contains("name another file"), "{error}");
    assert_eq!(std::fs::read(&path).expect("there"), b"precious");
    let error = Writer::create(&dir.path().join("none/ledger"), &plan()).err().expect("refused").to_string();
    assert!(error.contains("cannot be made: No such file"), "{error}");
}

#[test]
fn wherever_a_kill_cuts_it_what_is_whole_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ledger");
    note_all(&mut Writer::create(&path, &plan()).expect("made"));
    let bytes = std::fs::read(&path).expect("there");
    let header = 16 + serde_json::to_vec(&plan()).expect("a plan").len() + 4;
    let cut = dir.path().join("cut");
    let mut counts = Vec::new();
    for len in header..bytes.len() {
        std::fs::write(&cut, &bytes[..len]).expect("written");
        let (events, dropped) = all(&cut).expect("a torn end is no damage");
        assert_eq!(events, expected()[..events.len()]);
        assert!(dropped < 29);
        counts.push(events.len());
    }
    assert!(counts.is_sorted() && counts.last() == Some(&10));
    // What a power cut may leave: length without bytes.
    let mut zeros = bytes.clone();
    zeros.extend_from_slice(&[0; 5_000]);
    std::fs::write(&cut, &zeros).expect("written");
    assert_eq!(all(&cut).expect("read"), (expected(), 5_000));
    for len in 0..header {
        std::fs::write(&cut, &bytes[..len]).expect("written");
        let error = all(&cut).expect_err("no header").to_string();
        assert!(error.contains("is no ledger") || error.contains("ends within its header"), "{len}: {error}");
    }
}

#[test]
fn any_flipped_bit_before_the_end_is_named_with_its_record() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ledger");
    note_all(&mut Writer::create(&path, &plan()).expect("made"));
    let bytes = std::fs::read(&path).expect("there");
    let header = 16 + serde_json::to_vec(&plan()).expect("a plan").len() + 4;
    // Up to the last record, whose kind could claim more than the file has.
    for at in 0..bytes.len() - 29 {
        for bit in [0x01, 0x80] {
            let mut damaged = bytes.clone();
            damaged[at] ^= bit;
            std::fs::write(&path, &damaged).expect("written");
            let outcome = all(&path);
            let error = match outcome {
                Err(error) => error.to_string(),
                // A length in the header that leads beyond the file.
                Ok(read) => panic!("byte {at}: {read:?}"),
            };
            if at >= header {
                let named: usize = error
                    .split("damaged at byte ")
                    .nth(1)
                    .and_then(|rest| rest.split(':').next()?.parse().ok())
                    .expect(&error);
                assert!(named <= at && at < named + 29, "byte {at}: {error}");
            }
        }
    }
}

#[test]
fn a_record_that_was_doubled_or_lost_is_damage() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ledger");
    note_all(&mut Writer::create(&path, &plan()).expect("made"));
    let bytes = std::fs::read(&path).expect("there");
    let header = 16 + serde_json::to_vec(&plan()).expect("a plan").len() + 4;
    let first = header + 13..header + 13 + 25;
    assert_eq!(bytes[first.start], 1, "the clock comes first, then a batch");
    let mut doubled = bytes.clone();
    doubled.splice(first.end..first.end, bytes[first.clone()].iter().copied());
    let mut lost = bytes.clone();
    lost.drain(first.clone());
    for (damaged, at) in [(doubled, first.end), (lost, first.start)] {
        std::fs::write(&path, &damaged).expect("written");
        let error = all(&path).expect_err("damage").to_string();
        assert!(error.contains(&format!("is damaged at byte {at}: the checksum differs")), "{error}");
    }
}

#[test]
fn what_is_no_ledger_or_a_later_one_is_told_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ledger");
    std::fs::write(&path, "{\"name\":\"not a ledger\"}").expect("written");
    assert!(Reader::open(&path).err().expect("none").to_string().contains("is no ledger"));
    let mut later = b"MSLEDGER".to_vec();
    later.extend_from_slice(&[2, 0, 0, 0, 2, 0, 0, 0, b'{', b'}', 0, 0, 0, 0]);
    std::fs::write(&path, later).expect("written");
    let error = Reader::open(&path).err().expect("later").to_string();
    assert!(error.contains("version 2") && error.contains("use the program that wrote it"), "{error}");
    assert!(Reader::open(&dir.path().join("none")).err().expect("none").to_string().contains("cannot be opened"));
}

#[test]
fn a_full_disk_is_an_error_and_the_ledger_so_far_stays_readable() {
    let full = Path::new("/dev/full");
    let mut writer = Writer::at(std::fs::OpenOptions::new().write(true).open(full).expect("a device"), full, &plan());
    let error = writer.flush().expect_err("no space").to_string();
    assert!(error.contains("the ledger /dev/full cannot be written: No space left"), "{error}");

    // A limit on the size of files stands for a disk that fills up, in a process of its own: it is not undone.
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ledger");
    let test = "ledger::tests::a_process_whose_ledger_fills_up";
    let status = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("LEDGER_THAT_FILLS_UP", &path)
        .stdout(std::process::Stdio::null())
        .status()
        .expect("started");
    assert!(status.success());
    assert_eq!(std::fs::metadata(&path).expect("there").len(), 20_000);
    let (events, dropped) = all(&path).expect("readable");
    assert!(events.len() > 700 && dropped > 0 && dropped < 29, "{} events, {dropped} bytes dropped", events.len());
    assert!(events.iter().enumerate().all(|(n, event)| matches!(event, Event::Batch(b) if b.number == n as u64)));
}

/// Does nothing but in the process that the test above starts.
#[test]
fn a_process_whose_ledger_fills_up() {
    let Some(path) = std::env::var_os("LEDGER_THAT_FILLS_UP") else { return };
    let mut writer = Writer::create(Path::new(&path), &plan()).expect("made");
    let limit = libc::rlimit { rlim_cur: 20_000, rlim_max: 20_000 };
    // SAFETY: plain calls without memory of ours but the limit, which outlives them.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
    for number in 0..1_000 {
        writer.batch(Batch { client: 0, number, stamp_ns: 0 });
    }
    let first = writer.flush().expect_err("the file may not grow").to_string();
    assert!(first.contains("cannot be written"), "{first}");
    assert!(writer.flush().is_err(), "nothing is written twice, and it stays full");
}

/// The bytes of version 1, for ever: a file written once, from FORMAT.md by another program.
#[test]
fn the_golden_file_reads_as_it_did() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ledger/golden-v1.ledger");
    let (events, dropped) = all(&path).expect("readable");
    assert_eq!((events, dropped), (expected(), 0));
    assert_eq!(*Reader::open(&path).expect("read").plan(), plan());
}
