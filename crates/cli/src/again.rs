//! Words for typing a command again, as a shell takes them.

use ferroflow_core::id::RunId;
use ferroflow_core::metadata::RunRow;

use crate::arguments::{RunOptions, TopOptions};

/// What follows the script's name to resume a run with the options that say where it ran.
pub fn resume(top: &TopOptions, options: &RunOptions, run: &RunId) -> String {
    let named = [("--datastore", &top.datastore), ("--datastore-root", &top.datastore_root)];
    let mut words: Vec<String> = Vec::new();
    for (name, value) in named.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
        words.extend([(*name).to_owned(), quoted(value)]);
    }
    words.extend(top.with.iter().flat_map(|with| ["--with".to_owned(), quoted(with)]));
    words.extend(["resume".to_owned(), "--origin-run-id".to_owned(), run.to_string()]);
    words.extend(options.with.iter().flat_map(|with| ["--with".to_owned(), quoted(with)]));
    words.join(" ")
}

/// The options before a command that name a recorded run's datastore, with a space behind them.
pub fn datastore(run: &RunRow) -> String {
    run.store.as_ref().map_or_else(String::new, |store| {
        format!("--datastore {} --datastore-root {} ", store.kind, quoted(&store.root))
    })
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:=,@%+-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resume_names_what_the_run_was_given() {
        let top = TopOptions { datastore: Some("s3".to_owned()), ..TopOptions::default() };
        let with = vec!["kubernetes:image=a b,cpu=2".to_owned()];
        let options = RunOptions { with, ..RunOptions::default() };
        let words = resume(&top, &options, &RunId::from("4"));
        assert_eq!(words, "--datastore s3 resume --origin-run-id 4 --with 'kubernetes:image=a b,cpu=2'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
