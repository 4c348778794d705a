//! A request head: where it ends, and what it says.
//!
//! Promises: a [`Head`] that parses has exactly one framing (no body, a length, or chunked), a path without NUL that
//! is UTF-8, and a query in which every value can be decoded. It owns a copy of its bytes (some hundred), so that the
//! shard can keep it while a body arrives and while the reply waits for the disk; the copy and the decoded path are
//! reused from request to request. The syntax is httparse's, made stricter where that is lenient: it takes a bare LF
//! for a line end, and does not look at what fields mean.

use super::target::{form_value, is_decodable, percent_decode};
use super::{HEAD_BYTES_MAX, HEADERS_MAX, REQUEST_LINE_BYTES_MAX, Refusal};
use std::borrow::Cow;
use std::mem::MaybeUninit;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Method {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    /// Any other token; no route has it.
    Other,
}

/// How the end of the body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// `Content-Length`, or 0 without one
    Length(u64),
    Chunked,
}

/// Longest `X-Request-Id` that is echoed.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

/// A parsed request head. See the accessors.
#[derive(Debug, Default)]
pub struct Head {
    raw: Vec<u8>,
    path: Vec<u8>,
    scratch: Vec<u8>,
    fields: Fields,
}

#[derive(Clone, Copy, Debug, Default)]
struct Span {
    from: u16,
    to: u16,
}

/// Everything that a new head replaces.
#[derive(Debug, Clone, Copy)]
struct Fields {
    method: Method,
    framing: Framing,
    keep_alive: bool,
    expect_continue: bool,
    query: Span,
    content_encoding: Option<Span>,
    content_type: Option<Span>,
    authorization: Option<Span>,
    client_id: Option<Span>,
    request_id: Option<Span>,
    traceparent: Option<Span>,
    user_agent: Option<Span>,
}

impl Default for Fields {
    fn default() -> Fields {
        Fields {
            method: Method::Get,
            framing: Framing::Length(0),
            keep_alive: false,
            expect_continue: false,
            query: Span::default(),
            content_encoding: None,
            content_type: None,
            authorization: None,
            client_id: None,
            request_id: None,
            traceparent: None,
            user_agent: None,
        }
    }
}

impl Head {
    pub fn method(&self) -> Method {
        self.fields.method
    }
    /// Percent-decoded, from the first `/`; `*` for the asterisk form.
    pub fn path(&self) -> &str {
        std::str::from_utf8(&self.path).unwrap_or("")
    }
    /// As sent, without the `?`; every value in it can be decoded.
    pub fn query_raw(&self) -> &[u8] {
        self.at(self.fields.query)
    }
    /// The first value of `name`, decoded; `?a` and `?a=` are both `Some("")`. Borrows unless something is encoded.
    pub fn query(&self, name: &str) -> Option<Cow<'_, str>> {
        form_value(self.query_raw(), name)
    }
    /// Whether the connection may carry another request after this one's reply.
    pub fn keep_alive(&self) -> bool {
        self.fields.keep_alive
    }
    /// The client waits for `100 Continue` before it sends the body.
    pub fn expect_continue(&self) -> bool {
        self.fields.expect_continue
    }
    pub fn framing(&self) -> Framing {
        self.fields.framing
    }
    /// As sent; `body::Inflater` reads it. Several such fields count as one the decoder does not know.
    pub fn content_encoding(&self) -> Option<&[u8]> {
        self.fields.content_encoding.map(|s| self.at(s))
    }
    pub fn content_type(&self) -> Option<&[u8]> {
        self.fields.content_type.map(|s| self.at(s))
    }
    pub fn authorization(&self) -> Option<&[u8]> {
        self.fields.authorization.map(|s| self.at(s))
    }
    /// `X-Client-ID`; whether it is trusted is the operator's word.
    pub fn client_id(&self) -> Option<&[u8]> {
        self.fields.client_id.map(|s| self.at(s))
    }
    /// `X-Request-Id`, only when it is fit to be echoed and logged: 1 to 128 visible ASCII characters.
    pub fn request_id(&self) -> Option<&[u8]> {
        let id = self.at(self.fields.request_id?);
        (!id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.iter().all(u8::is_ascii_graphic)).then_some(id)
    }
    /// W3C trace context as sent, when it has the shape `00-32 hex-16 hex-2 hex`.
    pub fn traceparent(&self) -> Option<&[u8]> {
        let value = self.at(self.fields.traceparent?);
        let dashes = value.len() == 55 && value[2] == b'-' && value[35] == b'-' && value[52] == b'-';
        (dashes && value.iter().all(|b| b.is_ascii_hexdigit() || *b == b'-')).then_some(value)
    }
    pub fn user_agent(&self) -> Option<&[u8]> {
        self.fields.user_agent.map(|s| self.at(s))
    }

    /// Reads one whole head; `raw` ends with its empty line and has passed [`HeadEnd::find`].
    pub(crate) fn parse(&mut self, raw: &[u8]) -> Result<(), Refusal> {
        self.raw.clear();
        self.raw.extend_from_slice(raw);
        self.parse_raw()
    }

    /// As [`Head::parse`], over bytes that were collected in `raw` of this head.
    fn parse_raw(&mut self) -> Result<(), Refusal> {
        self.fields = Fields::default();
        self.path.clear();
        let Head { raw, path, scratch, fields } = self;
        let mut slots = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(raw, &mut slots) {
            Ok(httparse::Status::Complete(n)) if n == raw.len() => {}
            // The head ended where we saw its empty line; a parser that disagrees must not win.
            Ok(_) => return Err(Refusal::bad("bad_head", "the request head is malformed")),
            Err(error) => return Err(of_syntax(error, raw)),
        }
        let is_11 = request.version == Some(1);
        fields.method = method(request.method.unwrap_or(""));
        let spans = Spans { base: raw.as_ptr() as usize };
        let target = request.path.unwrap_or("");
        fields.query = read_target(target, fields.method, path, scratch, &spans)?;
        read_fields(request.headers, is_11, fields, &spans)
    }

    fn at(&self, span: Span) -> &[u8] {
        &self.raw[span.from as usize..span.to as usize]
    }
    /// Gives back memory that an idle connection need not hold.
    pub(crate) fn release(&mut self) {
        *self = Head::default();
    }
}

/// Turns slices of the head back into offsets.
struct Spans {
    base: usize,
}
impl Spans {
    fn of(&self, part: &[u8]) -> Span {
        let from = part.as_ptr() as usize - self.base;
        Span { from: from as u16, to: (from + part.len()) as u16 }
    }
}

fn method(token: &str) -> Method {
    match token {
        "POST" => Method::Post,
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        _ => Method::Other,
    }
}

fn of_syntax(error: httparse::Error, raw: &[u8]) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => {
            Refusal::with(431, "too_many_headers", "the request has more than 64 header fields")
        }
        httparse::Error::Version if has_other_version(raw) => {
            Refusal::with(505, "http_version", "only HTTP/1.1 and HTTP/1.0 are spoken here")
        }
        httparse::Error::HeaderName => Refusal::bad(
            "bad_header_name",
            "a header field name is malformed, or followed by a space, or the line is folded",
        ),
        httparse::Error::HeaderValue => {
            Refusal::bad("bad_header_value", "a header field value holds a control character or a bare CR")
        }
        _ => Refusal::bad("bad_request_line", "the request line is malformed"),
    }
}

/// Whether a request line is well formed but for a version that is not ours.
fn has_other_version(raw: &[u8]) -> bool {
    let line = &raw[..memchr::memchr(b'\r', raw).unwrap_or(raw.len())];
    let mut words = line.split(|b| *b == b' ');
    let (_, _, version, end) = (words.next(), words.next(), words.next(), words.next());
    end.is_none()
        && matches!(version, Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor])
            if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// Origin form, absolute form, or `*` (with OPTIONS). Leaves the decoded path in `path`.
fn read_target(
    target: &str,
    method: Method,
    path: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
    spans: &Spans,
) -> Result<Span, Refusal> {
    const BAD: Refusal = Refusal::bad("bad_target", "the request target is no path, no http URL and no *");
    let bytes = target.as_bytes();
    if bytes == b"*" && method == Method::Options {
        path.push(b'*');
        return Ok(Span::default());
    }
    if memchr::memchr(b'#', bytes).is_some() {
        return Err(Refusal::bad("bad_target", "a request target has no fragment"));
    }
    let from_path = if bytes.first() == Some(&b'/') {
        bytes
    } else {
        let scheme = memchr::memmem::find(bytes, b"://").ok_or(BAD)?;
        if !bytes[..scheme].eq_ignore_ascii_case(b"http") && !bytes[..scheme].eq_ignore_ascii_case(b"https") {
            return Err(BAD);
        }
        let rest = &bytes[scheme + 3..];
        let authority_end = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
        if authority_end == 0 || !is_host(&rest[..authority_end]) {
            return Err(BAD);
        }
        &rest[authority_end..]
    };
    let (encoded_path, query) = match memchr::memchr(b'?', from_path) {
        Some(at) => (&from_path[..at], &from_path[at + 1..]),
        None => (from_path, &from_path[from_path.len()..]),
    };
    if encoded_path.is_empty() {
        path.push(b'/');
    } else if memchr::memchr(b'%', encoded_path).is_none() {
        path.extend_from_slice(encoded_path);
    } else {
        if !percent_decode(encoded_path, false, path) {
            return Err(Refusal::bad("bad_target", "a % in the path is not followed by two hex digits"));
        }
        // An encoded slash is one path to a proxy and another to us.
        let slashes = |bytes: &[u8]| memchr::memchr_iter(b'/', bytes).count();
        if slashes(path) != slashes(encoded_path) {
            return Err(Refusal::bad("bad_target", "an encoded slash in the path is ambiguous"));
        }
    }
    if memchr::memchr(0, path).is_some() || std::str::from_utf8(path).is_err() {
        return Err(Refusal::bad("bad_target", "the decoded path is not UTF-8, or holds a NUL"));
    }
    if !is_decodable(query, scratch) {
        return Err(Refusal::bad("bad_query", "the query cannot be percent-decoded to UTF-8"));
    }
    Ok(spans.of(query))
}

/// Host and port: nothing in it that could be taken for another part of a URL or a second host.
fn is_host(value: &[u8]) -> bool {
    value.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(b))
}

fn read_fields(
    headers: &[httparse::Header<'_>],
    is_11: bool,
    fields: &mut Fields,
    spans: &Spans,
) -> Result<(), Refusal> {
    let mut hosts = 0;
    let mut length = None;
    let mut chunked = false;
    let (mut close, mut keep) = (false, false);
    for header in headers {
        let (name, value) = (header.name, trim(header.value));
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        // The length of a name tells most apart before any letter is compared.
        match name.len() {
            4 if is("host") => {
                hosts += 1;
                if !is_host(value) {
                    return Err(Refusal::bad("bad_host", "the Host field is malformed"));
                }
            }
            6 if is("expect") => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal::with(417, "expectation", "the only expectation known is 100-continue"));
                }
                // RFC 9110 10.1.1: ignored when it comes from HTTP/1.0.
                fields.expect_continue = is_11;
            }
            10 if is("connection") => {
                for token in value.split(|b| *b == b',').map(trim) {
                    close |= token.eq_ignore_ascii_case(b"close");
                    keep |= token.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            10 if is("user-agent") => fields.user_agent = Some(spans.of(value)),
            11 if is("x-client-id") => fields.client_id = Some(spans.of(value)),
            11 if is("traceparent") => fields.traceparent = Some(spans.of(value)),
            12 if is("content-type") => fields.content_type = Some(spans.of(value)),
            12 if is("x-request-id") => fields.request_id = Some(spans.of(value)),
            13 if is("authorization") => match fields.authorization {
                None => fields.authorization = Some(spans.of(value)),
                Some(_) => return Err(Refusal::bad("duplicate_header", "there is more than one Authorization field")),
            },
            14 if is("content-length") => {
                if length.is_some() {
                    return Err(Refusal::bad("content_length", "there is more than one Content-Length"));
                }
                length = Some(content_length(value)?);
            }
            16 if is("content-encoding") => {
                // Two fields mean two codings, as the comma in one field would: the decoder is given what it refuses.
                let both = fields.content_encoding.map(|first| Span { from: first.from, to: spans.of(value).to });
                fields.content_encoding = Some(both.unwrap_or_else(|| spans.of(value)));
            }
            17 if is("transfer-encoding") => {
                if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::bad("transfer_coding", "the only transfer coding known is chunked, once"));
                }
                chunked = true;
            }
            _ => {}
        }
    }
    match (hosts, is_11) {
        (1, _) | (0, false) => {}
        (0, true) => return Err(Refusal::bad("missing_host", "an HTTP/1.1 request has a Host field")),
        _ => return Err(Refusal::bad("duplicate_host", "there is more than one Host field")),
    }
    fields.framing = match (length, chunked) {
        (Some(_), true) => {
            return Err(Refusal::bad("two_framings", "Content-Length and Transfer-Encoding exclude each other"));
        }
        // RFC 9112 6.1: a 1.0 proxy in between would not have understood it.
        (None, true) if !is_11 => {
            return Err(Refusal::bad("transfer_coding", "HTTP/1.0 has no transfer codings"));
        }
        (None, true) => Framing::Chunked,
        (Some(n), false) => Framing::Length(n),
        (None, false) => Framing::Length(0),
    };
    fields.keep_alive = !close && (is_11 || keep);
    Ok(())
}

/// Digits only. More of them than u64 holds is a length beyond every bound, not a malformed one.
fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::bad("content_length", "Content-Length is not one decimal number"));
    }
    Ok(value.iter().fold(0u64, |n, b| n.saturating_mul(10).saturating_add(u64::from(b - b'0'))))
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Looks for the empty line that ends a head, in bytes that may come one at a time. Refusals depend only on the bytes
/// before them, so that a head means the same however it was split.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct HeadEnd {
    /// Start of the line that is being looked at
    line_from: usize,
    /// Bytes seen to hold no LF after `line_from`
    scanned: usize,
}

impl HeadEnd {
    /// `bytes` starts with the head and has grown since the last call. `Some(n)`: it is `n` bytes long.
    pub(crate) fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        let end = bytes.len().min(HEAD_BYTES_MAX);
        while let Some(at) = memchr::memchr(b'\n', &bytes[self.scanned..end]).map(|n| n + self.scanned) {
            if self.line_from == 0 && at >= REQUEST_LINE_BYTES_MAX {
                return Err(Self::LINE_TOO_LONG);
            }
            if at == 0 || bytes[at - 1] != b'\r' {
                return Err(Refusal::bad("bare_lf", "a line ends in LF without CR"));
            }
            self.scanned = at + 1;
            // httparse skips empty lines before the request line; the assembler took those away.
            if at == self.line_from + 1 && self.line_from > 0 {
                return Ok(Some(at + 1));
            }
            self.line_from = at + 1;
        }
        self.scanned = end;
        if self.line_from == 0 && end >= REQUEST_LINE_BYTES_MAX {
            return Err(Self::LINE_TOO_LONG);
        }
        if bytes.len() >= HEAD_BYTES_MAX {
            return Err(Refusal::with(431, "head_too_large", "the request head is longer than 16 KiB"));
        }
        Ok(None)
    }

    const LINE_TOO_LONG: Refusal = Refusal::with(414, "request_line_too_long", "the request line is longer than 8 KiB");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Head, Refusal> {
        let mut head = Head::default();
        let end = HeadEnd::default().find(text.as_bytes())?.expect("whole");
        head.parse(&text.as_bytes()[..end])?;
        Ok(head)
    }

    #[test]
    fn a_head_says_what_it_was_sent() {
        let head = parse(
            "POST /a%20b/write?db=my+db&p=x HTTP/1.1\r\nHost: h:1\r\nContent-Length:  12 \r\nX-Request-ID: r-1\r\n\
             Content-Encoding: gzip\r\nAuthorization: Token t\r\nUser-Agent: curl/8\r\nX-Client-Id: c\r\n\
             traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nExpect: 100-Continue\r\n\r\n",
        )
        .expect("well formed");
        assert_eq!(head.method(), Method::Post);
        assert_eq!(head.path(), "/a b/write");
        assert_eq!(head.query("db").as_deref(), Some("my db"));
        assert_eq!(head.framing(), Framing::Length(12));
        assert_eq!(head.request_id(), Some(&b"r-1"[..]));
        assert_eq!(head.content_encoding(), Some(&b"gzip"[..]));
        assert_eq!(head.authorization(), Some(&b"Token t"[..]));
        assert_eq!(head.user_agent(), Some(&b"curl/8"[..]));
        assert_eq!(head.client_id(), Some(&b"c"[..]));
        assert!(head.traceparent().is_some() && head.expect_continue() && head.keep_alive());
    }

    #[test]
    fn a_request_id_that_is_not_fit_for_a_log_is_not_echoed() {
        let head = parse("GET / HTTP/1.1\r\nHost: h\r\nX-Request-Id: a b\r\n\r\n").expect("well formed");
        assert_eq!(head.request_id(), None);
    }

    #[test]
    fn keep_alive_follows_the_version_and_the_connection_field() {
        for (version, connection, keep) in [
            ("1.1", "", true),
            ("1.0", "", false),
            ("1.1", "Connection: close\r\n", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.1", "Connection: keep-alive, Close\r\n", false),
            ("1.1", "Connection: x\r\nConnection: close\r\n", false),
        ] {
            let head = parse(&format!("GET / HTTP/{version}\r\nHost: h\r\n{connection}\r\n")).expect("well formed");
            assert_eq!(head.keep_alive(), keep, "{version} {connection}");
        }
    }
}
