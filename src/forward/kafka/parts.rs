//! A window's record in parts, for a topic that does not take it whole.
//!
//! Promises: each part is a partial of the same window, in the documented schema, and the parts add up to it: bins and counts
//! are divided among them, the first has the exact sum and the zeros, all have the extremes of the whole. The parts of a
//! record are the same however often it is divided, and so are their ids. What cannot be divided (a point, a window without
//! a sketch) is left whole, and is a dead letter.
//!
//! Nobody says how large a record may be, so that division is tried: in two, and when one of them is refused in four, and so
//! on. Parts of a division that was not taken whole may stand in the topic; `parts` tells them apart.

use std::collections::HashMap;

use rdkafka::types::RDKafkaErrorCode as Code;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::flight::{Blame, Ticket, blame};
use super::producer::FailedRecord;

/// The members of a window's document, in their order. What parts share stays as it was written.
#[derive(Serialize, Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    name: &'a RawValue,
    client_id: &'a RawValue,
    rule: &'a RawValue,
    tags: &'a RawValue,
    start_ms: &'a RawValue,
    window_s: &'a RawValue,
    era: &'a RawValue,
    revision: &'a RawValue,
    incomplete: &'a RawValue,
    unchecked: &'a RawValue,
    damaged: &'a RawValue,
    series: &'a RawValue,
    count: u64,
    sum: &'a RawValue,
    min: &'a RawValue,
    max: &'a RawValue,
    avg: Option<&'a RawValue>,
    p50: Option<&'a RawValue>,
    p95: Option<&'a RawValue>,
    p99: Option<&'a RawValue>,
    state: State<'a>,
    #[serde(default)]
    part: u32,
    #[serde(default)]
    parts: u32,
}

/// With a sketch.
#[derive(Serialize, Deserialize)]
struct State<'a> {
    #[serde(borrow)]
    sum: &'a RawValue,
    zeros: u64,
    negative: Vec<(u32, u64)>,
    positive: Vec<(u32, u64)>,
}

/// The documents of `parts` parts. `None`: it is no window with so many bins.
pub fn divide(document: &[u8], parts: u32) -> Option<Vec<Vec<u8>>> {
    let mut document: Document<'_> = serde_json::from_slice(document).ok()?;
    let zero = RawValue::from_string("0".to_owned()).expect("a number");
    let no_sum = RawValue::from_string("[\"0\",0]".to_owned()).expect("an array");
    let (negative, positive) =
        (std::mem::take(&mut document.state.negative), std::mem::take(&mut document.state.positive));
    let bins = negative.len() + positive.len();
    if bins < parts as usize {
        return None;
    }
    // What is finished is so of the whole alone.
    (document.avg, document.p50, document.p95, document.p99) = (None, None, None, None);
    document.parts = parts;
    let documents = (0..parts).map(|part| {
        let at = |part: u32| (bins as u64 * u64::from(part) / u64::from(parts)) as usize;
        let (from, to) = (at(part), at(part + 1));
        let of = |bins: &[(u32, u64)], before: usize| {
            let end = bins.len();
            bins[from.saturating_sub(before).min(end)..to.saturating_sub(before).min(end)].to_vec()
        };
        document.state.negative = of(&negative, 0);
        document.state.positive = of(&positive, negative.len());
        if part > 0 {
            (document.sum, document.state.sum, document.state.zeros) = (&zero, &no_sum, 0);
        }
        let counts = document.state.negative.iter().chain(&document.state.positive).map(|(_, count)| count);
        document.count = document.state.zeros + counts.sum::<u64>();
        document.part = part + 1;
        serde_json::to_vec(&document).expect("texts and numbers")
    });
    Some(documents.collect())
}

/// Of a part of a record.
pub fn part_id(id: &str, part: usize, parts: usize) -> String {
    format!("{id}/{part}of{parts}")
}

/// The records that are on their way in parts, by their tickets; each part bears the ticket of its record.
#[derive(Default)]
pub struct InParts {
    records: HashMap<Ticket, Divided>,
}

struct Divided {
    whole: FailedRecord,
    parts: u32,
    /// Parts without their report
    waiting: usize,
    /// Why a part was refused
    refused: Option<Code>,
}

/// What a report says of a record.
pub enum Told {
    /// It is not in parts
    Nothing,
    /// Other parts are on their way
    Waiting,
    /// All parts are in Kafka
    Delivered,
    /// .. or not all of them, and smaller ones are to be sent
    Smaller(Division),
    /// .. or not, for good: for the last reason
    Refused(FailedRecord),
}

/// Parts to be sent.
pub struct Division {
    pub ticket: Ticket,
    pub topic: String,
    pub key: Vec<u8>,
    /// With their ids
    pub records: Vec<(String, Vec<u8>)>,
}

impl InParts {
    /// Begins with a record that is too large.
    pub fn begin(&mut self, whole: FailedRecord) -> Told {
        self.divide(whole, 2)
    }

    fn divide(&mut self, whole: FailedRecord, parts: u32) -> Told {
        let Some(documents) = divide(&whole.value, parts) else { return Told::Refused(whole) };
        let id = |(n, document)| (part_id(&whole.id, n + 1, parts as usize), document);
        let records: Vec<_> = documents.into_iter().enumerate().map(id).collect();
        let division = Division { ticket: whole.ticket, topic: whole.topic.clone(), key: whole.key.clone(), records };
        let waiting = division.records.len();
        self.records.insert(whole.ticket, Divided { whole, parts, waiting, refused: None });
        Told::Smaller(division)
    }

    pub fn holds(&self, ticket: Ticket) -> bool {
        self.records.contains_key(&ticket)
    }

    /// A part has arrived, or was refused for what it is.
    pub fn told(&mut self, ticket: Ticket, refused: Option<Code>) -> Told {
        let Some(divided) = self.records.get_mut(&ticket) else { return Told::Nothing };
        divided.waiting -= 1;
        divided.refused = refused.or(divided.refused);
        if divided.waiting > 0 {
            return Told::Waiting;
        }
        let Divided { mut whole, parts, refused, .. } = self.records.remove(&ticket).expect("found above");
        match refused {
            None => Told::Delivered,
            Some(code) if blame(code) == Blame::TooLarge => self.divide(whole, 2 * parts),
            Some(code) => {
                whole.code = code;
                Told::Refused(whole)
            }
        }
    }

    /// All of them come again, whole.
    pub fn forget(&mut self) {
        self.records.clear();
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    const TOO_LARGE: Option<Code> = Some(Code::MessageSizeTooLarge);

    fn window_of_four_bins() -> FailedRecord {
        let value = r#"{"name":"n","client_id":"c","rule":null,"tags":{},"start_ms":0,"window_s":10,"era":0,"revision":0,
            "incomplete":false,"unchecked":false,"damaged":false,"series":1,"count":9,"sum":10.5,"min":-1.5,"max":7,"avg":1,
            "p50":1,"p95":7,"p99":7,"state":{"sum":["21",-1],"zeros":2,"negative":[[5,1]],"positive":[[6,1],[7,2],[9,3]]}}"#;
        FailedRecord {
            ticket: ticket(),
            code: Code::MessageSizeTooLarge,
            topic: "windows".into(),
            id: "a-1".into(),
            headers: Vec::new(),
            bytes: value.len(),
            key: b"c".to_vec(),
            value: value.into(),
        }
    }

    fn ids(told: Told) -> Vec<String> {
        let Told::Smaller(division) = told else { panic!("a division is to be sent") };
        assert_eq!((division.ticket, division.topic.as_str(), &*division.key), (ticket(), "windows", &b"c"[..]));
        division.records.into_iter().map(|(id, _)| id).collect()
    }

    fn ticket() -> Ticket {
        Ticket::from_bits(5)
    }

    #[test]
    fn a_record_is_there_when_all_parts_of_one_division_are() {
        let mut in_parts = InParts::default();
        assert_eq!(ids(in_parts.begin(window_of_four_bins())), ["a-1/1of2", "a-1/2of2"]);
        assert!(in_parts.holds(ticket()) && matches!(in_parts.told(ticket(), TOO_LARGE), Told::Waiting));
        let four = ids(in_parts.told(ticket(), None));
        assert_eq!(four, ["a-1/1of4", "a-1/2of4", "a-1/3of4", "a-1/4of4"]);
        for _ in 0..3 {
            assert!(matches!(in_parts.told(ticket(), None), Told::Waiting));
        }
        assert!(matches!(in_parts.told(ticket(), None), Told::Delivered));
        assert!(matches!(in_parts.told(ticket(), None), Told::Nothing) && !in_parts.holds(ticket()));
    }

    #[test]
    fn what_cannot_be_divided_further_or_is_refused_for_another_reason_is_refused_whole() {
        for (last, said) in [(TOO_LARGE, Code::MessageSizeTooLarge), (Some(Code::InvalidRecord), Code::InvalidRecord)] {
            let mut in_parts = InParts::default();
            ids(in_parts.begin(window_of_four_bins()));
            in_parts.told(ticket(), TOO_LARGE);
            ids(in_parts.told(ticket(), None));
            in_parts.told(ticket(), last);
            in_parts.told(ticket(), None);
            in_parts.told(ticket(), None);
            let Told::Refused(whole) = in_parts.told(ticket(), None) else { panic!("it is refused") };
            assert_eq!((whole.code, whole.value, whole.id), (said, window_of_four_bins().value, "a-1".to_owned()));
            assert!(!in_parts.holds(ticket()));
        }
        let point = FailedRecord { value: br#"{"name":"n","value":1}"#.to_vec(), ..window_of_four_bins() };
        assert!(matches!(InParts::default().begin(point), Told::Refused(_)));
    }
}
