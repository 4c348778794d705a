//! Rules of the tree that no compiler knows. Each says what it is for in the message of its failure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Where `unsafe` may stand: the rings, disk buffers, prefetch hints, single system calls and descriptors.
const UNSAFE_PLACES: &[&str] = &[
    "bench/src/bin/bench-load.rs",
    "loadgen/src/engine/machine.rs",
    "loadgen/src/engine/server_side.rs",
    "loadgen/src/ledger/tests.rs",
    "loadgen/src/ring/buffers.rs",
    "loadgen/src/ring/mod.rs",
    "loadgen/tests/command.rs",
    "shards/src/log/aligned.rs",
    "shards/src/ring/buffers.rs",
    "shards/src/ring/probe.rs",
    "shards/src/ring/uring.rs",
    "shards/src/series/prefetch.rs",
    "shards/src/window/prefetch.rs",
    "src/backplane/executor.rs",
    "src/data_dir.rs",
    "src/forward/kafka/native.rs",
    "src/sockets.rs",
];

const STAGES: &[&str] = &["decode", "http", "limiter", "log", "series", "window"];

/// Files below the root by their relative path, with their text. Only what belongs to the project.
fn files(extensions: &[&str]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![PathBuf::from(ROOT)];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            if path.is_dir() {
                // Built or fetched; hidden ones but CI's are caches.
                let theirs = ["target", "node_modules", "corpus", "artifacts", "metricstream-data"].contains(&name);
                if !theirs && (!name.starts_with('.') || name == ".ci") {
                    todo.push(path);
                }
            } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e)) {
                let relative = path.strip_prefix(ROOT).expect("below the root").to_string_lossy().into_owned();
                found.insert(relative, std::fs::read_to_string(&path).expect("UTF-8"));
            }
        }
    }
    assert!(!found.is_empty(), "no {extensions:?} below {ROOT}");
    found
}

/// Lines of code with their numbers: without comments, and without what a test module at the end holds.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| *line != "mod tests {")
        .map(|(n, line)| (n + 1, line.split("//").next().unwrap_or("")))
}

/// Whether `word` stands in `line` by itself.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(is_part)
            && !line[at + word.len()..].chars().next().is_some_and(is_part)
    })
}

/// The places where `wrong` finds something, one a line.
fn places(files: &BTreeMap<String, String>, wrong: impl Fn(&str, &str) -> bool) -> String {
    let mut out = String::new();
    for (path, text) in files {
        for (line, code) in code(text).filter(|(_, code)| wrong(path, code)) {
            out.push_str(&format!("  {path}:{line}: {}\n", code.trim()));
        }
    }
    out
}

#[test]
fn only_one_file_names_glommio() {
    let found = places(&files(&["rs"]), |path, code| {
        path != "src/backplane/executor.rs" && path != "tests/rules.rs" && has_word(code, "glommio")
    });
    assert!(found.is_empty(), "glommio must be replaceable by changing src/backplane/executor.rs alone:\n{found}");
}

#[test]
fn unsafe_stands_only_in_listed_files() {
    let sources = files(&["rs"]);
    let has_unsafe =
        |code: &str| has_word(&code.replace("'unsafe-inline'", ""), "unsafe") && !code.trim_start().starts_with('#');
    let found =
        places(&sources, |path, code| !UNSAFE_PLACES.contains(&path) && path != "tests/rules.rs" && has_unsafe(code));
    assert!(found.is_empty(), "unsafe is a place, not a habit: move it to a listed module, or list the file:\n{found}");
    for path in UNSAFE_PLACES {
        let text = sources.get(*path).unwrap_or_else(|| panic!("{path} is listed and is not there"));
        assert!(code(text).any(|(_, code)| has_unsafe(code)), "{path} needs no unsafe any more: take it off the list");
    }
}

#[test]
fn nothing_is_left_to_do_in_the_code() {
    let found = places(&files(&["rs"]), |path, code| {
        path != "tests/rules.rs" && ["todo!", "unimplemented!", "dbg!"].iter().any(|word| code.contains(word))
    });
    assert!(found.is_empty(), "finish it or open an issue:\n{found}");
}

#[test]
fn stages_do_not_import_each_other() {
    let found = places(&files(&["rs"]), |path, code| {
        let Some(stage) = STAGES.iter().find(|stage| {
            path.starts_with(&format!("shards/src/{stage}/")) || path == format!("shards/src/{stage}.rs")
        }) else {
            return false;
        };
        STAGES.iter().filter(|other| *other != stage).any(|other| has_word(code, &format!("crate::{other}")))
            || has_word(code, "crate::shard")
    });
    assert!(found.is_empty(), "stages meet in `point`, and only `shard` knows them all:\n{found}");
}

#[test]
fn shards_name_nothing_of_the_process() {
    let found =
        places(&files(&["rs"]), |path, code| path.starts_with("shards/src/") && has_word(code, "metricstream::"));
    assert!(found.is_empty(), "dependencies point one way, from the process to the shards:\n{found}");
}

#[test]
fn a_shard_reads_time_and_files_only_through_the_seam() {
    let found = places(&files(&["rs"]), |path, code| {
        path.starts_with("shards/src/shard/")
            && ["Instant::now", "SystemTime::now", "File::open", "OpenOptions", "thread::sleep"]
                .iter()
                .any(|call| code.contains(call))
    });
    assert!(found.is_empty(), "what passes the seam cannot be simulated:\n{found}");
}

#[test]
fn every_source_file_says_first_what_it_is_for() {
    let mute: Vec<String> =
        files(&["rs"]).into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(path, _)| path).collect();
    assert!(mute.is_empty(), "these do not begin with a `//!` line: {mute:?}");
}

#[test]
fn documents_name_no_place_of_one_machine() {
    let mut found = String::new();
    for (path, text) in files(&["md", "toml"]) {
        for (n, line) in text.lines().enumerate() {
            if ["/tmp/", "/work/", "/home/", "/root/"].iter().any(|place| line.contains(place)) {
                found.push_str(&format!("  {path}:{}: {}\n", n + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "these paths mean nothing to a reader:\n{found}");
}

/// Links of Markdown documents that point into the tree.
#[test]
fn links_between_documents_lead_somewhere() {
    let mut dead = String::new();
    for (path, text) in files(&["md"]) {
        let dir = Path::new(ROOT).join(&path).parent().expect("a folder").to_path_buf();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or("");
            if !target.is_empty() && !target.contains("://") && !dir.join(target).exists() {
                dead.push_str(&format!("  {path}: {link}\n"));
            }
        }
    }
    assert!(dead.is_empty(), "dead links:\n{dead}");
}
