//! Dead letters of a Kafka sink, sent once more, one record a request, under the ids they had.

use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode as Code;

use super::flight::{Blame, Mode, Ticket, blame};
use super::producer::{Form, NotTaken, Outbound, Producer, Reports};
use super::refusal::Standing;
use super::settings::Settings;
use crate::forward::dead_letter::{Entry, Fate};
use crate::forward::letters_command::Resend;
use crate::reducer::thread::wall_ns;

/// How long a record may be without its report.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// One producer for all of them. An error of a letter is a Kafka that does not answer: nothing is known of it then.
pub fn resend(settings: &Settings, sink: &str) -> Result<Resend, String> {
    let mut producer = Producer::new(&settings.client_now()?, sink, Mode::Singly).map_err(|error| error.to_string())?;
    Ok(Box::new(move |entry| send(&mut producer, entry)))
}

fn send(producer: &mut Producer, entry: &Entry) -> Result<Fate, String> {
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
        Err(NotTaken::Failed(code)) => return refusal(code, entry),
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
    reports.failed.first().map_or(Ok(Fate::Taken), |failed| refusal(failed.code, entry))
}

/// Why Kafka does not take this record. An error is about the topic or Kafka itself: the letter stays as it is.
fn refusal(code: Code, entry: &Entry) -> Result<Fate, String> {
    match blame(code) {
        Blame::TooLarge | Blame::Record => Ok(Fate::Refused(code.to_string())),
        Blame::Operator | Blame::Producer => Err(format!("the topic {}: {code}", entry.target)),
    }
}
