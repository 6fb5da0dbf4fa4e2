//! Words for typing a command again.

use ferroflow_core::id::RunId;
use ferroflow_core::metadata::RunRow;

use crate::arguments::{RunOptions, TopOptions};

/// Resumes a run with the options that say where it ran.
pub fn resume(top: &TopOptions, options: &RunOptions, run: &RunId) -> Vec<String> {
    let named = [("--datastore", &top.datastore), ("--datastore-root", &top.datastore_root)];
    let mut words: Vec<String> = Vec::new();
    for (name, value) in named.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))) {
        words.extend([name.to_owned(), value]);
    }
    words.extend(top.with.iter().flat_map(|with| ["--with".to_owned(), with.clone()]));
    words.extend(["resume".to_owned(), "--origin-run-id".to_owned(), run.to_string()]);
    words.extend(options.with.iter().flat_map(|with| ["--with".to_owned(), with.clone()]));
    words
}

/// Resumes a recorded run, whatever the options of this command are.
pub fn resume_recorded(run: &RunRow) -> Vec<String> {
    let store = run.store.as_ref();
    let mut words: Vec<String> = store.map_or_else(Vec::new, |store| {
        let (kind, root) = (store.kind.clone(), store.root.clone());
        vec!["--datastore".to_owned(), kind, "--datastore-root".to_owned(), root]
    });
    words.extend(["resume".to_owned(), "--origin-run-id".to_owned(), run.run.to_string()]);
    words
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
        assert_eq!(words.join("|"), "--datastore|s3|resume|--origin-run-id|4|--with|kubernetes:image=a b,cpu=2");
    }
}
