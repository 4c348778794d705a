//! What is on its way to Kafka, and what follows from each delivery report. Pure: no producer, no clock, no disk.
//!
//! Two modes. *Batches*: librdkafka groups records as it likes, and promises (enable.gapless.guarantee) that behind a
//! failed batch nothing of its partition is written. So any failure ends this producer: everything that is not settled
//! comes again from the cursor, through a new one, and the records of a key keep their order once equal ids are removed.
//!
//! *Singly*: after Kafka has refused a batch for what is in it (too large, a record it does not take), each record is a
//! request of its own until the suspects are settled. What is refused then is refused itself, and goes to the dead letters;
//! the others go on without it. If none of the suspects was at fault, their batch was too large, and later ones are smaller;
//! after enough of them larger ones are tried again, in case the bound was moved.

use std::collections::{HashSet, VecDeque};

use rdkafka::types::RDKafkaErrorCode as Code;

/// A record on its way, as the number that librdkafka carries along: which unit, and how far into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

const OFFSET_BITS: u32 = 48;

impl Ticket {
    fn new(unit: u64, offset: u64) -> Ticket {
        Ticket(unit << OFFSET_BITS | offset & ((1 << OFFSET_BITS) - 1))
    }
    pub fn to_bits(self) -> usize {
        self.0 as usize
    }
    pub fn from_bits(bits: usize) -> Ticket {
        Ticket(bits as u64)
    }
    /// The unit's number, of which the lowest 16 bits are kept.
    pub fn unit(self) -> u16 {
        (self.0 >> OFFSET_BITS) as u16
    }
    /// Of the record in its unit; blocks written a second time may begin a little before it.
    fn offset(self) -> u64 {
        ((self.0 << (64 - OFFSET_BITS)) as i64 >> (64 - OFFSET_BITS)) as u64
    }
}

/// What an error is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The batch or the record is too large for the topic
    TooLarge,
    /// Kafka does not take a record of this kind
    Record,
    /// Nobody but an operator can help: a missing topic, a missing right
    Operator,
    /// Another producer will do better, now or later
    Producer,
}

pub fn blame(code: Code) -> Blame {
    match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => Blame::TooLarge,
        Code::InvalidRecord | Code::InvalidTimestamp | Code::PolicyViolation => Blame::Record,
        Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::InvalidTopic
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::SSL
        | Code::UnsupportedCompressionType
        | Code::UnsupportedForMessageFormat => Blame::Operator,
        _ => Blame::Producer,
    }
}

/// How records are to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Batches { bytes_max: u32 },
    Singly,
}

/// What has to be done about a failed record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// Nothing now: [`Flight::trouble`] knows
    Noted,
    /// It is refused by itself. Either it arrives in parts, [`Flight::delivered`]; or set it aside, then say
    /// [`Flight::dead_lettered`]
    Refused,
}

/// Why everything that is not settled has to come again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub blame: Blame,
    pub code: Code,
    /// Records that failed with it
    pub records: u64,
}

/// What became of a unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub delivered: u64,
    pub dead_lettered: u64,
}

struct InFlight {
    /// The courier's number
    id: u64,
    log_id: u32,
    first_number: u64,
    /// Handed over and not reported; one more while the unit is still being handed over
    waiting: u64,
    outcome: Outcome,
}

pub struct Flight {
    units: VecDeque<InFlight>,
    /// Number of `units[0]`
    first_unit: u64,
    mode: Mode,
    bytes_max: u32,
    /// What the operator chose; never more
    bytes_wanted: u32,
    /// Delivered since the batches were changed
    delivered: u64,
    /// Larger batches are tried after so many
    grow_after: u64,
    /// The last change made batches larger
    grown: bool,
    /// (log, number) of records in refused batches
    suspects: HashSet<(u32, u64)>,
    suspect_bytes: u64,
    /// A suspect was refused by itself
    culprit_found: bool,
    trouble: Option<Trouble>,
    records: u64,
}

/// Below this a batch is hardly one.
const BATCH_BYTES_MIN: u32 = 1024;
/// Records that go out in small batches before larger ones are tried; twice as many each time that was wrong, since a
/// refused batch costs a new producer and some thousand single requests.
const GROW_AFTER: u64 = 1_000_000;
const GROW_AFTER_MAX: u64 = 64 * GROW_AFTER;

impl Flight {
    pub fn new(batch_bytes_max: u32) -> Flight {
        Flight {
            units: VecDeque::new(),
            first_unit: 0,
            mode: Mode::Batches { bytes_max: batch_bytes_max },
            bytes_max: batch_bytes_max,
            bytes_wanted: batch_bytes_max,
            delivered: 0,
            grow_after: GROW_AFTER,
            grown: false,
            suspects: HashSet::new(),
            suspect_bytes: 0,
            culprit_found: false,
            trouble: None,
            records: 0,
        }
    }

    pub fn is_singly(&self) -> bool {
        self.mode == Mode::Singly
    }

    /// How the next producer is to send.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Records handed over and not settled.
    pub fn records(&self) -> u64 {
        self.records
    }

    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// A unit begins; all of its points are in one log and numbered from `first_number` on.
    pub fn begin(&mut self, id: u64, log_id: u32, first_number: u64) {
        assert!(self.units.len() < 1 << 15, "tickets tell units apart");
        self.units.push_back(InFlight { id, log_id, first_number, waiting: 1, outcome: Outcome::default() });
    }

    /// The ticket of a record of the unit that was begun last.
    pub fn ticket(&self, number: u64) -> Ticket {
        let unit = self.units.back().expect("a unit was begun");
        let at = self.first_unit + self.units.len() as u64 - 1;
        Ticket::new(at & 0xFFFF, number.wrapping_sub(unit.first_number))
    }

    /// librdkafka has taken a record of the last unit.
    pub fn sent(&mut self) {
        self.units.back_mut().expect("a unit was begun").waiting += 1;
        self.records += 1;
    }

    /// A record of the last unit that was set aside without being sent.
    pub fn refused_at_once(&mut self) {
        self.units.back_mut().expect("a unit was begun").outcome.dead_lettered += 1;
    }

    /// The last unit is handed over whole.
    pub fn end(&mut self) {
        self.units.back_mut().expect("a unit was begun").waiting -= 1;
    }

    /// `records` of one unit are in Kafka, replicated as far as `acks=all` asks.
    pub fn delivered(&mut self, unit: u16, records: u64) {
        let Some(unit) = self.unit_mut(unit) else { return };
        unit.waiting -= records;
        unit.outcome.delivered += records;
        self.records -= records;
        self.delivered += records;
    }

    /// In `Singly` mode each suspect is known by its report, so that the mode can end.
    pub fn settled_singly(&mut self, ticket: Ticket) {
        if let Some(unit) = self.unit_mut(ticket.unit()) {
            let suspect = (unit.log_id, unit.first_number.wrapping_add(ticket.offset()));
            self.suspects.remove(&suspect);
        }
    }

    /// A record is not in Kafka, or not known to be. `bytes`: its key and value.
    pub fn failed(&mut self, ticket: Ticket, code: Code, bytes: usize) -> Failed {
        let blame = blame(code);
        let mode = self.mode;
        let about_record = matches!(blame, Blame::TooLarge | Blame::Record);
        let Some(unit) = self.unit_mut(ticket.unit()) else { return Failed::Noted };
        if about_record {
            let suspect = (unit.log_id, unit.first_number.wrapping_add(ticket.offset()));
            if mode == Mode::Singly {
                self.culprit_found |= self.suspects.remove(&suspect);
                return Failed::Refused;
            }
            self.suspects.insert(suspect);
            self.suspect_bytes += bytes as u64;
        }
        match &mut self.trouble {
            Some(trouble) => {
                // What is about records explains the fatal error that follows from it; an operator's matter, all else.
                let rank = |blame| match blame {
                    Blame::Operator => 3,
                    Blame::TooLarge | Blame::Record => 2,
                    Blame::Producer => 1,
                };
                if rank(blame) > rank(trouble.blame) {
                    *trouble = Trouble { blame, code, records: 0 };
                }
                trouble.records += u64::from(trouble.code == code);
            }
            None => self.trouble = Some(Trouble { blame, code, records: 1 }),
        }
        Failed::Noted
    }

    /// The record of a failed ticket is set aside, durably.
    pub fn dead_lettered(&mut self, ticket: Ticket) {
        let Some(unit) = self.unit_mut(ticket.unit()) else { return };
        unit.waiting -= 1;
        unit.outcome.dead_lettered += 1;
        self.records -= 1;
    }

    /// Units that are settled, in the order they were sent.
    pub fn take_settled(&mut self, mut each: impl FnMut(u64, Outcome)) {
        while let Some(unit) = self.units.front()
            && unit.waiting == 0
        {
            each(unit.id, unit.outcome);
            self.units.pop_front();
            self.first_unit += 1;
        }
    }

    /// Whether the producer has to be changed before another unit: nothing may be on its way then.
    pub fn wants_new_producer(&self) -> bool {
        match self.mode {
            Mode::Singly => self.suspects.is_empty(),
            Mode::Batches { bytes_max } => bytes_max < self.bytes_wanted && self.delivered >= self.grow_after,
        }
    }

    /// To be called when [`Flight::wants_new_producer`] and nothing is on its way.
    pub fn change_batches(&mut self) {
        assert!(self.units.is_empty() && self.suspects.is_empty(), "nothing is on its way");
        if !self.is_singly() {
            self.bytes_max = self.bytes_max.saturating_mul(2).min(self.bytes_wanted);
            self.grown = true;
        } else if !self.culprit_found {
            // All of them went through by themselves: it was their company.
            let refused = u32::try_from(self.suspect_bytes).unwrap_or(u32::MAX);
            self.bytes_max = (self.bytes_max.min(refused) / 2).max(BATCH_BYTES_MIN);
            if std::mem::take(&mut self.grown) {
                self.grow_after = (2 * self.grow_after).min(GROW_AFTER_MAX);
            }
        }
        (self.suspect_bytes, self.culprit_found, self.delivered) = (0, false, 0);
        self.mode = Mode::Batches { bytes_max: self.bytes_max };
    }

    /// Forgets what is not settled; it comes again.
    pub fn reset(&mut self) {
        self.units.clear();
        // Late reports of the old producer, if there were any, must not meet new units.
        self.first_unit += 1 << 15;
        self.records = 0;
        self.trouble = None;
        if !self.suspects.is_empty() {
            self.mode = Mode::Singly;
        }
    }

    fn unit_mut(&mut self, unit: u16) -> Option<&mut InFlight> {
        let at = unit.wrapping_sub(self.first_unit as u16);
        self.units.get_mut(usize::from(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flight with units of the given sizes handed over; ids from 1, numbers from 100 a unit.
    fn flight(units: &[u64]) -> (Flight, Vec<Vec<Ticket>>) {
        let mut flight = Flight::new(1_000_000);
        let tickets = send(&mut flight, units);
        (flight, tickets)
    }

    fn send(flight: &mut Flight, units: &[u64]) -> Vec<Vec<Ticket>> {
        let mut tickets = Vec::new();
        for (id, &records) in (1..).zip(units) {
            flight.begin(id, 7, id * 100);
            let of_unit = (0..records).map(|n| {
                let ticket = flight.ticket(id * 100 + n);
                flight.sent();
                ticket
            });
            tickets.push(of_unit.collect());
            flight.end();
        }
        tickets
    }

    fn settled(flight: &mut Flight) -> Vec<(u64, u64, u64)> {
        let mut out = Vec::new();
        flight.take_settled(|id, outcome| out.push((id, outcome.delivered, outcome.dead_lettered)));
        out
    }

    #[test]
    fn every_error_has_one_to_blame() {
        for (code, expected) in [
            (Code::MessageSizeTooLarge, Blame::TooLarge),
            (Code::InvalidTimestamp, Blame::Record),
            (Code::InvalidRecord, Blame::Record),
            (Code::UnknownTopicOrPartition, Blame::Operator),
            (Code::UnknownTopic, Blame::Operator),
            (Code::TopicAuthorizationFailed, Blame::Operator),
            (Code::SaslAuthenticationFailed, Blame::Operator),
            (Code::Fatal, Blame::Producer),
            (Code::GaplessGuarantee, Blame::Producer),
            (Code::PurgeQueue, Blame::Producer),
            (Code::PurgeInflight, Blame::Producer),
            (Code::MessageTimedOut, Blame::Producer),
            (Code::NotEnoughReplicas, Blame::Producer),
            (Code::OutOfOrderSequenceNumber, Blame::Producer),
            (Code::BrokerTransportFailure, Blame::Producer),
        ] {
            assert_eq!(blame(code), expected, "{code:?}");
        }
    }

    #[test]
    fn units_are_settled_in_order_and_whole() {
        let (mut flight, tickets) = flight(&[2, 0, 1]);
        assert_eq!(flight.records(), 3);
        assert_eq!(settled(&mut flight), []);
        flight.delivered(tickets[2][0].unit(), 1);
        flight.delivered(tickets[0][0].unit(), 1);
        assert_eq!(settled(&mut flight), [], "the first unit still waits for one");
        flight.delivered(tickets[0][1].unit(), 1);
        assert_eq!(settled(&mut flight), [(1, 2, 0), (2, 0, 0), (3, 1, 0)]);
        assert!(flight.is_empty() && flight.records() == 0);
    }

    #[test]
    fn a_failed_record_holds_its_unit_and_all_behind_it() {
        let (mut flight, tickets) = flight(&[1, 2, 1]);
        assert_eq!(flight.failed(tickets[1][0], Code::MessageTimedOut, 10), Failed::Noted);
        for ticket in [tickets[0][0], tickets[1][1], tickets[2][0]] {
            flight.delivered(ticket.unit(), 1);
        }
        assert_eq!(settled(&mut flight), [(1, 1, 0)]);
        let expected = Trouble { blame: Blame::Producer, code: Code::MessageTimedOut, records: 1 };
        assert_eq!(flight.trouble(), Some(&expected));
        flight.reset();
        assert!(flight.is_empty() && flight.trouble().is_none());
        assert_eq!(flight.mode(), Mode::Batches { bytes_max: 1_000_000 }, "nothing was wrong with the records");
        flight.delivered(tickets[1][1].unit(), 1);
        let again = send(&mut flight, &[1, 2]);
        flight.delivered(tickets[0][0].unit(), 1);
        assert_eq!(settled(&mut flight), [], "reports from before the reset meet nothing");
        again.iter().flatten().for_each(|ticket| flight.delivered(ticket.unit(), 1));
        assert_eq!(settled(&mut flight), [(1, 1, 0), (2, 2, 0)]);
    }

    #[test]
    fn what_explains_the_failure_is_named() {
        for (codes, blamed, named, records) in [
            (
                &[Code::Fatal, Code::MessageSizeTooLarge, Code::MessageSizeTooLarge][..],
                Blame::TooLarge,
                Code::MessageSizeTooLarge,
                2,
            ),
            (&[Code::MessageSizeTooLarge, Code::GaplessGuarantee], Blame::TooLarge, Code::MessageSizeTooLarge, 1),
            (&[Code::UnknownTopic, Code::PurgeQueue, Code::UnknownTopic], Blame::Operator, Code::UnknownTopic, 2),
            (&[Code::MessageSizeTooLarge, Code::UnknownTopic], Blame::Operator, Code::UnknownTopic, 1),
        ] {
            let (mut flight, tickets) = flight(&[codes.len() as u64]);
            for (ticket, &code) in tickets[0].iter().zip(codes) {
                flight.failed(*ticket, code, 10);
            }
            assert_eq!(flight.trouble(), Some(&Trouble { blame: blamed, code: named, records }), "{codes:?}");
        }
    }

    #[test]
    fn a_refused_batch_is_sent_singly_and_the_culprit_is_set_aside() {
        let (mut flight, tickets) = flight(&[3, 1]);
        for &ticket in &tickets[0][..2] {
            assert_eq!(flight.failed(ticket, Code::MessageSizeTooLarge, 600_000), Failed::Noted);
        }
        flight.failed(tickets[0][2], Code::Fatal, 10);
        flight.reset();
        assert_eq!(flight.mode(), Mode::Singly);
        let again = send(&mut flight, &[3, 1]);
        for &ticket in [again[0][1], again[0][2], again[1][0]].iter() {
            flight.settled_singly(ticket);
            flight.delivered(ticket.unit(), 1);
        }
        assert!(!flight.wants_new_producer(), "one suspect is open");
        assert_eq!(flight.failed(again[0][0], Code::MessageSizeTooLarge, 600_000), Failed::Refused);
        assert_eq!(settled(&mut flight), [], "it is not set aside yet");
        flight.dead_lettered(again[0][0]);
        assert_eq!(settled(&mut flight), [(1, 2, 1), (2, 1, 0)]);
        assert!(flight.wants_new_producer() && flight.trouble().is_none());
        flight.change_batches();
        assert_eq!(flight.mode(), Mode::Batches { bytes_max: 1_000_000 }, "the batches were not at fault");
    }

    #[test]
    fn a_batch_of_good_records_that_was_too_large_makes_later_ones_smaller() {
        let (mut flight, tickets) = flight(&[2]);
        tickets[0]
            .iter()
            .for_each(|&ticket| assert_eq!(flight.failed(ticket, Code::MessageSizeTooLarge, 300_000), Failed::Noted));
        for expected in [300_000, 150_000] {
            flight.reset();
            let again = send(&mut flight, &[2]);
            for &ticket in &again[0] {
                flight.settled_singly(ticket);
                flight.delivered(ticket.unit(), 1);
            }
            assert_eq!(settled(&mut flight).len(), 1);
            flight.change_batches();
            assert_eq!(flight.mode(), Mode::Batches { bytes_max: expected });
            let third = send(&mut flight, &[2]);
            third[0].iter().for_each(|&ticket| {
                assert_eq!(flight.failed(ticket, Code::MessageSizeTooLarge, 10_000_000), Failed::Noted)
            });
        }
        for _ in 0..20 {
            flight.reset();
            let again = send(&mut flight, &[1]);
            flight.suspects.clear();
            flight.delivered(again[0][0].unit(), 1);
            settled(&mut flight);
            flight.change_batches();
            let third = send(&mut flight, &[1]);
            flight.failed(third[0][0], Code::MessageSizeTooLarge, 10);
        }
        assert_eq!(flight.bytes_max, BATCH_BYTES_MIN, "there is an end to it");
    }

    #[test]
    fn batches_that_were_made_smaller_grow_again_after_good_times_and_more_slowly_when_that_was_wrong() {
        let deliver = |flight: &mut Flight, records: u64| {
            for ticket in send(flight, &[records])[0].iter() {
                flight.delivered(ticket.unit(), 1);
            }
            settled(flight);
        };
        // Refused as a batch, taken one by one.
        let refuse = |flight: &mut Flight| {
            for ticket in send(flight, &[2])[0].iter() {
                flight.failed(*ticket, Code::MessageSizeTooLarge, 10_000_000);
            }
            flight.reset();
            for ticket in send(flight, &[2])[0].iter() {
                flight.settled_singly(*ticket);
                flight.delivered(ticket.unit(), 1);
            }
            settled(flight);
            flight.change_batches();
        };
        let mut flight = Flight::new(1_000_000);
        assert!(!flight.wants_new_producer());
        refuse(&mut flight);
        refuse(&mut flight);
        assert_eq!(flight.mode(), Mode::Batches { bytes_max: 250_000 });
        for (grow_after, then) in [(GROW_AFTER, 500_000), (GROW_AFTER, 1_000_000)] {
            deliver(&mut flight, grow_after - 1);
            assert!(!flight.wants_new_producer());
            deliver(&mut flight, 1);
            assert!(flight.wants_new_producer());
            flight.change_batches();
            assert_eq!(flight.mode(), Mode::Batches { bytes_max: then });
        }
        deliver(&mut flight, 2 * GROW_AFTER);
        assert!(!flight.wants_new_producer(), "never more than the operator chose");
        refuse(&mut flight);
        deliver(&mut flight, GROW_AFTER);
        assert!(!flight.wants_new_producer(), "the last try was wrong");
        deliver(&mut flight, GROW_AFTER);
        assert!(flight.wants_new_producer());
    }

    #[test]
    fn trouble_that_is_not_about_records_ends_the_singly_mode_too() {
        let (mut flight, tickets) = flight(&[2]);
        flight.failed(tickets[0][0], Code::InvalidTimestamp, 10);
        flight.reset();
        let again = send(&mut flight, &[2]);
        assert_eq!(flight.failed(again[0][0], Code::UnknownTopic, 10), Failed::Noted);
        assert_eq!(flight.trouble().map(|t| t.blame), Some(Blame::Operator));
        flight.reset();
        assert_eq!(flight.mode(), Mode::Singly, "the suspect is still to be found");
    }
}
