//! One self-contained page.

use crate::result::RunResult;

/// A result under the name that tells it from others on the page.
pub struct Labelled<'a> {
    pub label: String,
    pub result: &'a RunResult,
}

impl Labelled<'_> {
    pub fn alone(result: &RunResult) -> Labelled<'_> {
        Labelled { label: String::new(), result }
    }
}

pub fn page(results: &[Labelled]) -> String {
    results.iter().map(|labelled| format!("<pre>{}</pre>", labelled.label)).collect()
}
