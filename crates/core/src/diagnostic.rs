//! A finding about the user's source or command line: one sentence, with file and line.

use std::fmt;

/// One problem in the user's source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Headline of the peer's exception class, e.g. `Validity checker found an issue`.
    pub headline: &'static str,
    pub message: String,
    pub file: Option<String>,
    /// 1-based; 0 when the line is not known.
    pub line: u32,
}

impl Diagnostic {
    /// A lint finding at a place.
    pub fn lint(message: impl Into<String>, file: &str, line: u32) -> Self {
        Self { headline: "Validity checker found an issue", message: message.into(), file: Some(file.to_owned()), line }
    }
}

/// `    headline in file X on line N:` / `    message` (behaviour.md G-2), without colours.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "    {}", self.headline)?;
        if let Some(file) = &self.file {
            write!(f, " in file {file}")?;
        }
        if self.line > 0 {
            write!(f, " on line {}", self.line)?;
        }
        writeln!(f, ":")?;
        for line in self.message.lines() {
            writeln!(f, "    {line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}
