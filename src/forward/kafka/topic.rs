//! Which topic a record goes to: a template with `{client}` or `{name}`, filled in and made a legal topic name.

use metricstream_shards::point::series_key::Parsed;

/// Longest name that Kafka takes.
const TOPIC_BYTES_MAX: usize = 249;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Client,
    Name,
}

impl Template {
    /// Checks what can be checked before a series is known. The error is one sentence.
    pub fn parse(template: &str) -> Result<Template, String> {
        let (mut parts, mut rest) = (Vec::new(), template);
        while let Some(at) = rest.find(['{', '}']) {
            let (text, from) = rest.split_at(at);
            let placeholder = [("{client}", Part::Client), ("{name}", Part::Name)];
            let Some((word, part)) = placeholder.into_iter().find(|(word, _)| from.starts_with(word)) else {
                return Err(format!("in the topic \"{template}\", only {{client}} and {{name}} may stand in braces"));
            };
            parts.extend([Part::Text(text.to_owned()), part]);
            rest = &from[word.len()..];
        }
        parts.push(Part::Text(rest.to_owned()));
        parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
        let template = Template { parts };
        let texts = template.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            _ => None,
        });
        if let Some(bad) = texts.clone().flat_map(str::chars).find(|&c| !is_legal(c)) {
            return Err(format!("a topic may hold letters, digits, '.', '_' and '-', not '{}'", bad.escape_default()));
        }
        let bytes: usize = texts.map(str::len).sum();
        match template.fixed() {
            _ if bytes > TOPIC_BYTES_MAX - 20 => Err(format!("a topic has at most {} characters here", 229)),
            _ if template.parts.is_empty() => Err("a topic has a name".to_owned()),
            Some("." | "..") => Err("a topic may not be called \".\" or \"..\"".to_owned()),
            _ => Ok(template),
        }
    }

    /// The topic, when it is the same for all.
    pub fn fixed(&self) -> Option<&str> {
        match &self.parts[..] {
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// What Kafka does not take becomes `_`; what is too long is cut, with a hash of the whole behind it, so that two long
    /// names stay two topics.
    pub fn fill(&self, series: &Parsed<'_>) -> String {
        let mut topic = String::new();
        for part in &self.parts {
            let text = match part {
                Part::Text(text) => text,
                Part::Client => series.client,
                Part::Name => series.name,
            };
            topic.extend(text.chars().map(|c| if is_legal(c) { c } else { '_' }));
        }
        if topic.len() > TOPIC_BYTES_MAX {
            let hash = short_hash(series.client.as_bytes(), series.name.as_bytes());
            topic.truncate(TOPIC_BYTES_MAX - 9);
            topic.push_str(&format!("-{hash:08x}"));
        }
        if matches!(&*topic, "" | "." | "..") {
            topic.insert(0, '_');
        }
        topic
    }
}

fn is_legal(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// FNV-1a over both, which tells long names apart; nothing depends on more.
fn short_hash(client: &[u8], name: &[u8]) -> u32 {
    let bytes = client.iter().chain(&[0xFF]).chain(name);
    bytes.fold(0x811c_9dc5, |hash: u32, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(template: &str, client: &str, name: &str) -> String {
        let series = Parsed { client, name, tags: Vec::new() };
        Template::parse(template).expect("a good template").fill(&series)
    }

    #[test]
    fn a_template_is_filled_in_and_made_legal() {
        let long = "m".repeat(300);
        for (template, client, name, expected) in [
            ("metrics-raw", "c", "n", "metrics-raw"),
            ("raw.{client}", "10.0.0.1", "n", "raw.10.0.0.1"),
            ("raw.{client}.{name}", "pay ments", "cpu/load", "raw.pay_ments.cpu_load"),
            ("{name}", "c", "größe", "gr__e"),
            ("{client}", "", "n", "_"),
            ("{client}", "..", "n", "_.."),
        ] {
            assert_eq!(topic(template, client, name), expected, "{template}");
        }
        let [a, b] = ["a", "b"].map(|end| topic("raw.{name}", "c", &format!("{long}{end}")));
        assert!(a.len() == TOPIC_BYTES_MAX && a.starts_with("raw.mmm"), "{a}");
        assert_ne!(a, b, "long names that differ at their end stay two topics");
    }

    #[test]
    fn a_bad_template_is_refused_with_a_sentence() {
        for bad in ["", ".", "..", "a b", "raw-{tag}", "raw-{client", "raw}", &"x".repeat(230), "größe"] {
            let message = Template::parse(bad).expect_err(bad);
            assert!(message.contains("topic"), "{message}");
        }
        assert_eq!(Template::parse("metrics-raw").expect("good").fixed(), Some("metrics-raw"));
        assert_eq!(Template::parse("{name}").expect("good").fixed(), None);
    }
}
