//! The HTML page of one or several results.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{Failure, Outcome};
use crate::report::{self, html};
use crate::result::RunResult;

/// Make one self-contained HTML page of one result, or of several side by side
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  metricstream-loadgen report run.json --out run.html
  metricstream-loadgen report before=a.json after=b.json --out compared.html")]
pub struct Args {
    /// Results that `run`, `sweep` or `merge` wrote with --json, each FILE or LABEL=FILE
    #[arg(required = true, value_name = "RESULT")]
    results: Vec<String>,
    /// Where the page goes
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
}

/// Colours and columns that can still be told apart.
const RESULTS_MAX: usize = 12;

pub fn run(args: Args) -> Outcome {
    if args.results.len() > RESULTS_MAX {
        return Err(Failure(format!(
            "a page compares at most {RESULTS_MAX} results, and {} were named; leave some away, or merge what belongs \
             together",
            args.results.len()
        )));
    }
    report::check_output(&args.out)?;
    let mut labels: Vec<String> = Vec::new();
    let mut results = Vec::new();
    for text in &args.results {
        let (label, path) = labelled(text);
        if labels.contains(&label) {
            return Err(Failure(format!(
                "two results are called '{label}'; name them apart, as in before=a.json after=b.json"
            )));
        }
        labels.push(label);
        results.push(RunResult::read(path)?);
    }
    let page: Vec<_> =
        labels.into_iter().zip(&results).map(|(label, result)| html::Labelled { label, result }).collect();
    report::write_whole(&args.out, &html::page(&page))?;
    println!("wrote {}", args.out.display());
    Ok(ExitCode::SUCCESS)
}

/// `LABEL=FILE`, or a file that is called by its own name.
fn labelled(text: &str) -> (String, &Path) {
    match text.split_once('=') {
        Some((label, path)) if !label.is_empty() && !Path::new(text).exists() => (label.to_string(), Path::new(path)),
        _ => {
            let path = Path::new(text);
            (path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), path)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::fixture;

    #[test]
    fn a_page_is_made_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, out) = (dir.path().join("a.json"), dir.path().join("b.json"), dir.path().join("out.html"));
        std::fs::write(&a, fixture::steady("a", 3).to_json()).unwrap();
        std::fs::write(&b, fixture::sweep("b").to_json()).unwrap();
        let results = vec![a.display().to_string(), format!("after=={}", b.display())];
        let fault = run(Args { results, out: out.clone() }).unwrap_err().to_string();
        assert!(fault.starts_with("cannot open the result ="), "{fault}");
        let results = vec![a.display().to_string(), format!("after={}", b.display())];
        run(Args { results, out: out.clone() }).unwrap();
        assert!(std::fs::read_to_string(&out).unwrap().contains("<h1>a · after</h1>"));
        let results = vec![a.display().to_string(), a.display().to_string()];
        assert!(run(Args { results, out }).unwrap_err().to_string().contains("two results are called 'a'"));
    }
}
