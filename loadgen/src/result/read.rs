//! Results from and to files.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::{RunResult, VERSION};
use crate::commands::Failure;

/// A day of seconds and a sweep of hundreds of steps stay far below.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Longer than any run: plots and merges compute with times.
const SECONDS_MAX: f64 = 1e9;

impl RunResult {
    pub fn read(path: &Path) -> Result<RunResult, Failure> {
        let shown = path.display();
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(|error| {
            Failure(format!("cannot open the result {shown}: {error}; name a file that --json wrote"))
        })?;
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| {
            Failure(format!("cannot read the result {shown}: {error}; name a file that --json wrote"))
        })?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(Failure(format!("{shown} is larger than any result (256 MiB); name a file that --json wrote")));
        }
        RunResult::from_json(&text).map_err(|fault| Failure(format!("{shown} {fault}")))
    }

    /// The fault completes a sentence that begins with the document's name.
    pub fn from_json(text: &str) -> Result<RunResult, String> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
            tool: String,
        }
        let head: Head = serde_json::from_str(text).map_err(|error| {
            format!("is no result of metricstream-loadgen ({error}); name a file that --json wrote")
        })?;
        if head.version != VERSION {
            let (theirs, tool) = (head.version, head.tool);
            return Err(format!("is of version {theirs}, written by {tool}; this program reads version {VERSION}"));
        }
        let result: RunResult =
            serde_json::from_str(text).map_err(|error| format!("is damaged: {error}; make the result anew"))?;
        result.judge_times().map_err(|fault| format!("is damaged: {fault}; make the result anew"))?;
        Ok(result)
    }

    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("plain data");
        text.push('\n');
        text
    }

    fn judge_times(&self) -> Result<(), String> {
        let sane = |name: &str, value: f64| {
            if (0.0..=SECONDS_MAX).contains(&value) { Ok(()) } else { Err(format!("{name} cannot be {value}")) }
        };
        sane("totals.duration_s", self.totals.duration_s)?;
        sane("totals.generator_cpu_s", self.totals.generator_cpu_s)?;
        sane("totals.generator_wall_s", self.totals.generator_wall_s)?;
        // Until the year 5138; differences of starts then fit everything.
        if self.started_unix_ms > 100_000_000_000_000 {
            return Err(format!("started_unix_ms cannot be {}", self.started_unix_ms));
        }
        for second in &self.seconds {
            sane("at_s of a second", second.at_s)?;
        }
        for step in &self.steps {
            sane("the rate of a step", step.rate)?;
            sane("from_s of a step", step.from_s)?;
            sane("to_s of a step", step.to_s)?;
            if step.to_s < step.from_s {
                return Err("a step ends before it begins".into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn a_result_comes_back_as_it_was() {
        let result = fixture::steady("a", 5);
        let back = RunResult::from_json(&result.to_json()).unwrap();
        assert_eq!(back.to_json(), result.to_json());
        assert_eq!(back.histograms.latency_us, result.histograms.latency_us);
    }

    #[test]
    fn bad_documents_are_refused_in_one_sentence() {
        let good = fixture::steady("a", 3).to_json();
        let with = |from: &str, to: &str| {
            assert!(good.contains(from), "{from} is in the document");
            RunResult::from_json(&good.replacen(from, to, 1)).unwrap_err()
        };
        for (fault, part) in
            [
                (RunResult::from_json("").unwrap_err(), "is no result of metricstream-loadgen (EOF"),
                (
                    RunResult::from_json("{\"points\":3}").unwrap_err(),
                    "is no result of metricstream-loadgen (missing field `version`",
                ),
                (with("\"version\": 1", "\"version\": 9"), "is of version 9, written by metricstream-loadgen"),
                (with("\"latency_us\": \"", "\"latency_us\": \"####"), "is damaged: this histogram is no base64"),
                (with("\"duration_s\": 3.0", "\"duration_s\": -3.0"), "is damaged: totals.duration_s cannot be -3"),
                (with("\"at_s\": 1.0", "\"at_s\": 1e300"), "is damaged: at_s of a second cannot be 1"),
                (good[..good.len() / 2].to_string(), "EOF"),
            ]
            .map(|(fault, part)| {
                if part == "EOF" { (RunResult::from_json(&fault).unwrap_err(), part) } else { (fault, part) }
            })
        {
            assert!(fault.contains(part), "{fault:?} says {part:?}");
            assert!(!fault.contains('\n'), "{fault:?} is one line");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let fault = RunResult::read(Path::new("/nowhere/out.json")).unwrap_err().to_string();
        assert!(fault.starts_with("cannot open the result /nowhere/out.json: No such file"), "{fault}");
    }
}
