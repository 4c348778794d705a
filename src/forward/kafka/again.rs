//! Dead letters of a Kafka sink, sent once more, one record a request, under the ids they had.

use std::time::{Duration, Instant};

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::types::RDKafkaErrorCode as Code;

use super::flight::{Blame, Mode, Ticket, blame};
use super::producer::{NotTaken, Producer, Reports};
use super::settings::Settings;
use crate::forward::dead_letter::Entry;

/// For all of them without any report.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Answers how many were taken, and those that are refused again, with the new reason. An error is a Kafka that does not
/// answer: nothing is known then.
pub fn send_again(settings: &Settings, sink: &str, entries: Vec<Entry>) -> Result<(u64, Vec<Entry>), String> {
    let producer = Producer::new(&settings.client_now()?, sink, Mode::Singly).map_err(|error| error.to_string())?;
    let (mut sent, mut refused) = (0, Vec::new());
    for mut entry in entries {
        let id = Header { key: "id", value: Some(entry.id.as_bytes()) };
        let mut headers = OwnedHeaders::new_with_capacity(1 + entry.headers.len()).insert(id);
        for (name, value) in &entry.headers {
            headers = headers.insert(Header { key: name, value: Some(value.as_bytes()) });
        }
        let key = entry.key.as_deref().unwrap_or("").as_bytes();
        match producer.send(&entry.target, key, entry.body.as_bytes(), headers, Ticket::from_bits(0)) {
            Ok(()) => {}
            Err((NotTaken::Full, _)) => unreachable!("one record at a time"),
            Err((NotTaken::Failed(code), _)) => {
                entry.reason = refusal(code, &entry)?;
                refused.push(entry);
                continue;
            }
        }
        let begun = Instant::now();
        let mut reports = Reports::default();
        while reports.is_empty() {
            if begun.elapsed() > SILENCE_MAX {
                producer.purge();
                return Err(format!("Kafka has not answered within {} s", SILENCE_MAX.as_secs()));
            }
            reports.clear();
            producer.poll(Duration::from_millis(100), &mut reports);
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
