//! InfluxDB v1's `/query`, as far as writers need it: Telegraf, k6 and the client libraries create their database
//! before they write, and some list databases. Every statement succeeds; only `SHOW DATABASES` has rows.

use super::reply::{escape, number};
use super::target::{form_value, is_decodable};
use std::borrow::Cow;

/// Most statements of one query that are answered.
const STATEMENTS_MAX: usize = 100;

/// The `q` of a request: of the query string, else of a form-encoded body. `None`: answer 400
/// `missing required parameter "q"`.
pub fn statement<'a>(query_raw: &'a [u8], body: &'a [u8]) -> Option<Cow<'a, str>> {
    form_value(query_raw, "q")
        .filter(|q| !q.is_empty())
        .or_else(|| is_decodable(body, &mut Vec::new()).then(|| form_value(body, "q")).flatten())
        .filter(|q| !q.trim().is_empty())
}

/// The JSON body of a 200.
pub fn answer<'n>(out: &mut Vec<u8>, q: &str, databases: impl Iterator<Item = &'n str> + Clone) {
    out.extend_from_slice(b"{\"results\":[");
    let statements = Statements { rest: q }.filter(|s| !s.trim().is_empty());
    for (id, statement) in statements.take(STATEMENTS_MAX).enumerate() {
        out.extend_from_slice(if id == 0 { b"{\"statement_id\":" } else { b",{\"statement_id\":" });
        number(out, id as u64);
        if is_show_databases(statement) {
            out.extend_from_slice(b",\"series\":[{\"name\":\"databases\",\"columns\":[\"name\"],\"values\":[");
            for (n, name) in databases.clone().enumerate() {
                out.extend_from_slice(if n == 0 { b"[\"" } else { b",[\"" });
                escape(out, name);
                out.extend_from_slice(b"\"]");
            }
            out.extend_from_slice(b"]}]");
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"]}\n");
}

/// The name in `CREATE DATABASE name`, unquoted, when the query holds one: what `SHOW DATABASES` may list later.
pub fn created_database(q: &str) -> Option<String> {
    Statements { rest: q }.find_map(|statement| {
        let rest = keyword(keyword(statement, "create")?, "database")?.trim();
        let name = match rest.as_bytes().first()? {
            b'"' => rest[1..].split('"').next()?,
            _ => rest.split_ascii_whitespace().next()?,
        };
        (!name.is_empty()).then(|| name.to_string())
    })
}

fn is_show_databases(statement: &str) -> bool {
    keyword(statement, "show").and_then(|rest| keyword(rest, "databases")).is_some_and(|rest| rest.trim().is_empty())
}

/// What follows `word` at the start of `text`, without regard to case.
fn keyword<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let text = text.trim_start();
    let (start, rest) = text.split_at_checked(word.len())?;
    let ends = rest.chars().next().is_none_or(|c| !c.is_alphanumeric() && c != '_');
    (start.eq_ignore_ascii_case(word) && ends).then_some(rest)
}

/// Statements between semicolons that stand outside quotes.
struct Statements<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Statements<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let mut quote = None;
        let mut escaped = false;
        for (at, byte) in self.rest.bytes().enumerate() {
            match (quote, byte) {
                _ if escaped => escaped = false,
                (Some(_), b'\\') => escaped = true,
                (Some(q), _) if q == byte => quote = None,
                (Some(_), _) => {}
                (None, b'"' | b'\'') => quote = Some(byte),
                (None, b';') => {
                    let statement = &self.rest[..at];
                    self.rest = &self.rest[at + 1..];
                    return Some(statement);
                }
                _ => {}
            }
        }
        Some(std::mem::take(&mut self.rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(q: &str) -> String {
        let mut out = Vec::new();
        answer(&mut out, q, ["telegraf", "a\"b"].into_iter());
        String::from_utf8(out).expect("utf-8")
    }

    #[test]
    fn statements_are_answered_in_order() {
        for (q, body) in [
            ("CREATE DATABASE telegraf", "{\"results\":[{\"statement_id\":0}]}\n"),
            (
                "create database \"a;b\" WITH DURATION 1d; DROP x;;",
                "{\"results\":[{\"statement_id\":0},{\"statement_id\":1}]}\n",
            ),
            (
                "SELECT 1; show  DATABASES",
                "{\"results\":[{\"statement_id\":0},{\"statement_id\":1,\"series\":[{\"name\":\"databases\",\
                 \"columns\":[\"name\"],\"values\":[[\"telegraf\"],[\"a\\\"b\"]]}]}]}\n",
            ),
            ("SHOW DATABASESX", "{\"results\":[{\"statement_id\":0}]}\n"),
            ("\"é", "{\"results\":[{\"statement_id\":0}]}\n"),
        ] {
            assert_eq!(ask(q), body, "{q}");
        }
    }

    #[test]
    fn the_statement_comes_from_the_query_or_a_form() {
        assert_eq!(statement(b"q=a+b&db=x", b"q=c").as_deref(), Some("a b"));
        assert_eq!(statement(b"db=x", b"q=CREATE+DATABASE+%22t%22").as_deref(), Some("CREATE DATABASE \"t\""));
        assert_eq!(statement(b"q=", b""), None);
        assert_eq!(statement(b"", b"q=%zz"), None);
        assert_eq!(statement(b"", b"\xff\xff"), None);
    }

    #[test]
    fn a_created_database_is_named_without_quotes() {
        for (q, name) in [
            ("CREATE DATABASE telegraf", Some("telegraf")),
            ("SHOW x; create  database \"my db\" WITH NAME y", Some("my db")),
            ("CREATE DATABASE", None),
            ("CREATE DATABASE \"\"", None),
            ("DROP DATABASE x", None),
        ] {
            assert_eq!(created_database(q).as_deref(), name, "{q}");
        }
    }
}
