//! Runs `testdata/http/requests.txt` and asks that splitting, pipelining and receiving straight into the body buffer
//! change nothing. The format is described there.

use super::head::Method;
use super::{Assembler, Bounds, Expiry, Step};
use proptest::prelude::*;

struct Case {
    name: String,
    outcome: Vec<String>,
    bytes: Vec<u8>,
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in include_str!("../../testdata/http/requests.txt").lines() {
        let Some((mark, rest)) = line.split_at_checked(1) else { continue };
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        match mark {
            "#" => {}
            ">" => cases.push(Case { name: rest.to_string(), outcome: Vec::new(), bytes: Vec::new() }),
            "=" => cases.last_mut().expect("a case").outcome.push(String::from_utf8_lossy(&unescape(rest)).into()),
            "|" => cases.last_mut().expect("a case").bytes.extend(unescape(rest)),
            _ => panic!("not a line of the table: {line}"),
        }
    }
    cases
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.extend_from_slice(before.as_bytes());
        let (code, tail) = after.split_at(1);
        rest = tail;
        match code {
            "r" => out.push(b'\r'),
            "n" => out.push(b'\n'),
            "t" => out.push(b'\t'),
            "0" => out.push(0),
            "\\" => out.push(b'\\'),
            "x" => {
                out.push(u8::from_str_radix(&tail[..2], 16).expect("two hex digits"));
                rest = &tail[2..];
            }
            "{" => {
                let (repeat, tail) = tail.split_once('}').expect("}");
                let (part, times) = repeat.rsplit_once('*').expect("*");
                out.extend(unescape(part).repeat(times.parse().expect("a number")));
                rest = tail;
            }
            other => panic!("\\{other} is no escape"),
        }
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

fn bounds() -> Bounds {
    Bounds { body_bytes_max: 1000, ..Bounds::default() }
}

/// How the rest of a body with a length is handed over.
#[derive(Clone, Copy, PartialEq)]
enum Rest {
    Pushed,
    Received,
}

/// What a shard would see: requests and refusals, and then what is left.
fn run<'a>(parts: impl Iterator<Item = &'a [u8]>, rest_of_body: Rest) -> Vec<String> {
    let bounds = bounds();
    let mut assembler = Assembler::new(0);
    let mut seen = Vec::new();
    for part in parts {
        let mut rest = part;
        loop {
            if rest_of_body == Rest::Received
                && let Some(spare) = assembler.body_spare()
            {
                let n = spare.len().min(rest.len());
                spare[..n].copy_from_slice(&rest[..n]);
                rest = &rest[n..];
                if let Step::Request { body, .. } = assembler.commit(n, 0) {
                    seen.push(request(&assembler, assembler.body(&body, rest)));
                }
                if rest.is_empty() {
                    break;
                }
                continue;
            }
            match assembler.push(rest, 0, &bounds) {
                Step::NeedMore { consumed } => {
                    assert_eq!(consumed, rest.len(), "NeedMore takes all");
                    break;
                }
                Step::Head { consumed, .. } => rest = &rest[consumed..],
                Step::Request { consumed, body } => {
                    seen.push(request(&assembler, assembler.body(&body, rest)));
                    rest = &rest[consumed..];
                }
                Step::Refuse(refusal) => {
                    seen.push(format!("refuse {} {}", refusal.status, refusal.reason));
                    break;
                }
                Step::Close => break,
            }
        }
    }
    if !seen.last().is_some_and(|last| last.starts_with("refuse")) {
        let left = if assembler.is_closing() {
            "closed"
        } else if assembler.is_idle() {
            "idle"
        } else {
            "more"
        };
        seen.push(left.to_string());
    }
    seen
}

fn request(assembler: &Assembler, body: &[u8]) -> String {
    let head = assembler.head();
    let method = match head.method() {
        Method::Get => "GET",
        Method::Head => "HEAD",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
        Method::Options => "OPTIONS",
        Method::Other => "OTHER",
    };
    let (query, keep) = (String::from_utf8_lossy(head.query_raw()), if head.keep_alive() { "keep" } else { "close" });
    format!("request {method} {} ?{query} {keep} \"{}\"", head.path(), String::from_utf8_lossy(body))
}

#[test]
fn the_table_is_as_large_as_it_should_be_and_names_are_unique() {
    let cases = cases();
    assert!(cases.len() >= 80, "{}", cases.len());
    let names: std::collections::BTreeSet<_> = cases.iter().map(|c| &c.name).collect();
    assert_eq!(names.len(), cases.len());
}

#[test]
fn every_request_of_the_table_comes_to_what_it_says() {
    let mut wrong = String::new();
    for case in cases() {
        let seen = run(std::iter::once(&case.bytes[..]), Rest::Pushed);
        if seen != case.outcome {
            let short = |lines: &[String]| lines.iter().map(|l| l.chars().take(80).collect()).collect::<Vec<String>>();
            wrong +=
                &format!("> {}\n  expected {:?}\n  seen     {:?}\n", case.name, short(&case.outcome), short(&seen));
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn splitting_a_request_anywhere_changes_nothing() {
    for case in cases() {
        for rest in [Rest::Pushed, Rest::Received] {
            // Of the largest heads every 37th place and the ends: all of them would take seconds.
            for at in (0..=case.bytes.len()).filter(|at| case.bytes.len() < 4096 || at % 37 == 0 || *at < 64) {
                let (a, b) = case.bytes.split_at(at);
                assert!(run([a, b].into_iter(), rest) == case.outcome, "{} split at {at}", case.name);
            }
            assert!(run(case.bytes.chunks(1), rest) == case.outcome, "{} byte by byte", case.name);
        }
    }
}

#[test]
fn a_request_means_the_same_behind_another() {
    let before = b"POST /before HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";
    for case in cases() {
        let bytes = [&before[..], &case.bytes].concat();
        let mut outcome = vec!["request POST /before ? keep \"abc\"".to_string()];
        outcome.extend(case.outcome.iter().cloned());
        assert!(run(std::iter::once(&bytes[..]), Rest::Pushed) == outcome, "{}", case.name);
        if case.outcome.last().is_some_and(|last| last == "idle") {
            let twice = [&case.bytes[..], before].concat();
            let mut outcome = case.outcome.clone();
            let idle = outcome.pop().expect("idle");
            outcome.extend(["request POST /before ? keep \"abc\"".to_string(), idle]);
            assert!(run(std::iter::once(&twice[..]), Rest::Pushed) == outcome, "before: {}", case.name);
        }
    }
}

#[test]
fn a_small_request_that_is_whole_is_not_copied() {
    let mut assembler = Assembler::new(0);
    for input in [
        &b"POST /m HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"[..],
        b"POST /m HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        let Step::Request { consumed, body } = assembler.push(input, 0, &bounds()) else { panic!("whole") };
        assert_eq!(consumed, input.len());
        let body = assembler.body(&body, input);
        assert_eq!(body, b"hello");
        assert!(input.as_ptr_range().contains(&body.as_ptr()));
    }
}

#[test]
fn a_waiting_client_is_told_to_go_on_only_while_it_waits() {
    let head = b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    let waits = Assembler::new(0).push(head, 0, &bounds());
    assert_eq!(waits, Step::Head { consumed: head.len(), send_continue: true });
    let sends = Assembler::new(0).push(&[&head[..], b"x"].concat(), 0, &bounds());
    assert_eq!(sends, Step::Head { consumed: head.len(), send_continue: false });
}

#[test]
fn a_refusal_tells_the_head_it_concerns() {
    let mut assembler = Assembler::new(0);
    let first = b"GET /first HTTP/1.1\r\nHost: h\r\n\r\n";
    assembler.push(first, 0, &bounds());
    let large = b"POST /large HTTP/1.1\r\nHost: h\r\nContent-Length: 9999\r\n\r\n";
    assert!(matches!(assembler.push(large, 0, &bounds()), Step::Refuse(_)));
    assert_eq!(assembler.refused_head().map(|head| head.path()), Some("/large"));
    let mut assembler = Assembler::new(0);
    assembler.push(first, 0, &bounds());
    assert!(matches!(assembler.push(b"GET /bad HTTP/1.1\r\n\r\n", 0, &bounds()), Step::Refuse(_)));
    assert!(assembler.refused_head().is_none());
}

#[test]
fn what_follows_a_refusal_is_drained_to_a_bound() {
    let bounds = bounds();
    let mut assembler = Assembler::new(0);
    assert!(matches!(assembler.push(b"GET / HTTP/1.1\r\n\r\n", 0, &bounds), Step::Refuse(_)));
    let junk = vec![b'x'; bounds.drain_bytes_max];
    assert_eq!(assembler.push(&junk, 0, &bounds), Step::NeedMore { consumed: junk.len() });
    assert_eq!(assembler.push(b"x", 0, &bounds), Step::Close);
    assert!(assembler.is_closing());
}

#[test]
fn a_refused_connection_is_closed_when_draining_takes_too_long() {
    let bounds = bounds();
    let mut assembler = Assembler::new(0);
    assembler.push(b"\n", 5, &bounds);
    assert_eq!(assembler.expire(5, &bounds), Expiry::Until(5 + bounds.drain_timeout_ns));
    assert_eq!(assembler.expire(5 + bounds.drain_timeout_ns, &bounds), Expiry::Close);
}

const SECOND_NS: u64 = 1_000_000_000;

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let bounds = bounds();
    let mut assembler = Assembler::new(SECOND_NS);
    assert_eq!(assembler.expire(75 * SECOND_NS, &bounds), Expiry::Until(76 * SECOND_NS));
    assembler.push(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", 60 * SECOND_NS, &bounds);
    assembler.replied(70 * SECOND_NS);
    assert_eq!(assembler.expire(76 * SECOND_NS, &bounds), Expiry::Until(145 * SECOND_NS));
    assert_eq!(assembler.expire(145 * SECOND_NS, &bounds), Expiry::Close);
}

#[test]
fn a_head_has_ten_seconds_however_it_trickles() {
    let bounds = bounds();
    let mut assembler = Assembler::new(0);
    for (n, byte) in b"GET / HTTP".iter().enumerate() {
        assembler.push(&[*byte], n as u64 * SECOND_NS, &bounds);
    }
    assert_eq!(assembler.deadline_ns(&bounds), 10 * SECOND_NS);
    assert!(matches!(assembler.expire(10 * SECOND_NS, &bounds), Expiry::Refuse(refusal) if refusal.status == 408));
    assert!(assembler.is_closing());
}

#[test]
fn a_body_must_keep_the_least_rate_after_its_grace() {
    let bounds = Bounds { body_bytes_max: 1 << 20, ..bounds() };
    let mut assembler = Assembler::new(0);
    let head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n";
    assert!(matches!(assembler.push(head, 0, &bounds), Step::Head { .. }));
    assert_eq!(assembler.deadline_ns(&bounds), 10 * SECOND_NS);
    assembler.push(&[0; 2048], 5 * SECOND_NS, &bounds);
    assert_eq!(assembler.deadline_ns(&bounds), 12 * SECOND_NS);
    let spare = assembler.body_spare().expect("under way").len();
    assert!(spare >= 1024);
    assembler.commit(1024, 6 * SECOND_NS);
    assert_eq!(assembler.deadline_ns(&bounds), 13 * SECOND_NS);
    assert!(matches!(assembler.expire(13 * SECOND_NS, &bounds), Expiry::Refuse(refusal) if refusal.status == 408));
}

#[test]
fn a_body_that_came_fast_cannot_stand_still_on_what_it_saved() {
    let bounds = Bounds { body_bytes_max: 1 << 20, ..bounds() };
    let heads: [&[u8]; 2] = [
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nf4240\r\n",
    ];
    for head in heads {
        let mut assembler = Assembler::new(0);
        let Step::Head { consumed, .. } = assembler.push(head, 0, &bounds) else { panic!("a head") };
        assembler.push(&head[consumed..], 0, &bounds);
        assembler.push(&[0; 900_000], SECOND_NS, &bounds);
        assert_eq!(assembler.deadline_ns(&bounds), 11 * SECOND_NS);
        // While answers to earlier requests were owed, we may not have read.
        assembler.replied(20 * SECOND_NS);
        assert_eq!(assembler.deadline_ns(&bounds), 30 * SECOND_NS);
        assembler.push(&[0; 1], 25 * SECOND_NS, &bounds);
        assert!(matches!(assembler.expire(35 * SECOND_NS, &bounds), Expiry::Refuse(refusal) if refusal.status == 408));
    }
}

#[test]
fn memory_follows_what_came_and_not_what_was_announced() {
    let bounds = Bounds { body_bytes_max: 1 << 30, ..bounds() };
    let mut assembler = Assembler::new(0);
    assembler.push(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n", 0, &bounds);
    assembler.push(&[0; 100], 0, &bounds);
    assembler.body_spare();
    assert!(assembler.into_body_buffer().len() <= 128 * 1024);
}

#[test]
fn a_large_body_gathers_whole_and_its_buffer_is_used_again() {
    let bounds = Bounds { body_bytes_max: 1 << 20, ..bounds() };
    let data: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    let mut assembler = Assembler::new(0);
    let head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 300000\r\n\r\n";
    let mut place = None;
    for _ in 0..2 {
        assembler.push(head, 0, &bounds);
        let mut sent = 0;
        let body = loop {
            let spare = assembler.body_spare().expect("under way");
            let n = spare.len().min(70_000);
            spare[..n].copy_from_slice(&data[sent..sent + n]);
            sent += n;
            if let Step::Request { body, .. } = assembler.commit(n, 0) {
                break body;
            }
        };
        assert!(assembler.body(&body, b"") == data);
        let now = assembler.body(&body, b"").as_ptr();
        assert!(place.is_none_or(|before| before == now));
        place = Some(now);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Bytes of the kind that heads and chunks are made of, cut anywhere, never panic and never mean something else.
    #[test]
    fn arbitrary_bytes_mean_the_same_however_they_are_split(
        pieces in prop::collection::vec(
            prop_oneof![
                prop::sample::select(vec![
                    &b"POST / HTTP/1.1\r\n"[..], b"GET /a?b=%41 HTTP/1.0\r\n", b"Host: h\r\n", b"Content-Length: 3\r\n",
                    b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n",
                    b"\r\n", b"\r", b"\n", b"\0", b" ", b":", b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"0\r\n", b"ff;x\r\n",
                ]).prop_map(<[u8]>::to_vec),
                prop::collection::vec(any::<u8>(), 0..4),
            ],
            0..12,
        ),
        cuts in prop::collection::vec(1usize..20, 1..6),
    ) {
        let bytes = pieces.concat();
        let whole = run(std::iter::once(&bytes[..]), Rest::Pushed);
        let mut parts = Vec::new();
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (part, tail) = rest.split_at(rest.len().min(*cut));
            parts.push(part);
            rest = tail;
        }
        prop_assert_eq!(&run(parts.iter().copied(), Rest::Pushed), &whole);
        prop_assert_eq!(&run(parts.iter().copied(), Rest::Received), &whole);
    }

    #[test]
    fn no_coding_panics_on_arbitrary_bytes(
        start in prop::sample::select(vec![
            &b""[..], b"\x1f\x8b\x08\0\0\0\0\0\0\xff", b"\x1f\x8b\x08\x1e\0\0\0\0\0\xff", b"\x28\xb5\x2f\xfd",
        ]),
        tail in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let raw = [start, &tail].concat();
        let mut inflater = super::Inflater::new().expect("memory");
        for coding in [&b"gzip"[..], b"zstd"] {
            let _ = inflater.decode(Some(coding), &raw, &bounds());
        }
    }
}
