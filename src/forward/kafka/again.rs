//! Dead letters of a Kafka sink, sent once more, one record a request, under the ids they had.

use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode as Code;

use super::flight::{Blame, Mode, Ticket, blame};
use super::producer::{Form, NotTaken, Outbound, Producer, Reports};
use super::refusal::Standing;
use super::settings::Settings;
use crate::forward::dead_letter::Entry;
use crate::reducer::thread::wall_ns;

/// For all of them without any report.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Answers how many were taken, and those that are refused again, with the new reason. An error is a Kafka that does not
/// answer: nothing is known then.
pub fn send_again(settings: &Settings, sink: &str, entries: Vec<Entry>) -> Result<(u64, Vec<Entry>), String> {
    let mut producer = Producer::new(&settings.client_now()?, sink, Mode::Singly).map_err(|error| error.to_string())?;
    let (mut sent, mut refused) = (0, Vec::new());
    for mut entry in entries {
        let other = |name: &str| entry.headers.get(name).map_or("", String::as_str).as_bytes();
        let record = Outbound {
            topic: &entry.target,
            key: entry.key.as_deref().unwrap_or("").as_bytes(),
            value: entry.body.as_bytes(),
            headers: [
                (c"id", entry.id.as_bytes()),
                (c"point", other("point")),
                (c"request_id", other("request_id")),
                (c"traceparent", other("traceparent")),
            ],
            timestamp_ms: wall_ns() / 1_000_000,
        };
        match producer.send(&mut Form::new(), &record, Ticket::from_bits(0)) {
            Ok(()) => {}
            Err(NotTaken::Full) => unreachable!("one record at a time"),
            Err(NotTaken::Failed(code)) => {
                entry.reason = refusal(code, &entry)?;
                refused.push(entry);
                continue;
            }
        }
        let begun = Instant::now();
        let (mut reports, mut standing) = (Reports::default(), Standing::default());
        while reports.is_empty() {
            if let Some(refusal) = standing.holds(Some(begun), Instant::now()) {
                producer.purge();
                return Err(refusal.message.clone());
            }
            if begun.elapsed() > SILENCE_MAX {
                producer.purge();
                return Err(format!("Kafka has not answered within {} s", SILENCE_MAX.as_secs()));
            }
            reports.clear();
            producer.poll(Duration::from_millis(100), &mut reports);
            if let Some(refusal) = reports.refusal.take() {
                standing.heard(refusal, Instant::now());
            }
        }
        match reports.failed.first() {
            None => sent += 1,
            Some(failed) => {
                entry.reason = refusal(failed.code, &entry)?;
                refused.push(entry);
            }
        }
    }
    Ok((sent, refused))
}

/// Why Kafka does not take this record. An error is about the topic or Kafka itself: the letters stay as they are.
fn refusal(code: Code, entry: &Entry) -> Result<String, String> {
    match blame(code) {
        Blame::TooLarge | Blame::Record => Ok(code.to_string()),
        Blame::Operator | Blame::Producer => Err(format!("the topic {}: {code}", entry.target)),
    }
}
