//! How each type of value is read from the file and printed into it.

use super::declare::{At, Value, nearest, refuse_unknown};
use super::units::{ByteSize, format_duration, parse_duration, parse_size};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;
use toml::de::DeValue;

type In<'a, 'i> = &'a Spanned<DeValue<'i>>;

/// Events a second. Written as a number, or `"unlimited"`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Rate(pub f64);

impl Rate {
    pub const UNLIMITED: Rate = Rate(f64::INFINITY);
    pub fn limit(self) -> Option<f64> {
        self.0.is_finite().then_some(self.0)
    }
}

/// Bytes a second. Written as a size, or `"unlimited"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub struct ByteRate(pub ByteSize);

impl ByteRate {
    pub const UNLIMITED: ByteRate = ByteRate(ByteSize(u64::MAX));
    pub const fn bytes(n: u64) -> ByteRate {
        ByteRate(ByteSize(n))
    }
    pub fn limit(self) -> Option<u64> {
        (self != ByteRate::UNLIMITED).then_some(self.0.0)
    }
}

/// What must not be shown: neither printed nor in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// What is printed instead.
    pub const HIDDEN: &'static str = "<hidden>";

    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }
    /// For comparing and handing on, never for showing.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Secret::HIDDEN)
    }
}

/// Which series an aggregate rule takes: globs on the name and on tags that must exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    pub name: String,
    pub tags: BTreeMap<String, String>,
}

impl Default for Selector {
    fn default() -> Selector {
        Selector { name: "*".to_owned(), tags: BTreeMap::new() }
    }
}

impl Selector {
    pub(super) fn example() -> Selector {
        let tags = BTreeMap::from([("region".to_owned(), "us-*".to_owned())]);
        Selector { name: "api.latency".to_owned(), tags }
    }
}

pub(super) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

pub(super) fn quote_key(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { key.to_owned() } else { quote(key) }
}

/// The sentence for a word that is none of a choice's.
pub(super) fn not_one_of(value: &DeValue<'_>, words: &[&str]) -> String {
    let list = words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(", ");
    match value.as_str() {
        Some(text) => match nearest(text, words) {
            Some(near) => format!("{} is not one of {list}; did you mean \"{near}\"?", quote(text)),
            None => format!("{} is not one of {list}", quote(text)),
        },
        None => format!("{} where one of {list} is meant", article(value)),
    }
}

fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a plain number",
        DeValue::Float(_) => "a plain number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn expected<T>(value: In<'_, '_>, at: &mut At<'_>, meant: &str) -> Option<T> {
    at.refuse(&value.span(), format!("{} where {meant} is meant", article(value.get_ref())));
    None
}

fn text<'a>(value: In<'a, '_>, at: &mut At<'_>, meant: &str) -> Option<&'a str> {
    value.get_ref().as_str().or_else(|| expected(value, at, meant))
}

fn parsed<T>(value: In<'_, '_>, at: &mut At<'_>, meant: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
    match parse(text(value, at, meant)?) {
        Ok(read) => Some(read),
        Err(message) => {
            at.refuse(&value.span(), message);
            None
        }
    }
}

fn list<T: Value>(value: In<'_, '_>, at: &mut At<'_>, meant: &str) -> Option<Vec<T>> {
    let Some(items) = value.get_ref().as_array() else { return expected(value, at, meant) };
    let read: Vec<Option<T>> = items
        .iter()
        .enumerate()
        .map(|(n, item)| at.inside(&format!("[{n}]"), &item.span(), |at| T::read(item, at)))
        .collect();
    read.into_iter().collect()
}

fn print_list<T: Value>(items: &[T]) -> Option<String> {
    Some(format!("[{}]", items.iter().filter_map(T::print).collect::<Vec<_>>().join(", ")))
}

impl Value for bool {
    fn read(value: In<'_, '_>, at: &mut At<'_>) -> Option<bool> {
        value.get_ref().as_bool().or_else(|| expected(value, at, "true or false"))
    }
    fn print(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for u32 {
    fn read(value: In<'_, '_>, at: &mut At<'_>) -> Option<u32> {
        let Some(integer) = value.get_ref().as_integer() else { return expected(value, at, "a whole number") };
        let read = u32::from_str_radix(integer.as_str(), integer.radix()).ok();
        if read.is_none() {
            at.refuse(
                &value.span(),
                format!("{integer} is out of bounds: a whole number from 0 to {} is meant", u32::MAX),
            );
        }
        read
    }
    fn print(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for String {
    fn read(value: In<'_, '_>, at: &mut At<'_>) -> Option<String> {
        text(value, at, "a text in quotes").map(str::to_owned)
    }
    fn print(&self) -> Option<String> {
        Some(quote(self))
    }
}

impl Value for PathBuf {
    fn read(value: In<'_, '_>, at: &mut At<'_>) -> Option<PathBuf> {
        parsed(value, at, "a path in quotes", |text| match text {
            "" => Err("a path cannot be empty".to_owned()),
            text if text.contains('\0') => Err("a path cannot hold a NUL".to_owned()),
            text => Ok(PathBuf::from(text)),
        })
    }
    /// Paths come from UTF-8 text, but for --data-dir.
    fn print(&self) -> Option<String> {
        Some(quote(&self.to_string_lossy()))
    }
}

impl Value for Duration {
    fn read(value: In<'_, '_>, at: &mut At<'_>) -> Option<Duration> {
        parsed(value, at, "a duration with its unit, such as \"10 s\" or \"250 ms\",", parse_duration)
    }
    fn print(&self) -> Option<String> {
        Some(quote(&format_duration(*self)))
    }
}

impl Value for ByteSize {
    fn read(value: In<'_, '_>, at: &mut At<'_>) -> Option<ByteSize> {
        parsed(value, at, "a size with its unit, such as \"64 MiB\" or \"1 GB\",", parse_size)
    }
    fn print(&self) -> Option<String> {
        Some(quote(&self.to_string()))
    }
}

impl Value for ByteRate {
    fn read(value: In<'_, '_>, at: &mut At<'_>) -> Option<ByteRate> {
        if value.get_ref().as_str() == Some("unlimited") {
            return Some(ByteRate::UNLIMITED);
        }
        parsed(value, at, "a size with its unit (a second), such as \"8 MiB\", or \"unlimited\"", parse_size)
            .map(ByteRate)
    }
    fn print(&self) -> Option<String> {
        if *self == ByteRate::UNLIMITED { Some("\"unlimited\"".to_owned()) } else { self.0.print() }
    }
}

impl Value for Rate {
    fn read(value: In<'_, '_>, at: &mut At<'_>) -> Option<Rate> {
        const MEANT: &str = "a number (a second), or \"unlimited\",";
        let number = match value.get_ref() {
            DeValue::String(text) if text == "unlimited" => return Some(Rate::UNLIMITED),
            DeValue::Integer(n) => u64::from_str_radix(n.as_str(), n.radix()).ok().map(|n| n as f64),
            DeValue::Float(n) => n.as_str().parse::<f64>().ok().filter(|n| n.is_finite()),
            _ => return expected(value, at, MEANT),
        };
        if number.is_none() {
            at.refuse(&value.span(), "a rate is a positive number, or \"unlimited\"");
        }
        number.map(Rate)
    }
    fn print(&self) -> Option<String> {
        // `{:?}` is the shortest text that reads back to the same bits, and always a TOML float
        Some(if self.0.is_finite() { format!("{:?}", self.0) } else { "\"unlimited\"".to_owned() })
    }
}

impl Value for SocketAddr {
    fn read(value: In<'_, '_>, at: &mut At<'_>) -> Option<SocketAddr> {
        parsed(value, at, "an address in quotes, such as \"127.0.0.1:8186\",", parse_address)
    }
    fn print(&self) -> Option<String> {
        Some(quote(&self.to_string()))
    }
}

/// Names are not looked up: what is listened on must not depend on a resolver.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "{} is no IP address with a port; write for example \"127.0.0.1:8186\", \"0.0.0.0:8186\" or \"[::]:8186\"",
            quote(text)
        )
    })
}

impl Value for Secret {
    fn read(value: In<'_, '_>, at: &mut At<'_>) -> Option<Secret> {
        parsed(value, at, "a token in quotes", |text| {
            match text {
            Secret::HIDDEN => Err(
                "\"<hidden>\" stands where `metricstream config` does not show a token; write the token, or use token_file"
                    .to_owned(),
            ),
            text => check_token(text).map(|()| Secret::new(text)),
        }
        })
    }
    fn print(&self) -> Option<String> {
        Some(quote(Secret::HIDDEN))
    }
}

/// What can be sent in a header, and is long enough not to be a slip.
pub(super) fn check_token(token: &str) -> Result<(), String> {
    if token.len() < 8 {
        return Err("a token has at least 8 characters".to_owned());
    }
    if token.len() > 1024 || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("a token has at most 1024 characters, all of them printable ASCII without spaces".to_owned());
    }
    Ok(())
}

impl Value for Vec<String> {
    fn read(value: In<'_, '_>, at: &mut At<'_>) -> Option<Self> {
        list(value, at, "a list of texts")
    }
    fn print(&self) -> Option<String> {
        print_list(self)
    }
}

impl Value for Vec<Duration> {
    fn read(value: In<'_, '_>, at: &mut At<'_>) -> Option<Self> {
        list(value, at, "a list of durations, such as [\"10 s\", \"1 min\"],")
    }
    fn print(&self) -> Option<String> {
        print_list(self)
    }
}

impl Value for Vec<SocketAddr> {
    fn read(value: In<'_, '_>, at: &mut At<'_>) -> Option<Self> {
        list(value, at, "a list of addresses, such as [\"127.0.0.1:8186\"],")
    }
    fn print(&self) -> Option<String> {
        print_list(self)
    }
}

impl<T: Value> Value for Option<T> {
    fn read(value: In<'_, '_>, at: &mut At<'_>) -> Option<Self> {
        T::read(value, at).map(Some)
    }
    fn print(&self) -> Option<String> {
        self.as_ref().and_then(T::print)
    }
    fn choices() -> &'static [(&'static str, &'static str)] {
        T::choices()
    }
}

impl Value for BTreeMap<String, String> {
    fn read(value: In<'_, '_>, at: &mut At<'_>) -> Option<Self> {
        let Some(table) = value.get_ref().as_table() else {
            return expected(value, at, "a table of texts, such as { datacenter = \"fra1\" },");
        };
        let read: Vec<Option<(String, String)>> = table
            .iter()
            .map(|(key, value)| {
                let name = key.get_ref().to_string();
                at.inside(&quote_key(&name), &key.span(), |at| String::read(value, at)).map(|text| (name, text))
            })
            .collect();
        read.into_iter().collect()
    }
    fn print(&self) -> Option<String> {
        if self.is_empty() {
            return Some("{}".to_owned());
        }
        let pairs: Vec<String> = self.iter().map(|(k, v)| format!("{} = {}", quote_key(k), quote(v))).collect();
        Some(format!("{{ {} }}", pairs.join(", ")))
    }
}

impl Value for Selector {
    fn read(value: In<'_, '_>, at: &mut At<'_>) -> Option<Selector> {
        let Some(table) = value.get_ref().as_table() else {
            return expected(value, at, "a table, such as { name = \"api.*\", tags = { region = \"us-*\" } },");
        };
        refuse_unknown(table, &["name", "tags"], at);
        let mut selector = Selector::default();
        super::declare::read_into(&mut selector.name, "name", table, at, |_| None);
        super::declare::read_into(&mut selector.tags, "tags", table, at, |_| None);
        Some(selector)
    }
    fn print(&self) -> Option<String> {
        let name = quote(&self.name);
        match self.tags.is_empty() {
            true => Some(format!("{{ name = {name} }}")),
            false => Some(format!("{{ name = {name}, tags = {} }}", self.tags.print()?)),
        }
    }
}
