//! `GET /api/v1/windows`: what a query asks for, and the answer.

use metricstream_shards::http::Head;

use super::{State, window_page};
use crate::config::units;
use crate::reducer::query::{Cursor, Filter, WindowQuery};

/// The page a query asks for, as JSON; an error is a sentence for the client.
pub async fn windows(state: &State, head: &Head) -> Result<String, String> {
    let (filter, limit) = filter(head)?;
    let spans = state.view.lock().expect("nobody panics with the view in hand").spans.clone();
    let (page, _) = window_page::read(&spans, WindowQuery::new(filter, limit), &state.zones).await;
    Ok(page.to_json())
}

fn filter(head: &Head) -> Result<(Filter, usize), String> {
    let integer = |name: &str| -> Result<Option<i64>, String> {
        match head.query(name).filter(|text| !text.is_empty()) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| format!("{name} is {text:?}; it takes an integer")),
        }
    };
    let window_s = match head.query("window").filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => match units::parse_duration(&text) {
            Ok(window) => Some(window.as_secs() as u32),
            Err(_) => return Err(format!("window is {text:?}; it takes a length such as 10s or 1min")),
        },
    };
    let cursor = match head.query("cursor").filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => Some(Cursor::parse(&text).ok_or("cursor is none that `next` of an earlier page gave")?),
    };
    let mut tags = Vec::new();
    for pair in head.query_raw().split(|&b| b == b'&') {
        let Some(name) = pair.strip_prefix(b"tag.").and_then(|rest| rest.split(|&b| b == b'=').next()) else {
            continue;
        };
        let full = format!("tag.{}", String::from_utf8_lossy(name));
        // The name may be encoded, too; `Head::query` compares decoded ones.
        let decoded = percent_decode(&full);
        if let Some(value) = head.query(&decoded) {
            tags.push((decoded["tag.".len()..].to_string(), value.into_owned()));
        }
    }
    let limit =
        integer("limit")?.map_or(WindowQuery::LIMIT_DEFAULT, |n| n.clamp(1, WindowQuery::LIMIT_MAX as i64) as usize);
    let text = |name: &str| head.query(name).filter(|text| !text.is_empty()).map(|text| text.into_owned());
    let filter = Filter {
        name: text("name"),
        tags,
        client: text("client"),
        window_s,
        since_ms: integer("since")?,
        until_ms: integer("until")?,
        cursor,
    };
    Ok((filter, limit))
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use metricstream_shards::http::{Assembler, Bounds, Step};

    fn asked(query: &str) -> Result<(Filter, usize), String> {
        let mut assembler = Assembler::new(0);
        let request = format!("GET /api/v1/windows{query} HTTP/1.1\r\nHost: h\r\n\r\n");
        let step = assembler.push(request.as_bytes(), 0, &Bounds::default());
        assert!(matches!(step, Step::Request { .. }), "{query}: {step:?}");
        filter(assembler.head())
    }

    #[test]
    fn without_parameters_everything_is_wanted_a_page_at_a_time() {
        for query in ["", "?", "?name=&window=&since=&until=&cursor=&client="] {
            let (filter, limit) = asked(query).expect(query);
            assert!(
                filter.name.is_none() && filter.client.is_none() && filter.tags.is_empty() && filter.cursor.is_none()
            );
            assert_eq!((filter.window_s, filter.since_ms, filter.until_ms), (None, None, None));
            assert_eq!(limit, WindowQuery::LIMIT_DEFAULT);
        }
    }

    #[test]
    fn names_tags_and_times_are_read_decoded() {
        let query = "?name=api.latency%20p&tag.region=us-east-1&tag.d%C3%A9p%C3%B4t=a%26b+c&client=10.0.0.1&window=1%20min&since=-5&until=1700000000000&limit=7";
        let (filter, limit) = asked(query).expect("valid");
        assert_eq!(filter.name.as_deref(), Some("api.latency p"));
        let tags = [("region", "us-east-1"), ("dépôt", "a&b c")].map(|(k, v)| (k.to_string(), v.to_string()));
        assert_eq!(filter.tags, tags);
        assert_eq!(filter.client.as_deref(), Some("10.0.0.1"));
        assert_eq!((filter.window_s, filter.since_ms, filter.until_ms), (Some(60), Some(-5), Some(1_700_000_000_000)));
        assert_eq!(limit, 7);
        assert_eq!(asked("?window=10s").expect("valid").0.window_s, Some(10));
        assert_eq!(asked("?limit=0").expect("valid").1, 1);
        assert_eq!(asked("?limit=99999999").expect("valid").1, WindowQuery::LIMIT_MAX);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (query, part) in [
            ("?since=yesterday", "since is \"yesterday\""),
            ("?until=1.5", "until is \"1.5\""),
            ("?limit=many", "limit is \"many\""),
            ("?window=soon", "window is \"soon\""),
            ("?cursor=zz", "cursor"),
        ] {
            let error = asked(query).err().unwrap_or_else(|| panic!("{query} is taken"));
            assert!(error.contains(part), "{query}: {error}");
        }
    }

    #[test]
    fn a_percent_that_encodes_nothing_stays() {
        for (text, decoded) in [("a%20b", "a b"), ("a+b", "a b"), ("100%", "100%"), ("%zz%4", "%zz%4"), ("%é", "%é")]
        {
            assert_eq!(percent_decode(text), decoded);
        }
    }
}
