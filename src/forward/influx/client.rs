//! Calls to an InfluxDB server, one at a time and thread, over connections that are kept.
//!
//! Every call ends: with an answer, or within the request timeout. Redirections are not followed and the environment's proxies
//! are not used: where points go is what the configuration says.

use super::answer::Heard;
use super::tls::{self, TlsFiles};
use std::io::Read;
use std::time::Duration;
use ureq::Agent;

/// Which of InfluxDB's write APIs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    V1 { database: String, retention_policy: String },
    V2 { org: String, bucket: String },
}

impl Target {
    /// For people: in messages and dead letters.
    pub fn label(&self) -> String {
        match self {
            Target::V1 { database, retention_policy } if retention_policy.is_empty() => format!("db={database}"),
            Target::V1 { database, retention_policy } => format!("db={database} rp={retention_policy}"),
            Target::V2 { org, bucket } => format!("org={org} bucket={bucket}"),
        }
    }

    pub fn write_url(&self, base: &str) -> String {
        let base = base.trim_end_matches('/');
        match self {
            Target::V1 { database, retention_policy } if retention_policy.is_empty() => {
                format!("{base}/write?db={}&precision=ns", encoded(database))
            }
            Target::V1 { database, retention_policy } => {
                format!("{base}/write?db={}&rp={}&precision=ns", encoded(database), encoded(retention_policy))
            }
            Target::V2 { org, bucket } => {
                format!("{base}/api/v2/write?org={}&bucket={}&precision=ns", encoded(org), encoded(bucket))
            }
        }
    }
}

/// Percent-encoding of a query value (RFC 3986: all but unreserved characters).
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The value of the Authorization header.
pub fn authorization(user: Option<(&str, &str)>, token: Option<&str>) -> Option<String> {
    match (token, user) {
        (Some(token), _) => Some(format!("Token {token}")),
        (None, Some((user, password))) => Some(format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))),
        (None, None) => None,
    }
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let n = u32::from_be_bytes([0, group[0], *group.get(1).unwrap_or(&0), *group.get(2).unwrap_or(&0)]);
        for digit in 0..4 {
            let shown = digit <= group.len();
            out.push(if shown { char::from(DIGITS[(n >> (18 - 6 * digit) & 63) as usize]) } else { '=' });
        }
    }
    out
}

#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
    authorization: Option<String>,
}

const ANSWER_BYTES_MAX: u64 = 1 << 20;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

impl Client {
    /// Errors are one sentence: about the files.
    pub fn new(
        connections: usize,
        within: Duration,
        authorization: Option<String>,
        tls: &TlsFiles,
    ) -> Result<Client, String> {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .timeout_connect(Some(CONNECT_WITHIN.min(within)))
            .timeout_global(Some(within))
            .max_idle_connections(connections)
            .max_idle_connections_per_host(connections)
            .user_agent(concat!("metricstream/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.config()?)
            .build()
            .into();
        Ok(Client { agent, authorization })
    }

    /// Posts lines.
    pub fn write(&self, url: &str, body: &[u8], gzip: bool) -> Heard {
        let mut request = self.agent.post(url).content_type("text/plain; charset=utf-8");
        if gzip {
            request = request.header("Content-Encoding", "gzip");
        }
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        heard(request.send(body))
    }

    /// A form, as InfluxDB 1.x takes statements.
    pub fn post_form(&self, url: &str, form: &[(&str, &str)]) -> Heard {
        let mut request = self.agent.post(url);
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        heard(request.send_form(form.iter().copied()))
    }

    pub fn post_json(&self, url: &str, body: &serde_json::Value) -> Heard {
        let mut request = self.agent.post(url).content_type("application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        heard(request.send(body.to_string()))
    }

    pub fn get(&self, url: &str) -> Heard {
        let mut request = self.agent.get(url);
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        heard(request.call())
    }
}

fn heard(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Heard {
    let mut answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            return match tls::refusal(&error) {
                Some(why) => Heard::NoTls { why },
                None => Heard::Nothing { why: error.to_string(), timeout: matches!(error, ureq::Error::Timeout(_)) },
            };
        }
    };
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let retry_after = header("retry-after");
    let status = answer.status().as_u16();
    // A refusal is believed only when it was heard to its end. The body is read in any case, so that the connection can
    // be used again.
    let mut body = Vec::new();
    if let Err(error) = answer.body_mut().as_reader().take(ANSWER_BYTES_MAX).read_to_end(&mut body) {
        let timeout = error.kind() == std::io::ErrorKind::TimedOut;
        return Heard::Nothing { why: format!("the answer {status} broke off: {error}"), timeout };
    }
    Heard::Answer { status, text: String::from_utf8_lossy(&body).into_owned(), retry_after }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_carry_any_name() {
        let v1 = |rp: &str| Target::V1 { database: "a b&c".into(), retention_policy: rp.into() };
        assert_eq!(v1("").write_url("http://h:1/p/"), "http://h:1/p/write?db=a%20b%26c&precision=ns");
        assert_eq!(v1("é").write_url("http://h:1"), "http://h:1/write?db=a%20b%26c&rp=%C3%A9&precision=ns");
        let v2 = Target::V2 { org: "o/1".into(), bucket: "b".into() };
        assert_eq!(v2.write_url("https://h"), "https://h/api/v2/write?org=o%2F1&bucket=b&precision=ns");
    }

    #[test]
    fn credentials_are_written_as_the_servers_read_them() {
        assert_eq!(authorization(None, None), None);
        assert_eq!(authorization(Some(("u", "p")), Some("t")).as_deref(), Some("Token t"));
        for (user, password, expected) in
            [("Aladdin", "open sesame", "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), ("a", "b", "YTpi"), ("a", "bc", "YTpiYw==")]
        {
            assert_eq!(authorization(Some((user, password)), None), Some(format!("Basic {expected}")));
        }
    }
}
