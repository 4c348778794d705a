//! Percent-encoding and form-encoded pairs (`a=1&b=%20`), as the WHATWG URL standard's
//! application/x-www-form-urlencoded parser reads them, but strict: a `%` without two hex digits is refused, because
//! readers differ in what they make of it.

use std::borrow::Cow;

/// Appends `encoded` to `out` with `%xx` decoded, and `+` as a space when `plus_is_space` (queries and forms; not
/// paths). `false` when a `%` is not followed by two hex digits; `out` then holds what came before.
pub fn percent_decode(encoded: &[u8], plus_is_space: bool, out: &mut Vec<u8>) -> bool {
    let mut at = 0;
    while let Some(&byte) = encoded.get(at) {
        match byte {
            b'%' => {
                let (Some(high), Some(low)) =
                    (encoded.get(at + 1).and_then(|b| hex(*b)), encoded.get(at + 2).and_then(|b| hex(*b)))
                else {
                    return false;
                };
                out.push(high << 4 | low);
                at += 3;
            }
            b'+' if plus_is_space => {
                out.push(b' ');
                at += 1;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    true
}

pub(crate) fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// Whether every `%` stands before two hex digits and the decoded text is UTF-8 without NUL.
/// `scratch` is reused by the caller; plain ASCII does not touch it.
pub fn is_decodable(encoded: &[u8], scratch: &mut Vec<u8>) -> bool {
    if encoded.is_ascii() && memchr::memchr2(b'%', 0, encoded).is_none() {
        return true;
    }
    scratch.clear();
    percent_decode(encoded, true, scratch)
        && std::str::from_utf8(scratch).is_ok()
        && memchr::memchr(0, scratch).is_none()
}

/// The first value of `name` in form-encoded `pairs`; `a` and `a=` are both the empty value. Borrows unless something
/// has to be decoded. `None` when the name does not occur, or when the value cannot be decoded
/// (see [`is_decodable`], which callers ask first where that is an error).
pub fn form_value<'a>(pairs: &'a [u8], name: &str) -> Option<Cow<'a, str>> {
    let mut rest = pairs;
    while !rest.is_empty() {
        let (pair, tail) = match memchr::memchr(b'&', rest) {
            Some(at) => (&rest[..at], &rest[at + 1..]),
            None => (rest, &rest[rest.len()..]),
        };
        rest = tail;
        let (key, value) = match memchr::memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &pair[pair.len()..]),
        };
        if decodes_to(key, name.as_bytes()) {
            if memchr::memchr2(b'%', b'+', value).is_none() {
                return std::str::from_utf8(value).ok().map(Cow::Borrowed);
            }
            let mut decoded = Vec::with_capacity(value.len());
            return (percent_decode(value, true, &mut decoded))
                .then(|| String::from_utf8(decoded).ok())
                .flatten()
                .map(Cow::Owned);
        }
    }
    None
}

fn decodes_to(encoded: &[u8], plain: &[u8]) -> bool {
    if encoded == plain {
        return memchr::memchr2(b'%', b'+', plain).is_none();
    }
    if memchr::memchr(b'%', encoded).is_none() && memchr::memchr(b'+', encoded).is_none() {
        return false;
    }
    let mut decoded = Vec::with_capacity(encoded.len());
    percent_decode(encoded, true, &mut decoded) && decoded == plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_decoded_and_the_first_one_wins() {
        let query = b"db=my+db&rp=&u=a%26b&p=%C3%A9&flag&db=second&%70recision=ns";
        for (name, value) in [
            ("db", Some("my db")),
            ("rp", Some("")),
            ("u", Some("a&b")),
            ("p", Some("é")),
            ("flag", Some("")),
            ("precision", Some("ns")),
            ("none", None),
        ] {
            assert_eq!(form_value(query, name).as_deref(), value, "{name}");
        }
        assert!(matches!(form_value(query, "rp"), Some(Cow::Borrowed(""))));
    }

    #[test]
    fn what_cannot_be_decoded_is_said_to_be_so() {
        let mut scratch = Vec::new();
        for bad in [&b"a=%"[..], b"a=%1", b"a=%gg", b"%zz=1", b"a=%ff", b"a=%00", b"a=\xff"] {
            assert!(!is_decodable(bad, &mut scratch), "{bad:?}");
        }
        for good in [&b""[..], b"&&=&", b"a=%41", b"a=b=c", "a=é".as_bytes()] {
            assert!(is_decodable(good, &mut scratch), "{good:?}");
        }
    }
}
