//! What differs between remote tasks of flows in Python and in R: the interpreter, its first program,
//! and which files of the installed package `metaflow` a container needs.

use std::path::{Component, Path};

const PYTHON_BOOTSTRAP: &str = include_str!("bootstrap.py");
const R_BOOTSTRAP: &str = include_str!("bootstrap.R");
/// Folders of an installed R package that only people and the engine's machine need.
const NOT_FOR_R_TASKS: [&str; 6] = ["bin", "help", "html", "doc", "tests", "examples"];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    #[default]
    Python,
    R,
}

impl Language {
    /// By the name in the front end's hello.
    pub fn of(name: &str) -> Self {
        if name == "R" { Self::R } else { Self::Python }
    }

    /// Every image of the language has it. (`python` is missing in those of Linux distributions.)
    pub fn interpreter(self) -> &'static str {
        match self {
            Self::Python => "python3",
            Self::R => "Rscript",
        }
    }

    /// What process 1 of the container runs. No shell of ours: there may be none.
    pub fn command(self, interpreter: &str) -> Vec<String> {
        let program = match self {
            Self::Python => vec![interpreter, "-u", "-c", PYTHON_BOOTSTRAP],
            Self::R => vec![interpreter, "--vanilla", "-e", R_BOOTSTRAP],
        };
        program.into_iter().map(str::to_owned).collect()
    }

    /// Whether a container needs a file of the installed package, by its path below the package.
    pub(super) fn takes_along(self, file: &Path) -> bool {
        match self {
            Self::Python => file.extension().is_some_and(|ending| ending == "py" || ending == "so"),
            Self::R => {
                let Some(Component::Normal(first)) = file.components().next() else { return false };
                !NOT_FOR_R_TASKS.iter().any(|folder| *folder == first)
            }
        }
    }
}

/// What an image lacks that has no such interpreter.
pub fn needed_for(interpreter: &str) -> &'static str {
    if interpreter.ends_with("Rscript") {
        "a task of a flow in R needs an image with R, such as `rocker/r-ver` or `r-base`"
    } else {
        "a task needs an image with Python 3.11 or newer, such as `python:3.11`"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r_reads_the_whole_program_from_its_command_line() {
        // R's front end leaves out an `-e` that is longer, and says so on stderr only.
        assert!(R_BOOTSTRAP.len() < 9_000, "{} bytes", R_BOOTSTRAP.len());
        // Kubernetes would put variables in place of `$(NAME)`.
        assert!(!R_BOOTSTRAP.contains("$("));
    }

    #[test]
    fn of_an_r_package_goes_what_runs() {
        let taken = |name: &str| Language::R.takes_along(Path::new(name));
        assert!(
            taken("DESCRIPTION") && taken("R/metaflow.rdb") && taken("libs/metaflow.so") && taken("Meta/package.rds")
        );
        assert!(!taken("bin/metaflow") && !taken("help/AnIndex"));
    }
}
