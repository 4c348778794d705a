//! The bodies in `testdata/line` and `testdata/json`, each with exactly what becomes of it, and random ones.
//!
//! A file holds cases, one empty line between them: `# a sentence`, options (`unit: s`, `points_max: 2`,
//! `series_max: 1`), then `body:` (several are joined; `\n \r \t \\ \xHH` and `\u{..}` are escapes), then what is
//! expected: `point:`, `count:` and `refuse:` lines, or `error:`. With `DECODE_CORPUS=write` in the environment the
//! test writes the expectations anew, for the reader of the diff to judge.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::testing::*;
use super::*;

struct Case {
    /// Comment, options and bodies as they stand in the file
    head: String,
    expected: String,
    body: Vec<u8>,
    unit: TimestampUnit,
    bounds: Bounds,
    series_max: Option<usize>,
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        match chars.next().expect("an escape") {
            'n' => out.push(b'\n'),
            'r' => out.push(b'\r'),
            't' => out.push(b'\t'),
            '\\' => out.push(b'\\'),
            'x' => {
                let hex: String = chars.by_ref().take(2).collect();
                out.push(u8::from_str_radix(&hex, 16).expect("two hex digits"));
            }
            // \*N{text}: text N times
            '*' => {
                let count: String = chars.by_ref().take_while(|&char| char != '{').collect();
                let text: String = chars.by_ref().take_while(|&char| char != '}').collect();
                out.extend(unescape(&text).repeat(count.parse().expect("a count")));
            }
            other => panic!("unknown escape \\{other} in {text}"),
        }
    }
    out
}

fn parse_case(text: &str) -> Case {
    let mut case = Case {
        head: String::new(),
        expected: String::new(),
        body: Vec::new(),
        unit: TimestampUnit::Ns,
        bounds: Bounds::default(),
        series_max: None,
    };
    for line in text.lines() {
        let (key, rest) = line.split_once(": ").or(line.strip_suffix(':').map(|key| (key, ""))).unwrap_or((line, ""));
        let bounds = &mut case.bounds;
        let mut head = true;
        match key {
            _ if line.starts_with('#') => {}
            "unit" => {
                case.unit = match rest {
                    "s" => TimestampUnit::S,
                    "ms" => TimestampUnit::Ms,
                    "us" => TimestampUnit::Us,
                    "ns" => TimestampUnit::Ns,
                    "magnitude" => TimestampUnit::ByMagnitude,
                    _ => panic!("unknown unit {rest}"),
                }
            }
            "points_max" => bounds.points_max = rest.parse().unwrap(),
            "name_bytes_max" => bounds.name_bytes_max = rest.parse().unwrap(),
            "tag_bytes_max" => bounds.tag_bytes_max = rest.parse().unwrap(),
            "tags_max" => bounds.tags_max = rest.parse().unwrap(),
            "series_bytes_max" => bounds.series_bytes_max = rest.parse().unwrap(),
            "text_bytes_max" => bounds.text_bytes_max = rest.parse().unwrap(),
            "json_depth_max" => bounds.json_depth_max = rest.parse().unwrap(),
            "series_max" => case.series_max = Some(rest.parse().unwrap()),
            "body" => case.body.extend(unescape(rest)),
            "point" | "count" | "refuse" | "error" => head = false,
            _ => panic!("unknown key in {line}"),
        }
        writeln!(if head { &mut case.head } else { &mut case.expected }, "{line}").unwrap();
    }
    case
}

fn render(decoded: Result<Decoded, json::JsonError>) -> String {
    let mut text = String::new();
    match decoded {
        Err(error) => writeln!(text, "error: {error}").unwrap(),
        Ok((points, counts, words)) => {
            for point in points {
                writeln!(text, "point: {point}").unwrap();
            }
            for reason in Reason::ALL.into_iter().filter(|&reason| counts[reason as usize] > 0) {
                writeln!(text, "count: {} {}", reason.name(), counts[reason as usize]).unwrap();
            }
            for words in words {
                writeln!(text, "refuse: {} {}: {}", words.index, words.reason.name(), words.message).unwrap();
            }
        }
    }
    text
}

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(folder);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn run(folder: &str, cases_min: usize, decode: impl Fn(&Case, &mut MemorySeries) -> Result<Decoded, json::JsonError>) {
    let write = std::env::var("DECODE_CORPUS").is_ok_and(|value| value == "write");
    let mut count = 0;
    for file in files(folder) {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut rewritten = String::new();
        for case in text.split("\n\n").filter(|case| !case.trim().is_empty()).map(parse_case) {
            let mut series = MemorySeries::default();
            series.series_max = case.series_max;
            let found = render(decode(&case, &mut series));
            if !write {
                assert_eq!(found, case.expected, "{}: {}", file.display(), case.head);
            }
            let gap = if rewritten.is_empty() { "" } else { "\n" };
            write!(rewritten, "{gap}{}{found}", case.head).unwrap();
            count += 1;
        }
        if write {
            std::fs::write(&file, rewritten).unwrap();
        }
    }
    assert!(count >= cases_min, "only {count} cases in {folder}");
}

#[test]
fn each_line_body_of_the_corpus_gives_its_points_and_refusals() {
    run("line", 80, |case, series| Ok(decode_line(&case.body, case.unit, &case.bounds, series)));
}

#[test]
fn each_json_body_of_the_corpus_gives_its_points_and_refusals() {
    run("json", 60, |case, series| decode_json(&case.body, case.unit, &case.bounds, series));
}

fn bodies() -> Vec<Vec<u8>> {
    let all = files("line").into_iter().chain(files("json"));
    let texts: Vec<String> = all.map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let cases = texts.iter().flat_map(|text| text.split("\n\n")).filter(|case| !case.trim().is_empty());
    cases.map(|case| parse_case(case).body).collect()
}

/// The corpus, cut at each byte and with each byte gone, through the function of the fuzz targets.
#[test]
fn the_corpus_and_its_fragments_agree_with_the_references() {
    for body in bodies() {
        check_line(&body, reference::decode);
        check_json(&body);
        for at in (0..body.len()).take(200) {
            let without = [&body[..at], &body[at + 1..]].concat();
            for fragment in [&body[..at], &without] {
                check_line(fragment, reference::decode);
                check_json(fragment);
            }
        }
    }
}

const LINE_PARTS: &str = r#"(cpu|m|,|=| |\n|"|\\|,a=b|,host=x|v=1|value=2i|v=3u|s="x y"|s="a\nb"|t=t|b=False| 1700| -5|#|\r\n|\r|1e400|nan|-|1\.5e3|\x00|é|\\ |\\,|\\=|\\"|\\\\)"#;
const JSON_PARTS: &str = r#"(\{|\}|\[|\]|,|:|"name":"a"|"value":1|"value":-0|"value":1e400|"value":18446744073709551615|"value":9223372036854775808\.5|"timestamp":17|"timestamp":1\.5e3|"tags":\{"a":"b"\}|"tags":\{\}|"tags":\{"a":1e5\}|"fields":\{"f":1\}|"fields":\{"f":"x","value":true\}|"metrics":|null|true|"\\u00e9"|"\\ud800"|"x"| |0|-1|123456789012345678901234567890|\{"name":"n","value":2\.5\}|\[\{"name":"n","value":7,"tags":\{"k":"v"\}\}\])"#;

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn random_lines_agree_with_the_reference(parts in proptest::collection::vec(LINE_PARTS, 0..24)) {
        check_line(parts.concat().as_bytes(), reference::decode);
    }

    #[test]
    fn random_documents_agree_with_serde_json(parts in proptest::collection::vec(JSON_PARTS, 0..16)) {
        check_json(parts.concat().as_bytes());
    }

    #[test]
    fn random_values_agree_with_serde_json(number in "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?") {
        check_json(format!(r#"[{{"name":"a","value":{number}}},{{"name":"b","value":{number} }}]"#).as_bytes());
        check_json(format!(r#"[{{"name":"a","v\u0061lue":{number},"x":1e999}}]"#).as_bytes());
    }
}
