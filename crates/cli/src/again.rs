//! Words for typing a command again, as a shell takes them.

use ferroflow_core::graph::Graph;
use ferroflow_core::id::RunId;

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

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:=,@%+-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Sentences that begin with "step `name`" in the flow's order, those alike but for the step said once.
pub fn said_once(sentences: &[String], graph: &Graph) -> String {
    let mut parts: Vec<(&str, &str)> = sentences.iter().map(|sentence| split(sentence)).collect();
    parts.sort_by_key(|(name, _)| graph.steps.iter().position(|step| step.name.as_str() == *name));
    together(&parts)
}

/// The step's name and what follows it; no name where the sentence is about no step.
fn split(sentence: &str) -> (&str, &str) {
    sentence.strip_prefix("step `").and_then(|after| after.split_once('`')).unwrap_or(("", sentence))
}

fn together(parts: &[(&str, &str)]) -> String {
    let mut groups: Vec<(&str, &str, Vec<&str>)> = Vec::new();
    for (name, rest) in parts.iter().copied() {
        match groups.iter_mut().find(|(first, of, _)| *of == rest && !first.is_empty() && !name.is_empty()) {
            Some((_, _, others)) => others.push(name),
            None => groups.push((name, rest, Vec::new())),
        }
    }
    let lines = groups.iter().map(|(name, rest, others)| match (name.is_empty(), others.as_slice()) {
        (true, _) => (*rest).to_owned(),
        (_, []) => format!("step `{name}`{rest}"),
        (_, others) => format!("step `{name}`{rest} (likewise `{}`)", others.join("`, `")),
    });
    lines.collect::<Vec<_>>().join("\n")
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

    #[test]
    fn sentences_alike_are_said_once() {
        let sentences = ["step `a` asks for x", "step `b`: no", "step `c` asks for x", "no answer"].map(str::to_owned);
        let text = "step `a` asks for x (likewise `c`)\nstep `b`: no\nno answer";
        let parts: Vec<_> = sentences.iter().map(|sentence| split(sentence)).collect();
        assert_eq!(together(&parts), text);
    }
}
