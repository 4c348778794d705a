//! What is wrong with a configuration: all of it at once, each with its line, key and a sentence.

use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// From 1; `None` when nothing in the file stands for it (a default, the command line, the machine)
    pub line: Option<usize>,
    /// Path of the key, such as `http.idle_timeout` or `listen[0].addresses`; empty for the file as a whole
    pub key: String,
    pub message: String,
}

impl Problem {
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem { line: None, key: key.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Never empty. Shown one a line, each after the name of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// File name, or `configuration`
    pub source: String,
    pub list: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.list.iter().enumerate() {
            let newline = if n == 0 { "" } else { "\n" };
            write!(f, "{newline}{}: {problem}", self.source)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
