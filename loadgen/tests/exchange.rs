//! The engine against servers that refuse, close, reset, hold back or hang.

mod common;

use std::time::Duration;

use common::{OK, Play, Scripted, plan, run};
use metricstream_loadgen::engine;
use metricstream_loadgen::plan::*;

fn constant(rate: f64, duration_ms: u64) -> Plan {
    plan(Shape::Constant { rate, duration_ms })
}

const OK_AND_CLOSE: &str = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
const BUSY_FOR_1_S: &str = "HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n";

#[test]
fn a_refused_batch_comes_again_with_the_same_bytes_over_a_new_connection_after_the_time_asked_for() {
    let server = Scripted::start(|number, _| Play::Answer(if number == 0 { BUSY_FOR_1_S } else { OK }));
    let mut plan = constant(1.0, 1000);
    plan.transport.retry = Retry::Same { attempts: 3 };
    plan.transport.timeout_ms = 5000;
    let result = run(&plan, server.address);
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].body, seen[1].body);
    assert_ne!(seen[0].connection, seen[1].connection);
    let waited = seen[1].at - seen[0].at;
    assert!((Duration::from_millis(990)..Duration::from_millis(1900)).contains(&waited), "{waited:?}");
    let totals = &result.totals;
    assert_eq!((totals.due, totals.sent, totals.acknowledged, totals.retries), (1, 2, 1, 1));
    assert_eq!((totals.refused.get(&503), totals.given_up), (Some(&1), 0));
    // The latency is the whole wait, from the due moment.
    assert!(result.histograms.latency_us.0.max() > 990_000);
}

#[test]
fn without_retry_after_the_wait_grows_and_the_attempts_end() {
    let server = Scripted::start(|_, _| Play::Answer(BUSY));
    let mut plan = constant(1.0, 1000);
    plan.transport.retry = Retry::Same { attempts: 4 };
    plan.transport.timeout_ms = 5000;
    let result = run(&plan, server.address);
    let seen = server.seen();
    assert_eq!(seen.len(), 4);
    let waits: Vec<u128> = seen.windows(2).map(|pair| (pair[1].at - pair[0].at).as_millis()).collect();
    assert!((45..1000).contains(&waits[0]) && waits[1] >= 95 && waits[2] >= 195, "{waits:?}");
    assert_eq!((result.totals.refused[&503], result.totals.given_up, result.totals.acknowledged), (4, 1, 0));
}

#[test]
fn a_batch_that_cannot_be_accepted_is_not_sent_again() {
    let server = Scripted::start(|_, _| Play::Answer("HTTP/1.1 413 Large\r\nContent-Length: 2\r\n\r\nno"));
    let mut plan = constant(10.0, 300);
    plan.transport.retry = Retry::Same { attempts: 4 };
    let totals = run(&plan, server.address).totals;
    assert_eq!((totals.sent, totals.refused[&413], totals.given_up, totals.retries), (3, 3, 3, 0));
}

#[test]
fn a_joined_retry_carries_the_refused_batch_and_the_next() {
    let server = Scripted::start(|number, _| Play::Answer(if number == 0 { BUSY } else { OK }));
    let mut plan = constant(2.0, 1500);
    plan.transport.retry = Retry::Joined { attempts: 5 };
    let result = run(&plan, server.address);
    let seen = server.seen();
    let lines = |n: usize| seen[n].body.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(seen.len(), 3, "the first, the first and the second in one, the third: {seen:?}");
    assert_eq!((lines(0), lines(1), lines(2)), (1, 2, 1));
    assert!(seen[1].body.windows(seen[0].body.len()).any(|window| window == seen[0].body));
    let totals = &result.totals;
    assert_eq!((totals.due, totals.points_acknowledged, totals.given_up), (3, 3, 0));
}

#[test]
fn a_reset_loses_the_answer_and_a_retry_brings_it() {
    let server = Scripted::start(|number, _| if number % 2 == 0 { Play::Reset } else { Play::Answer(OK) });
    let mut plan = constant(10.0, 500);
    plan.transport.retry = Retry::Same { attempts: 10 };
    plan.transport.timeout_ms = 5000;
    let totals = run(&plan, server.address).totals;
    assert_eq!((totals.acknowledged, totals.given_up), (5, 0));
    assert!(totals.unknown["reset"] >= 1 && totals.retries >= 1, "{totals:?}");
    assert_eq!(totals.sent, totals.acknowledged + totals.unknown.values().sum::<u64>());
}

#[test]
fn a_server_that_resets_everything_ends_in_a_full_result() {
    let server = Scripted::start(|_, _| Play::Reset);
    let result = run(&constant(50.0, 1000), server.address);
    let totals = &result.totals;
    assert_eq!((totals.due, totals.acknowledged), (50, 0));
    assert_eq!(totals.unknown.values().sum::<u64>(), 50);
    assert_eq!(totals.given_up, 50);
    assert_eq!(result.seconds.iter().map(|second| second.due).sum::<u64>(), 50);
}

#[test]
fn reconnecting_takes_a_connection_for_each_request() {
    let server = Scripted::start(|_, _| Play::AnswerAndClose(OK));
    let mut plan = constant(100.0, 500);
    plan.transport.connection = Connection::Reconnect;
    plan.transport.connections = 4;
    let totals = run(&plan, server.address).totals;
    assert_eq!((totals.acknowledged, totals.sent), (50, 50));
    let seen = server.seen();
    let connections: std::collections::BTreeSet<usize> = seen.iter().map(|seen| seen.connection).collect();
    assert_eq!(connections.len(), 50);
    assert!(seen.iter().all(|seen| seen.head.contains("\r\nConnection: close\r\n")));
}

#[test]
fn pipelined_requests_are_under_way_together_and_answered_in_order() {
    // Answers only when four are there: without pipelining nothing would ever come.
    const FOUR: &str = "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n\
                        HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
    let server = Scripted::start(|number, _| if number % 4 == 3 { Play::Answer(FOUR) } else { Play::Hold });
    let mut plan = constant(400.0, 500);
    plan.transport.connection = Connection::Pipelined { depth: 4 };
    let totals = run(&plan, server.address).totals;
    assert_eq!((totals.acknowledged, totals.connections_opened), (200, 1));
}

#[test]
fn an_answer_that_does_not_come_is_unknown_after_the_timeout() {
    let server = Scripted::start(|number, _| if number == 0 { Play::Hold } else { Play::Answer(OK) });
    let mut plan = constant(10.0, 1000);
    plan.transport.timeout_ms = 300;
    let result = run(&plan, server.address);
    let totals = &result.totals;
    assert_eq!((totals.acknowledged, totals.unknown["timeout"], totals.connections_opened), (9, 1, 2));
    // What waited behind it was late by the whole of it, and so was the lost one.
    assert!(result.histograms.latency_us.0.value_at_quantile(0.95) >= 290_000);
}

#[test]
fn what_never_left_is_counted_and_its_wait_too() {
    let server = Scripted::start(|_, _| Play::Hold);
    let mut plan = constant(100.0, 500);
    plan.transport.timeout_ms = 700;
    let result = run(&plan, server.address);
    let totals = &result.totals;
    assert_eq!(totals.due, 50);
    assert_eq!(totals.sent + totals.unknown["never_sent"], 50);
    assert!(totals.unknown["timeout"] >= 1);
    assert_eq!(result.histograms.latency_us.0.len(), 50);
}

#[test]
fn a_bad_answer_ends_the_connection_and_not_the_run() {
    let server = Scripted::start(|number, _| Play::Answer(if number == 0 { "SSH-2.0-x\r\n" } else { OK }));
    let totals = run(&constant(10.0, 500), server.address).totals;
    assert_eq!((totals.acknowledged, totals.unknown["bad_answer"], totals.connections_opened), (4, 1, 2));
}

#[test]
fn clients_have_their_identity_and_a_closed_loop_serves_them_all() {
    let server = Scripted::start(|_, _| Play::Answer(OK));
    let mut plan = plan(Shape::Closed { duration_ms: 300 });
    plan.workload.clients = 6;
    plan.transport.connections = 2;
    plan.transport.identity = Identity::Header;
    let totals = run(&plan, server.address).totals;
    assert!(totals.acknowledged > 12 && totals.due == totals.sent);
    for client in 0..6 {
        let name = format!("\r\nX-Client-ID: client-{client:06}\r\n");
        assert!(server.seen().iter().any(|seen| seen.head.contains(&name)), "nothing of client {client}");
    }
}

#[test]
fn a_closed_loop_outlives_a_server_that_goes_away() {
    let server =
        Scripted::start(|number, _| if number < 20 { Play::AnswerAndClose(OK_AND_CLOSE) } else { Play::Reset });
    let mut plan = plan(Shape::Closed { duration_ms: 1500 });
    plan.transport.retry = Retry::Same { attempts: 2 };
    let totals = run(&plan, server.address).totals;
    assert_eq!(totals.acknowledged, 20, "{totals:?}");
    assert_eq!(totals.sent, totals.acknowledged + totals.unknown.values().sum::<u64>());
}

#[test]
fn an_unreachable_server_is_one_sentence() {
    // Bound and not listening: refused for certain.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().expect("an address").into()).expect("bound");
    let address = socket.local_addr().expect("bound").as_socket().expect("IPv4");
    let failure = engine::run(&constant(1.0, 100), common::options(address)).expect_err("nobody is there");
    assert!(failure.0.starts_with(&format!("cannot connect to {address}: Connection refused")), "{failure}");
}
