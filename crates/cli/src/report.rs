//! How mistakes and failures are told (behaviour.md G-2): on stderr, indented, with file and line.

use std::fmt::Write as _;
use std::io::IsTerminal;

use ferroflow_core::diagnostic::Diagnostic;
use ferroflow_core::wire::FrontEndError;

use crate::unread;

/// An error that ends the command.
#[derive(Debug)]
pub struct Failure {
    pub headline: String,
    pub message: String,
    pub file: Option<String>,
    pub line: u32,
    pub exit_code: u8,
}

impl Failure {
    pub fn new(headline: &str, message: impl Into<String>) -> Self {
        Self { headline: headline.to_owned(), message: message.into(), file: None, line: 0, exit_code: 1 }
    }

    /// A mistake in how the command was called.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit_code: 2, ..Self::new("Error", message) }
    }

    pub fn invalid_command(message: impl Into<String>) -> Self {
        Self::new("Invalid command", message)
    }

    /// The text for stderr; `colours` puts the headline in bold red.
    pub fn text(&self, colours: bool) -> String {
        let mut place = String::new();
        if let Some(file) = &self.file {
            // Writing to a String cannot fail.
            let _ = write!(place, " in file {file}");
        }
        if self.line > 0 {
            let _ = write!(place, " on line {}", self.line);
        }
        let headline = format!("{}{place}:", self.headline);
        let headline = if colours { format!("\x1b[31m\x1b[1m{headline}\x1b[0m") } else { headline };
        let mut text = format!("    {headline}\n");
        for line in self.message.lines() {
            let _ = writeln!(text, "    {line}");
        }
        text.push('\n');
        text
    }

    pub fn print(&self) {
        if self.exit_code == 2 && self.headline == "Error" {
            unread::say(&format!("Error: {}\n", self.message.trim_end()));
        } else {
            unread::say(&self.text(std::io::stderr().is_terminal()));
        }
    }
}

impl From<Diagnostic> for Failure {
    fn from(found: Diagnostic) -> Self {
        Self { file: found.file, line: found.line, ..Self::new(found.headline, found.message) }
    }
}

impl From<FrontEndError> for Failure {
    fn from(error: FrontEndError) -> Self {
        Self {
            headline: if error.usage { "Error".to_owned() } else { error.headline },
            message: error.message,
            file: error.file,
            line: error.line,
            exit_code: if error.usage { 2 } else { 1 },
        }
    }
}
