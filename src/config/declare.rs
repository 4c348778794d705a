//! The declaration of a key, and what is made of it: a struct field, a default, a reader that reports every problem
//! with its line, and a printer whose comments are the field's own documentation.

use super::problem::Problem;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One value in the file. `print` gives what `read` takes; `None` for a key that is not set.
pub trait Value: Sized {
    /// Problems go to `at`; `None` after any.
    fn read(value: &Spanned<DeValue<'_>>, at: &mut At<'_>) -> Option<Self>;
    fn print(&self) -> Option<String>;
    /// The alternatives of a choice, each with its meaning.
    fn choices() -> &'static [(&'static str, &'static str)] {
        &[]
    }
}

/// A table of declared keys. Made by [`section!`].
pub trait Section: Sized + Default {
    /// One line each.
    fn doc() -> &'static [&'static str];
    fn keys() -> &'static [&'static str];
    fn read_keys(table: &DeTable<'_>, at: &mut At<'_>) -> Self;

    fn print_keys(&self, out: &mut Printer);
}

/// What may stand at the top of the file: a table, a list of tables, a table of free keys.
pub trait Part: Sized {
    /// Its keys, where they are declared ones.
    fn part_keys() -> &'static [&'static str] {
        &[]
    }
    fn read_part(value: &Spanned<DeValue<'_>>, at: &mut At<'_>) -> Option<Self>;
    fn print_part(&self, name: &str, doc: &[&str], out: &mut Printer);
}

/// Where the reader is: the path of the key, and what was wrong so far.
pub struct At<'a> {
    path: String,
    line_starts: &'a [usize],
    /// Every part with its keys, to name the home of a key that stands in the wrong one.
    pub parts: Vec<(&'static str, &'static [&'static str])>,
    pub problems: Vec<Problem>,
    /// Line of every key that was read, for problems that are only seen across keys.
    pub lines: HashMap<String, usize>,
    /// Whether some value could not be read, so that its default stands in its place.
    pub unread: bool,
}

impl<'a> At<'a> {
    pub fn new(line_starts: &'a [usize]) -> At<'a> {
        At {
            path: String::new(),
            line_starts,
            parts: Vec::new(),
            problems: Vec::new(),
            lines: HashMap::new(),
            unread: false,
        }
    }

    pub fn line(&self, span: &Range<usize>) -> usize {
        self.line_starts.partition_point(|start| *start <= span.start)
    }

    pub fn inside<T>(&mut self, key: &str, span: &Range<usize>, read: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.path.len();
        if !self.path.is_empty() && !key.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(key);
        let line = self.line(span);
        self.lines.insert(self.path.clone(), line);
        let result = read(self);
        self.path.truncate(before);
        result
    }

    /// The value here cannot be used.
    pub fn refuse(&mut self, span: &Range<usize>, message: impl Into<String>) {
        self.unread = true;
        self.problem(span, message);
    }

    pub fn unknown_key(&mut self, key: &Spanned<std::borrow::Cow<'_, str>>, known: &[&str]) {
        let name = key.get_ref().as_ref();
        let mut message = "unknown key".to_owned();
        let home = self.parts.iter().find(|(_, keys)| keys.contains(&name));
        match (nearest(name, known), home) {
            (_, Some((part, _))) => _ = write!(message, " here; it belongs to [{part}]"),
            (Some(near), None) => _ = write!(message, "; did you mean `{near}`?"),
            (None, None) => _ = write!(message, "; known here: {}", known.join(", ")),
        }
        let line = self.line(&key.span());
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        self.problems.push(Problem { line: Some(line), key: path, message });
    }

    fn problem(&mut self, span: &Range<usize>, message: impl Into<String>) {
        let line = self.line(span);
        self.problems.push(Problem { line: Some(line), key: self.path.clone(), message: message.into() });
    }
}

/// The known key that was most likely meant.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let (best, score) =
        known.iter().map(|k| (*k, strsim::jaro_winkler(&name.to_lowercase(), k))).max_by(|a, b| a.1.total_cmp(&b.1))?;
    (score >= 0.82).then_some(best)
}

/// Text of the file being printed.
pub struct Printer {
    pub text: String,
    /// Keys are marked with a `#` (words with `# `): they show what could be written, and change nothing.
    pub commented: bool,
}

impl Printer {
    pub fn blank(&mut self) {
        if !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }
    pub fn comment(&mut self, line: &str) {
        self.text.push('#');
        if !line.is_empty() {
            self.text.push(' ');
            self.text.push_str(line.trim_end());
        }
        self.text.push('\n');
    }
    pub fn line(&mut self, line: &str) {
        if self.commented {
            self.text.push('#');
        }
        self.text.push_str(line);
        self.text.push('\n');
    }
    /// One key with its documentation: effect, choices, default, bounds.
    pub fn key<T: Value>(
        &mut self,
        key: &str,
        doc: &[&str],
        value: &T,
        default: &T,
        like: Option<T>,
        bounds: Option<(String, String)>,
    ) {
        self.blank();
        for line in doc {
            self.comment(line.trim());
        }
        for (name, meaning) in T::choices() {
            self.comment(&format!("  \"{name}\": {meaning}"));
        }
        let mut facts = match default.print() {
            Some(text) if text == "\"\"" && like.is_some() => "Must be set".to_owned(),
            Some(text) => format!("Default {text}"),
            None => "Not set by default".to_owned(),
        };
        if let Some((low, high)) = bounds {
            _ = write!(facts, "; from {low} to {high}");
        }
        facts.push('.');
        self.comment(&facts);
        let shown = if self.commented { like.as_ref().unwrap_or(value) } else { value };
        match (shown.print(), like.as_ref().and_then(T::print)) {
            (Some(text), _) => self.line(&format!("{key} = {text}")),
            (None, Some(example)) => self.text.push_str(&format!("#{key} = {example}\n")),
            (None, None) => self.text.push_str(&format!("#{key} =\n")),
        }
    }
}

/// `r#match` is `match` in the file.
pub fn key_name(ident: &'static str) -> &'static str {
    ident.strip_prefix("r#").unwrap_or(ident)
}

pub fn find<'t, 'i>(table: &'t DeTable<'i>, key: &str) -> Option<&'t Spanned<DeValue<'i>>> {
    table.iter().find(|(k, _)| k.get_ref() == key).map(|(_, v)| v)
}

/// Reads one key into its place; what cannot be used leaves the default there.
pub fn read_into<T: Value>(
    place: &mut T,
    key: &'static str,
    table: &DeTable<'_>,
    at: &mut At<'_>,
    outside: impl FnOnce(&T) -> Option<String>,
) {
    let Some(value) = find(table, key) else { return };
    let span = value.span();
    at.inside(key, &span, |at| {
        let Some(read) = T::read(value, at) else { return };
        match outside(&read) {
            Some(message) => at.refuse(&span, message),
            None => *place = read,
        }
    });
}

/// A sentence with the bounds when `value` is outside them.
pub fn outside_bounds<T: Value + PartialOrd>(value: &T, low: &T, high: &T) -> Option<String> {
    let text = |v: &T| v.print().unwrap_or_default();
    (!(low <= value && value <= high))
        .then(|| format!("{} is out of bounds: it goes from {} to {}", text(value), text(low), text(high)))
}

pub fn refuse_unknown(table: &DeTable<'_>, known: &[&str], at: &mut At<'_>) {
    for (key, _) in table.iter() {
        if !known.contains(&key.get_ref().as_ref()) {
            at.unknown_key(key, known);
        }
    }
}

impl<S: Section> Part for S {
    fn part_keys() -> &'static [&'static str] {
        S::keys()
    }
    fn read_part(value: &Spanned<DeValue<'_>>, at: &mut At<'_>) -> Option<Self> {
        let Some(table) = value.get_ref().as_table() else {
            at.refuse(&value.span(), "this is a section: write its name in brackets on a line of its own");
            return None;
        };
        Some(S::read_keys(table, at))
    }
    fn print_part(&self, name: &str, _: &[&str], out: &mut Printer) {
        out.blank();
        S::doc().iter().for_each(|line| out.comment(line.trim()));
        out.line(&format!("[{name}]"));
        self.print_keys(out);
    }
}

impl<S: Section> Part for Vec<S> {
    fn part_keys() -> &'static [&'static str] {
        S::keys()
    }
    fn read_part(value: &Spanned<DeValue<'_>>, at: &mut At<'_>) -> Option<Self> {
        let Some(items) = value.get_ref().as_array() else {
            at.refuse(&value.span(), "there may be several of these: write the name in double brackets, `[[..]]`");
            return None;
        };
        let mut list = Vec::new();
        for (n, item) in items.iter().enumerate() {
            list.extend(at.inside(&format!("[{n}]"), &item.span(), |at| S::read_part(item, at)));
        }
        Some(list)
    }
    fn print_part(&self, name: &str, _: &[&str], out: &mut Printer) {
        out.blank();
        S::doc().iter().for_each(|line| out.comment(line.trim()));
        if self.is_empty() {
            out.comment("None is configured. One looks like this:");
            out.commented = true;
            out.line(&format!("[[{name}]]"));
            S::default().print_keys(out);
            out.commented = false;
        }
        for (n, section) in self.iter().enumerate() {
            if n > 0 {
                out.blank();
            }
            out.line(&format!("[[{name}]]"));
            section.print_keys(out);
        }
    }
}

impl Part for BTreeMap<String, String> {
    fn read_part(value: &Spanned<DeValue<'_>>, at: &mut At<'_>) -> Option<Self> {
        Value::read(value, at)
    }
    fn print_part(&self, name: &str, doc: &[&str], out: &mut Printer) {
        out.blank();
        doc.iter().for_each(|line| out.comment(line.trim()));
        out.line(&format!("[{name}]"));
        for (key, value) in self {
            out.line(&format!("{} = {}", super::value::quote_key(key), super::value::quote(value)));
        }
    }
}

/// Declares a table: `/// words` and `key: Type = default[, in low, high][, like example];` for each key.
macro_rules! section {
    (
        $(#[doc = $doc:literal])+
        $name:ident {
            $(
                $(#[doc = $key_doc:literal])+
                $key:ident : $type:ty = $default:expr $(, in $low:expr, $high:expr)? $(, like $like:expr)? ;
            )+
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $( $(#[doc = $key_doc])+ pub $key: $type, )+
        }

        impl Default for $name {
            fn default() -> $name {
                $name { $( $key: $default, )+ }
            }
        }

        impl $crate::config::declare::Section for $name {
            fn doc() -> &'static [&'static str] {
                &[$($doc),+]
            }
            fn keys() -> &'static [&'static str] {
                const { &[$(stringify!($key)),+] }
            }
            fn read_keys(table: &toml::de::DeTable<'_>, at: &mut $crate::config::declare::At<'_>) -> $name {
                use $crate::config::declare as d;
                let mut section = $name::default();
                let keys: Vec<&str> = <$name as d::Section>::keys().iter().map(|k| d::key_name(k)).collect();
                d::refuse_unknown(table, &keys, at);
                $(
                    d::read_into(&mut section.$key, d::key_name(stringify!($key)), table, at, |_value| {
                        let _outside: Option<String> = None;
                        $( let _outside = d::outside_bounds::<$type>(_value, &$low, &$high); )?
                        _outside
                    });
                )+
                section
            }
            fn print_keys(&self, out: &mut $crate::config::declare::Printer) {
                use $crate::config::declare as d;
                let default = $name::default();
                $(
                    let _like: Option<$type> = None;
                    $( let _like: Option<$type> = Some($like); )?
                    let _bounds: Option<(String, String)> = None;
                    $(
                        let text = |v: $type| d::Value::print(&v).unwrap_or_default();
                        let _bounds = Some((text($low), text($high)));
                    )?
                    out.key(d::key_name(stringify!($key)), &[$($key_doc),+], &self.$key, &default.$key, _like, _bounds);
                )+
            }
        }
    };
}

/// Declares a value that is one of a few words, each with its meaning.
macro_rules! choice {
    (
        $(#[doc = $doc:literal])+
        $name:ident { $( #[doc = $meaning:literal] $variant:ident = $word:literal, )+ }
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $( #[doc = $meaning] $variant, )+
        }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant),+];
            pub const fn word(self) -> &'static str {
                match self { $( $name::$variant => $word, )+ }
            }
        }

        impl $crate::config::declare::Value for $name {
            fn read(value: &toml::Spanned<toml::de::DeValue<'_>>, at: &mut $crate::config::declare::At<'_>) -> Option<$name> {
                let words = [$($word),+];
                let read = value.get_ref().as_str().and_then(|text| $name::ALL.iter().find(|c| c.word() == text).copied());
                if read.is_none() {
                    at.refuse(&value.span(), $crate::config::value::not_one_of(value.get_ref(), &words));
                }
                read
            }
            fn print(&self) -> Option<String> {
                Some(format!("\"{}\"", self.word()))
            }
            fn choices() -> &'static [(&'static str, &'static str)] {
                const { &[$(($word, $meaning.trim_ascii())),+] }
            }
        }
    };
}

/// Declares the file: its parts in order.
macro_rules! config {
    (
        $(#[doc = $doc:literal])+
        $name:ident { $( $(#[doc = $part_doc:literal])* $part:ident : $type:ty = $default:expr; )+ }
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $( $(#[doc = $part_doc])* pub $part: $type, )+
        }

        impl Default for $name {
            fn default() -> $name {
                $name { $( $part: $default, )+ }
            }
        }

        impl $name {
            pub(super) fn read(table: &toml::de::DeTable<'_>, at: &mut $crate::config::declare::At<'_>) -> $name {
                use $crate::config::declare as d;
                let mut config = $name::default();
                at.parts = vec![$((stringify!($part), <$type as d::Part>::part_keys())),+];
                d::refuse_unknown(table, &[$(stringify!($part)),+], at);
                $(
                    if let Some(value) = d::find(table, stringify!($part)) {
                        at.inside(stringify!($part), &value.span(), |at| {
                            if let Some(part) = <$type as d::Part>::read_part(value, at) {
                                config.$part = part;
                            }
                        });
                    }
                )+
                config
            }
            pub(super) fn print(&self, out: &mut $crate::config::declare::Printer) {
                $( $crate::config::declare::Part::print_part(&self.$part, stringify!($part), &[$($part_doc),*], out); )+
            }
        }
    };
}

pub(super) use {choice, config, section};
