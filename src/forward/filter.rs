//! Which points a sink wants: globs on the metric's name and on tags. Decided once a series and segment, then looked up.

use metricstream_shards::point::series_key::{self, Parsed};

use crate::reducer::rules::Glob;

/// What a sink is to be sent.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Any of them; none stands for all
    clients: Vec<Glob>,
    /// Any of them; none stands for all
    names: Vec<Glob>,
    /// All of them; the tag must be there
    tags: Vec<(Box<str>, Glob)>,
    /// Both have to take it
    also: Option<Box<Filter>>,
}

impl Filter {
    pub fn new<'a>(
        names: impl IntoIterator<Item = &'a String>,
        tags: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Filter {
        Filter {
            clients: Vec::new(),
            also: None,
            names: names.into_iter().map(|glob| Glob::new(glob)).collect(),
            tags: tags.into_iter().map(|(tag, glob)| (tag.as_str().into(), Glob::new(glob))).collect(),
        }
    }

    /// What this one takes, of these clients and under these names only; none stand for all.
    pub fn narrowed(self, clients: &[String], names: &[String]) -> Filter {
        let globs = |of: &[String]| of.iter().map(|glob| Glob::new(glob)).collect();
        Filter { clients: globs(clients), names: globs(names), tags: Vec::new(), also: Some(Box::new(self)) }
    }

    pub fn takes_all(&self) -> bool {
        self.clients.is_empty()
            && self.names.is_empty()
            && self.tags.is_empty()
            && self.also.as_ref().is_none_or(|also| also.takes_all())
    }

    pub fn takes(&self, series: &Parsed<'_>) -> bool {
        let tag = |wanted: &str| series.tags.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value);
        (self.clients.is_empty() || self.clients.iter().any(|glob| glob.matches(series.client)))
            && self.also.as_ref().is_none_or(|also| also.takes(series))
            && (self.names.is_empty() || self.names.iter().any(|glob| glob.matches(series.name)))
            && self.tags.iter().all(|(key, glob)| tag(key).is_some_and(|value| glob.matches(value)))
    }

    pub fn takes_key(&self, key: &[u8]) -> bool {
        self.takes_all() || series_key::parse(key).is_some_and(|parsed| self.takes(&parsed))
    }
}

/// The decisions for the series numbers of one segment.
#[derive(Default)]
pub struct Decisions {
    segment_id: u64,
    /// By series number: 0 not decided, 1 taken, 2 not
    decided: Vec<u8>,
}

/// A segment's numbers are given from 0 on; one beyond this is decided each time.
const NUMBERS_MAX: usize = 16 << 20;

impl Decisions {
    /// `key` is asked for only where nothing was decided yet; `None`: the number has no name.
    pub fn decide<'k>(
        &mut self,
        filter: &Filter,
        segment_id: u64,
        series: u32,
        key: impl FnOnce() -> Option<&'k [u8]>,
    ) -> Option<bool> {
        if self.segment_id != segment_id {
            self.segment_id = segment_id;
            self.decided.clear();
        }
        let at = series as usize;
        if let Some(&decided) = self.decided.get(at)
            && decided != 0
        {
            return Some(decided == 1);
        }
        let takes = filter.takes_key(key()?);
        if at < NUMBERS_MAX {
            if at >= self.decided.len() {
                self.decided.resize((at + 1).next_power_of_two(), 0);
            }
            self.decided[at] = if takes { 1 } else { 2 };
        }
        Some(takes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(names: &[&str], tags: &[(&str, &str)]) -> Filter {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let tags: Vec<(String, String)> = tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Filter::new(&names, tags.iter().map(|(k, v)| (k, v)))
    }

    fn key(name: &str, tags: &[(&str, &str)]) -> Vec<u8> {
        let mut key = Vec::new();
        let tags: Vec<(&[u8], &[u8])> = tags.iter().map(|(k, v)| (k.as_bytes(), v.as_bytes())).collect();
        series_key::write(&mut key, b"client", name.as_bytes(), &tags);
        key
    }

    #[test]
    fn a_filter_takes_any_of_its_names_with_all_of_its_tags() {
        for (names, tags, name, of, takes) in [
            (&[][..], &[][..], "cpu", &[][..], true),
            (&["cpu"], &[], "cpu", &[], true),
            (&["cpu"], &[], "cpu.user", &[], false),
            (&["cpu*", "mem.?"], &[], "mem.x", &[], true),
            (&["cpu*", "mem.?"], &[], "mem.xy", &[], false),
            (&[], &[("dc", "eu-*")], "cpu", &[("dc", "eu-1")], true),
            (&[], &[("dc", "eu-*")], "cpu", &[("dc", "us-1")], false),
            (&[], &[("dc", "*")], "cpu", &[("host", "a")], false),
            (&["cpu"], &[("dc", "*"), ("host", "a")], "cpu", &[("dc", "x"), ("host", "a")], true),
            (&["mem"], &[("dc", "*"), ("host", "a")], "cpu", &[("dc", "x"), ("host", "a")], false),
        ] {
            assert_eq!(filter(names, tags).takes_key(&key(name, of)), takes, "{names:?} {tags:?} on {name} {of:?}");
        }
    }

    #[test]
    fn a_narrowed_filter_takes_what_both_take() {
        let narrowed = |clients: &[&str], names: &[&str]| {
            let owned = |of: &[&str]| of.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
            filter(&["cpu*"], &[("dc", "eu")]).narrowed(&owned(clients), &owned(names))
        };
        for (clients, names, name, dc, takes) in [
            (&[][..], &[][..], "cpu.user", "eu", true),
            (&[], &[], "mem", "eu", false),
            (&[], &[], "cpu", "us", false),
            (&["client", "x"], &[], "cpu", "eu", true),
            (&["cl*"], &["*.user"], "cpu.user", "eu", true),
            (&["x"], &[], "cpu", "eu", false),
            (&[], &["mem"], "mem", "eu", false),
            (&[], &["cpu"], "cpu.user", "eu", false),
        ] {
            let key = key(name, &[("dc", dc)]);
            assert_eq!(narrowed(clients, names).takes_key(&key), takes, "{clients:?} {names:?} on {name} {dc}");
        }
        assert!(filter(&[], &[]).narrowed(&[], &[]).takes_all());
        assert!(!filter(&["a"], &[]).narrowed(&[], &[]).takes_all());
    }

    #[test]
    fn a_decision_holds_for_its_segment_and_is_made_anew_in_the_next() {
        let filter = filter(&["cpu"], &[]);
        let (cpu, mem) = (key("cpu", &[]), key("mem", &[]));
        let mut decisions = Decisions::default();
        assert_eq!(decisions.decide(&filter, 1, 5, || Some(&cpu)), Some(true));
        assert_eq!(decisions.decide(&filter, 1, 5, || panic!("known")), Some(true));
        assert_eq!(decisions.decide(&filter, 1, 6, || None), None, "a number without a name");
        assert_eq!(decisions.decide(&filter, 2, 5, || Some(&mem)), Some(false), "another series has the number now");
        assert_eq!(decisions.decide(&filter, 2, 5, || panic!("known")), Some(false));
    }
}
