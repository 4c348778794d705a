//! Aggregate rules: which series fold into which, decided once, when a series is created.

use metricstream_shards::point::series_key::{self, OVERFLOW_NAME, Parsed};

/// `[[aggregate]]`: folds all series that match into one per distinct group of tags.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Stored with its results: a rule whose id changes starts anew.
    pub id: Box<str>,
    /// Name of the output series; `None` keeps each metric's own name.
    pub name: Option<Box<str>>,
    pub match_name: Glob,
    /// A series without the tag matches as if it had it empty.
    pub match_tags: Vec<(Box<str>, Glob)>,
    pub group: Group,
    /// Multiples of the base window
    pub windows_s: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Group {
    /// These tags stay. `client` is a pseudo tag: with it the output keeps the client.
    By(Vec<Box<str>>),
    /// All tags but these stay; the client does not.
    Without(Vec<Box<str>>),
}

const CLIENT: &str = "client";

impl Rule {
    /// An id for a rule without a name: the same text means the same rule.
    pub fn default_id(match_name: &str, match_tags: &[(Box<str>, Box<str>)], group: &Group) -> Box<str> {
        let mut id = match_name.to_owned();
        for (tag, glob) in match_tags {
            id.push_str(&format!(",{tag}={glob}"));
        }
        let (word, tags) = match group {
            Group::By(tags) => ("by", tags),
            Group::Without(tags) => ("without", tags),
        };
        id.push_str(&format!(" {word} {}", tags.join(",")));
        id.into()
    }

    /// The key of the series that `series` folds into, `None` when the rule is not for it. `__overflow__` holds many
    /// series' points under one name, so it matches nothing: the number of series would be wrong.
    pub fn target_key(&self, series: &Parsed<'_>) -> Option<Vec<u8>> {
        if series.name == OVERFLOW_NAME || !self.match_name.matches(series.name) {
            return None;
        }
        let value = |tag: &str| series.tags.iter().find(|(key, _)| *key == tag).map_or("", |(_, value)| value);
        if !self.match_tags.iter().all(|(tag, glob)| glob.matches(value(tag))) {
            return None;
        }
        let listed = |list: &[Box<str>], tag: &str| list.iter().any(|t| **t == *tag);
        let mut client = "";
        let tags: Vec<(&[u8], &[u8])> = series
            .tags
            .iter()
            .filter(|(tag, _)| match &self.group {
                Group::By(by) => *tag != CLIENT && listed(by, tag),
                Group::Without(without) => !listed(without, tag),
            })
            .map(|(tag, value)| (tag.as_bytes(), value.as_bytes()))
            .collect();
        if let Group::By(by) = &self.group
            && listed(by, CLIENT)
        {
            client = series.client;
        }
        let mut key = Vec::new();
        let name = self.name.as_deref().unwrap_or(series.name);
        series_key::write(&mut key, client.as_bytes(), name.as_bytes(), &tags);
        Some(key)
    }
}

/// `*` stands for any run of characters, `?` for one; everything else for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Box<str>);

impl Glob {
    pub fn new(pattern: &str) -> Glob {
        Glob(pattern.into())
    }

    pub fn matches(&self, text: &str) -> bool {
        // Only the last star is ever taken back, so the time is at most pattern * text: no blow-up to defend against.
        let (mut pattern, mut rest) = (self.0.chars(), text.chars());
        let mut star: Option<(std::str::Chars<'_>, std::str::Chars<'_>)> = None;
        loop {
            let mut next_pattern = pattern.clone();
            match (next_pattern.next(), rest.clone().next()) {
                (None, None) => return true,
                (Some('*'), _) => {
                    pattern = next_pattern;
                    star = Some((pattern.clone(), rest.clone()));
                    continue;
                }
                (Some(p), Some(c)) if p == '?' || p == c => {
                    pattern = next_pattern;
                    rest.next();
                    continue;
                }
                _ => {}
            }
            let Some((after_star, from)) = &mut star else { return false };
            if from.next().is_none() {
                return false;
            }
            pattern = after_star.clone();
            rest = from.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_texts() {
        for (pattern, text, expected) in [
            ("cpu", "cpu", true),
            ("cpu", "cpux", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("api.*", "api.latency", true),
            ("api.*", "api", false),
            ("*.latency", "api.v2.latency", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("h?st", "hôst", true),
            ("h?st", "hst", false),
            ("**a", "bca", true),
            ("*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), expected, "{pattern} on {text}");
        }
    }

    fn rule(name: Option<&str>, tags: &[(&str, &str)], group: Group) -> Rule {
        Rule {
            id: "r".into(),
            name: name.map(Into::into),
            match_name: Glob::new("api.*"),
            match_tags: tags.iter().map(|(t, g)| ((*t).into(), Glob::new(g))).collect(),
            group,
            windows_s: vec![10],
        }
    }

    fn target(rule: &Rule, name: &str) -> Option<(String, String, String)> {
        let tags = vec![("client", "c9"), ("host", "h1"), ("region", "us-east-1")];
        let key = rule.target_key(&Parsed { client: "10.0.0.1", name, tags })?;
        let parsed = series_key::parse(&key).expect("canonical");
        let tags: Vec<String> = parsed.tags.iter().map(|(k, v)| format!("{k}={v}")).collect();
        Some((parsed.client.into(), parsed.name.into(), tags.join(",")))
    }

    #[test]
    fn a_series_folds_into_its_groups_key() {
        let by = |tags: &[&str]| Group::By(tags.iter().map(|t| (*t).into()).collect());
        let owned = |a: &str, b: &str, c: &str| Some((a.to_owned(), b.to_owned(), c.to_owned()));
        assert_eq!(
            target(&rule(None, &[], by(&["region"])), "api.latency"),
            owned("", "api.latency", "region=us-east-1")
        );
        assert_eq!(
            target(&rule(Some("all"), &[], by(&["client", "missing"])), "api.latency"),
            owned("10.0.0.1", "all", "")
        );
        assert_eq!(
            target(&rule(None, &[], Group::Without(vec!["host".into()])), "api.x"),
            owned("", "api.x", "client=c9,region=us-east-1")
        );
        assert_eq!(target(&rule(None, &[], by(&[])), "db.latency"), None);
        assert_eq!(target(&rule(None, &[("region", "eu-*")], by(&[])), "api.latency"), None);
        assert_eq!(target(&rule(None, &[("zone", "")], by(&[])), "api.latency"), owned("", "api.latency", ""));
    }
}
