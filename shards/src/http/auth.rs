//! Where a request carries its token. Which tokens exist is the shard's to know.
//!
//! Order: `u` and `p` of the query, then the `Authorization` field. Known forms: `Token name:token` and `Token token`
//! (InfluxDB), `Bearer token`, `Basic base64(name:token)`. An empty `Token` (Vector always sends one) is no credential.

use super::head::Head;
use std::borrow::Cow;

/// What a client offers. Try `token`, then `whole`.
#[derive(Debug, PartialEq, Eq)]
pub struct Credential<'a> {
    /// The password part where there is one
    pub token: Cow<'a, [u8]>,
    /// `name:token` as sent after `Token`, because a token may hold a colon
    pub whole: Option<&'a [u8]>,
}

/// `None`: the request carries no credential. Borrows but for `Basic` and for an encoded `p`.
pub fn credential(head: &Head) -> Option<Credential<'_>> {
    if let Some(password) = head.query("p")
        && !password.is_empty()
        && head.query("u").is_some()
    {
        let token = match password {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        return Some(Credential { token, whole: None });
    }
    let field = head.authorization()?;
    let space = memchr::memchr(b' ', field)?;
    let (scheme, value) = (&field[..space], field[space..].trim_ascii());
    if value.is_empty() {
        return None;
    }
    if scheme.eq_ignore_ascii_case(b"token") {
        return Some(match memchr::memchr(b':', value) {
            Some(at) if at + 1 == value.len() => Credential { token: Cow::Borrowed(value), whole: None },
            Some(at) => Credential { token: Cow::Borrowed(&value[at + 1..]), whole: Some(value) },
            None => Credential { token: Cow::Borrowed(value), whole: None },
        });
    }
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(Credential { token: Cow::Borrowed(value), whole: None });
    }
    if scheme.eq_ignore_ascii_case(b"basic") {
        let mut decoded = base64(value)?;
        let at = memchr::memchr(b':', &decoded)?;
        decoded.drain(..=at);
        return (!decoded.is_empty()).then_some(Credential { token: Cow::Owned(decoded), whole: None });
    }
    None
}

/// Compares in a time that tells only the lengths, which are no secret.
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut differ = 0u8;
    for (x, y) in a.iter().zip(b) {
        // Without the hint the compiler may stop at the first difference.
        differ |= std::hint::black_box(x ^ y);
    }
    std::hint::black_box(differ) == 0
}

/// RFC 4648 with or without padding. Allocates three quarters of what a head may hold.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let unpadded = match text {
        [rest @ .., b'=', b'='] | [rest @ .., b'='] => rest,
        rest => rest,
    };
    let mut out = Vec::with_capacity(unpadded.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0u32, 0);
    for &byte in unpadded {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(query: &str, authorization: &str) -> Option<(String, Option<String>)> {
        let field =
            if authorization.is_empty() { String::new() } else { format!("Authorization: {authorization}\r\n") };
        let mut head = Head::default();
        head.parse(format!("POST /write?{query} HTTP/1.1\r\nHost: h\r\n{field}\r\n").as_bytes()).expect("well formed");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("test text");
        credential(&head).map(|c| (text(&c.token), c.whole.map(text)))
    }

    #[test]
    fn a_token_is_found_where_each_client_puts_it() {
        let token = |t: &str| Some((t.to_string(), None));
        for (query, authorization, found) in [
            ("", "", None),
            ("u=a&p=secret", "", token("secret")),
            ("u=a&p=se%26cret", "Token other", token("se&cret")),
            ("u=a&p=", "Token other", token("other")),
            ("p=x", "Token other", token("other")),
            ("", "Token", None),
            ("", "Token ", None),
            ("", "Token secret", token("secret")),
            ("", "token  secret", token("secret")),
            ("", "Token me:secret", Some(("secret".to_string(), Some("me:secret".to_string())))),
            ("", "Token me:", token("me:")),
            ("", "Bearer se:cret", token("se:cret")),
            ("", "Basic bWU6c2VjcmV0", token("secret")),
            ("", "basic bWU6c2VjcmV0eA==", token("secretx")),
            ("", "Basic bWU6", None),
            ("", "Basic !!!", None),
            ("", "Digest x", None),
        ] {
            assert_eq!(offered(query, authorization), found, "?{query} {authorization}");
        }
    }

    #[test]
    fn equal_is_equal_and_nothing_else_is() {
        assert!(constant_time_eq(b"abc", b"abc") && constant_time_eq(b"", b""));
        assert!(!constant_time_eq(b"abc", b"abd") && !constant_time_eq(b"abc", b"ab"));
    }
}
