//! Why a run must not start: sentences of admission, each about a step where it is about one.

use std::fmt;

use ferroflow_core::id::StepName;

/// Why the run must not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    step: Option<StepName>,
    /// What follows the step's name, or a sentence of its own.
    text: String,
}

impl Refusal {
    /// About a step; `text` follows its name: ` asks for …`, `: …`.
    pub fn of(step: &StepName, text: impl Into<String>) -> Self {
        Self { step: Some(step.clone()), text: text.into() }
    }

    /// About the layer as a whole.
    pub fn of_all(text: impl Into<String>) -> Self {
        Self { step: None, text: text.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match &self.step {
            Some(step) => write!(out, "step `{step}`{}", self.text),
            None => out.write_str(&self.text),
        }
    }
}

/// A line for each, in the order of `steps`; those alike but for the step are said once.
pub fn in_words(refusals: &[Refusal], steps: &[StepName]) -> String {
    let mut refusals: Vec<&Refusal> = refusals.iter().collect();
    refusals.sort_by_key(|refusal| steps.iter().position(|step| Some(step) == refusal.step.as_ref()));
    let mut groups: Vec<(&Refusal, Vec<&str>)> = Vec::new();
    for refusal in refusals {
        let alike = |first: &Refusal| first.text == refusal.text && first.step.is_some();
        match (&refusal.step, groups.iter_mut().find(|(first, _)| alike(first))) {
            (Some(step), Some((_, others))) => others.push(step.as_str()),
            _ => groups.push((refusal, Vec::new())),
        }
    }
    let lines = groups.iter().map(|(first, others)| match others.as_slice() {
        [] => first.to_string(),
        others => format!("{first} (likewise `{}`)", others.join("`, `")),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_alike_are_said_once_in_the_flows_order() {
        let of = |step: &str, text: &str| Refusal::of(&StepName::from(step), text);
        let refusals = [of("c", " asks for x"), of("b", ": no"), of("a", " asks for x"), Refusal::of_all("no answer")];
        let steps = ["a", "b", "c"].map(StepName::from);
        assert_eq!(in_words(&refusals, &steps), "no answer\nstep `a` asks for x (likewise `c`)\nstep `b`: no");
    }
}
