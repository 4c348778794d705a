//! What stands between the sink and Kafka as a whole: a password, a certificate, a wrong port. librdkafka does not say so in
//! delivery reports, it tries again for ever with what it was given; so the sink has to say it, hold, and make a new client,
//! which reads the password and the certificates anew.
//!
//! Pure: time is an argument.

use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode as Code;

/// Only one of several brokers may refuse. What lasts longer, without a record delivered meanwhile, holds the sink.
const GRACE: Duration = Duration::from_secs(1);

/// Kafka will not have this client, or this client will not have Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What happened and what to do
    pub message: String,
}

impl Refusal {
    /// `None`: nothing that an operator has to mend, as far as can be told.
    pub fn of(code: Code, reason: &str) -> Option<Refusal> {
        // Under TLS 1.3 a broker refuses this client's certificate only after its own side of the handshake is over: it comes
        // as a connection that cannot be read from.
        let has_alert = reason.contains("SSL alert number");
        let message = match code {
            Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism => format!(
                "Kafka refuses the sink's login: {reason}; correct the sink's sasl, username or the contents of password_file, \
                 or the user in Kafka"
            ),
            Code::SSL | Code::BrokerTransportFailure if has_alert => format!(
                "Kafka's broker refuses this client in the TLS handshake: {reason}; check the sink's tls_certificate and \
                 tls_key, and whether the broker trusts them"
            ),
            Code::SSL if reason.contains("certificate verify failed") => format!(
                "the certificate of Kafka's broker is not accepted: {reason}; set the sink's tls_ca to the authority it comes \
                 from, and write in brokers (and in Kafka's advertised.listeners) the host name that stands in it"
            ),
            Code::SSL => format!(
                "TLS with Kafka's broker fails: {reason}; check the sink's tls settings and the port in brokers"
            ),
            _ => return None,
        };
        Some(Refusal { message })
    }
}

/// What this client does after connecting.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub tls: bool,
    pub login: bool,
}

/// What may help with an error that passes by itself most times; begins with "; ", or is empty. A port of the wrong kind
/// shows by when the broker hangs up: librdkafka's own hints are lost on their way (2.12 looks for the word "Disconnected" in
/// a format string).
pub fn advice(reason: &str, way: Way) -> &'static str {
    let hung_up_in = |state: &str| {
        let (_, after) = reason.split_once("Disconnected")?.1.split_once("(after ")?;
        let (ms, rest) = after.split_once("ms in state ")?;
        (rest.starts_with(state)).then(|| ms.parse::<u64>().ok())?
    };
    if reason.contains("connecting to a PLAINTEXT broker listener") {
        "; if that port does not speak TLS, correct the port in brokers or set the sink's tls = false"
    } else if !way.tls && hung_up_in("APIVERSION_QUERY").is_some() {
        "; if that port speaks TLS, set the sink's tls = true"
    } else if !way.login && hung_up_in("UP").is_some_and(|ms| ms < 2000) {
        "; if that port asks for a login, set the sink's sasl, username and password_file"
    } else {
        ""
    }
}

/// The last refusal, until a record is delivered.
#[derive(Debug, Default)]
pub struct Standing {
    last: Option<(Refusal, Instant)>,
}

impl Standing {
    pub fn heard(&mut self, refusal: Refusal, now: Instant) {
        // Repeats do not put off the day.
        let since = self.last.as_ref().map_or(now, |(_, since)| *since);
        self.last = Some((refusal, since));
    }

    /// A record was delivered, or there is a new client.
    pub fn clear(&mut self) {
        self.last = None;
    }

    /// The refusal that holds the sink. `waiting_since`: when the oldest record on its way was handed over; with none,
    /// nothing is held up.
    pub fn holds(&self, waiting_since: Option<Instant>, now: Instant) -> Option<&Refusal> {
        let (refusal, since) = self.last.as_ref()?;
        let since = waiting_since?.max(*since);
        (now.saturating_duration_since(since) >= GRACE).then_some(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_has_to_mend_is_told_from_what_passes() {
        let verify =
            "ssl://k:9093/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed";
        let alert = "ssl://k:9093/1: Receive failed: error:0A00045C:SSL routines::reason(1116): SSL alert number 116";
        for (code, reason, expected) in [
            (Code::Authentication, "SASL authentication error: invalid credentials", Some("password_file")),
            (Code::SaslAuthenticationFailed, "no", Some("password_file")),
            (Code::SSL, verify, Some("tls_ca")),
            (Code::SSL, alert, Some("tls_certificate")),
            (Code::BrokerTransportFailure, alert, Some("tls_certificate")),
            (Code::SSL, "wrong version number", Some("the port in brokers")),
            (Code::BrokerTransportFailure, "Connect to ipv4#127.0.0.1:9 failed: Connection refused", None),
            (Code::AllBrokersDown, "1/1 brokers are down", None),
        ] {
            let found = Refusal::of(code, reason).map(|refusal| refusal.message);
            match expected {
                None => assert_eq!(found, None, "{code:?} {reason}"),
                Some(part) => {
                    let message = found.unwrap_or_else(|| panic!("{code:?} {reason} is a refusal"));
                    assert!(message.contains(part) && message.contains(reason), "{message}");
                }
            }
        }
    }

    #[test]
    fn a_port_of_the_wrong_kind_shows_by_when_the_broker_hangs_up() {
        let hung_up = |state: &str| format!("k:9092/bootstrap: Disconnected (after {state})");
        let (plain, tls) = (Way { tls: false, login: false }, Way { tls: true, login: false });
        let login = Way { tls: true, login: true };
        for (reason, way, expected) in [
            (
                "SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener? (after 1ms)",
                tls,
                "tls = false",
            ),
            (&hung_up("2ms in state APIVERSION_QUERY"), plain, "tls = true"),
            (&hung_up("2ms in state APIVERSION_QUERY, 3 identical error(s) suppressed"), plain, "tls = true"),
            (&hung_up("2ms in state APIVERSION_QUERY"), tls, ""),
            (&hung_up("3ms in state UP"), tls, "sasl"),
            (&hung_up("3ms in state UP"), login, ""),
            (&hung_up("600000ms in state UP"), plain, ""),
            (
                "k:9092/1: Connect to ipv4#127.0.0.1:9092 failed: Connection refused (after 0ms in state CONNECT)",
                plain,
                "",
            ),
        ] {
            let found = advice(reason, way);
            assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{reason}: {found}");
        }
    }

    #[test]
    fn only_a_refusal_that_lasts_and_holds_records_up_holds_the_sink() {
        let start = Instant::now();
        let refusal = |text: &str| Refusal { message: text.to_owned() };
        let mut standing = Standing::default();
        assert_eq!(standing.holds(Some(start), start + 10 * GRACE), None);
        standing.heard(refusal("one"), start);
        assert_eq!(standing.holds(None, start + 10 * GRACE), None, "nothing waits");
        assert_eq!(standing.holds(Some(start), start + GRACE / 2), None, "another broker may take it");
        standing.heard(refusal("two"), start + GRACE / 2);
        assert_eq!(standing.holds(Some(start), start + GRACE), Some(&refusal("two")));
        // Heard while nothing was on its way: what comes then has its time.
        let later = start + 100 * GRACE;
        assert_eq!(standing.holds(Some(later), later + GRACE / 2), None);
        assert_eq!(standing.holds(Some(later), later + GRACE), Some(&refusal("two")));
        standing.clear();
        assert_eq!(standing.holds(Some(later), later + GRACE), None, "a record got through");
    }
}
