//! librdkafka's own mock brokers give the answers that a real Kafka gives rarely: what the producer makes of them.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaErrorCode as Code, RDKafkaRespErr as Answer};

use super::flight::{Blame, Failed, Flight, Mode};
use super::producer::{Form, NotTaken, Outbound, Producer, Reports};

const RECORDS: u64 = 20;

/// What became of records 0..RECORDS of one unit.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    delivered: u64,
    failed: Vec<Code>,
}

fn config(cluster: &MockCluster<'static, rdkafka::producer::DefaultProducerContext>) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.bootstrap_servers()).set("retry.backoff.ms", "10");
    config
}

const RECORD: Outbound<'_> = Outbound {
    topic: "t",
    key: b"key",
    value: b"value",
    headers: [(c"id", b"node-0-1-7"), (c"point", b""), (c"request_id", b"r"), (c"traceparent", b"")],
    timestamp_ms: 1_700_000_000_000,
};

/// Sends all, and takes reports in until none is missing. `batches`: records are handed over in so many goes, each after
/// the one before was on its way.
fn drive(mode: Mode, answers: &[Answer], batches: u64) -> (Seen, Option<Blame>) {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("t", 1, 1).expect("a topic");
    cluster.request_errors(RDKafkaApiKey::Produce, answers);
    let mut producer = Producer::new(&config(&cluster), "test", mode).expect("a producer");
    let mut flight = Flight::new(1_000_000);
    let (mut seen, mut reports) = (Seen::default(), Reports::default());
    flight.begin(1, 0, 0);
    for n in 0..RECORDS {
        if n > 0 && n % (RECORDS / batches) == 0 {
            std::thread::sleep(Duration::from_millis(30));
        }
        let ticket = flight.ticket(n);
        match producer.send(&mut Form::new(), &RECORD, ticket) {
            Ok(()) => flight.sent(),
            // The answer to an earlier batch has come.
            Err(NotTaken::Failed(code)) => seen.failed.push(code),
            Err(NotTaken::Full) => panic!("the queue has room"),
        }
    }
    flight.end();
    let deadline = Instant::now() + Duration::from_secs(20);
    while seen.delivered + (seen.failed.len() as u64) < RECORDS {
        assert!(Instant::now() < deadline, "reports are missing: {seen:?}");
        reports.clear();
        producer.poll(Duration::from_millis(10), &mut reports);
        reports.delivered.iter().for_each(|&(unit, records)| {
            seen.delivered += records;
            flight.delivered(unit, records);
        });
        for record in reports.failed.drain(..) {
            assert_eq!((record.id.as_str(), record.topic.as_str(), record.bytes), ("node-0-1-7", "t", 8));
            seen.failed.push(record.code);
            if mode != Mode::Singly {
                assert_eq!(flight.failed(record.ticket, record.code, record.bytes), Failed::Noted);
            }
        }
    }
    (seen, flight.trouble().map(|trouble| trouble.blame))
}

#[test]
fn what_passes_by_itself_is_tried_until_it_has_passed() {
    use Answer::*;
    for answers in [
        &[][..],
        &[
            RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        ],
        &[RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND],
        &[RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION],
        &[RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT],
        &[RD_KAFKA_RESP_ERR__TRANSPORT, RD_KAFKA_RESP_ERR__TRANSPORT],
    ] {
        let (seen, blame) = drive(Mode::Batches { bytes_max: 1_000_000 }, answers, 1);
        assert_eq!(seen, Seen { delivered: RECORDS, failed: Vec::new() }, "{answers:?}");
        assert_eq!(blame, None);
    }
}

#[test]
fn behind_a_refused_batch_nothing_of_its_partition_is_delivered() {
    use Answer::*;
    for (answer, expected) in [
        (RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, Blame::TooLarge),
        (RD_KAFKA_RESP_ERR_INVALID_RECORD, Blame::Record),
        (RD_KAFKA_RESP_ERR_POLICY_VIOLATION, Blame::Record),
        (RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, Blame::Operator),
    ] {
        let (seen, blame) = drive(Mode::Batches { bytes_max: 1_000_000 }, &[answer], 4);
        assert_eq!(seen.delivered, 0, "{answer:?}: {seen:?}");
        assert_eq!(blame, Some(expected), "{answer:?}: {seen:?}");
    }
}

#[test]
fn singly_only_the_refused_record_fails() {
    let answers = [Answer::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE];
    let (seen, _) = drive(Mode::Singly, &answers, 1);
    assert_eq!(seen, Seen { delivered: RECORDS - 1, failed: vec![Code::MessageSizeTooLarge] });
}

#[test]
fn a_purge_reports_every_record() {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("t", 1, 1).expect("a topic");
    cluster.broker_down(1).expect("down");
    let mut producer =
        Producer::new(&config(&cluster), "test", Mode::Batches { bytes_max: 1_000_000 }).expect("a producer");
    let mut flight = Flight::new(1_000_000);
    flight.begin(1, 0, 0);
    for n in 0..RECORDS {
        producer.send(&mut Form::new(), &RECORD, flight.ticket(n)).expect("room");
        flight.sent();
    }
    producer.purge();
    let (mut reports, mut failed, deadline) = (Reports::default(), 0, Instant::now() + Duration::from_secs(10));
    while failed < RECORDS as usize {
        assert!(Instant::now() < deadline, "{failed} reports");
        reports.clear();
        producer.poll(Duration::from_millis(10), &mut reports);
        failed += reports.failed.len();
    }
    let begun = Instant::now();
    drop(producer);
    assert!(begun.elapsed() < Duration::from_secs(5), "ending took {:?}", begun.elapsed());
}
