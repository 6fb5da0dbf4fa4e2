//! `tag add|remove|replace|list`.

use std::collections::{BTreeMap, HashSet};

use ferroflow_core::id::RunId;
use ferroflow_core::metadata::{RunRow, RunState};
use ferroflow_core::port::MetadataStore;

use crate::arguments::{TagCommand, TagGroup};
use crate::context::Context;
use crate::report::Failure;

pub fn tag(context: &Context, command: TagCommand) -> Result<(), Failure> {
    let metadata = context.metadata(false)?;
    match command {
        TagCommand::Change { verb, run, namespace, add, remove } => {
            let run = known_run(context, &metadata, verb, run)?;
            in_namespace(context, &metadata, &run, namespace.as_deref())?;
            let tags = metadata.mutate_tags(&context.flow.name, &run, &add, &remove)?;
            let tags = if tags.is_empty() { "none".to_owned() } else { tags.join(", ") };
            context.say(&format!("Operation successful. User tags of {}/{run}: {tags}", context.flow.name));
            Ok(())
        }
        TagCommand::List { run, my_runs, hide_system, group, flat } => {
            let mut runs = match run {
                Some(run) => vec![metadata.run(&context.flow.name, &run_id(&run)?)?],
                None => metadata.runs(&context.flow.name)?,
            };
            if my_runs {
                runs.retain(|run| run.user == context.config.user);
            }
            if runs.is_empty() {
                return Err(Failure::invalid_command(format!("No run of {} found", context.flow.name)));
            }
            let table = Table { quiet: context.top.quiet, hide_system, flow: &context.flow.name };
            if flat {
                table.flat(&runs);
            } else if group == TagGroup::ByTag {
                table.by_tag(&runs);
            } else {
                table.by_run(&runs);
            }
            Ok(())
        }
    }
}

fn run_id(text: &str) -> Result<RunId, Failure> {
    if text.contains('/') {
        return Err(Failure::invalid_command(format!("`{text}` is not a run id: give the id alone, without a slash")));
    }
    Ok(RunId::from(text))
}

fn known_run(
    context: &Context,
    metadata: &dyn MetadataStore,
    verb: &str,
    run: Option<String>,
) -> Result<RunId, Failure> {
    match run {
        Some(run) => run_id(&run),
        None => {
            let latest = context.latest_run().or_else(|| context.newest_run(metadata));
            let hint = latest.map_or_else(String::new, |run| format!(" The latest run is {run}."));
            Err(Failure::invalid_command(format!("tag {verb} needs --run-id to say which run is meant.{hint}")))
        }
    }
}

fn in_namespace(
    context: &Context,
    metadata: &dyn MetadataStore,
    run: &RunId,
    namespace: Option<&str>,
) -> Result<(), Failure> {
    let row = metadata.run(&context.flow.name, run)?;
    let Some(namespace) = namespace.filter(|namespace| !namespace.is_empty()) else { return Ok(()) };
    if row.tags.iter().chain(&row.system_tags).any(|tag| tag == namespace) {
        return Ok(());
    }
    Err(Failure::new(
        "Object not in the current namespace",
        format!("{}/{run} is not in the namespace `{namespace}`", context.flow.name),
    ))
}

struct Table<'a> {
    quiet: bool,
    hide_system: bool,
    flow: &'a str,
}

impl Table<'_> {
    fn by_run(&self, runs: &[RunRow]) {
        if !self.quiet {
            let system = if self.hide_system { "" } else { "system tags, " };
            outln!("Runs of {} with their state, {system}and user tags (marked *):", self.flow);
            outln!("{}", "-".repeat(120));
        }
        for run in runs {
            if self.quiet { outln!("{}", self.quiet_line(run)) } else { self.show_run(run) }
        }
    }

    fn quiet_line(&self, run: &RunRow) -> String {
        let name = format!("{}/{}", self.flow, run.run);
        if self.hide_system {
            return format!("{name} ; {}", run.tags.join(","));
        }
        format!("{name} ; {} ; {}", run.system_tags.join(","), run.tags.join(","))
    }

    fn show_run(&self, run: &RunRow) {
        let mut tags: Vec<String> = run.tags.iter().map(|tag| format!("*{tag}")).collect();
        if !self.hide_system {
            tags.extend(run.system_tags.iter().cloned());
        }
        let head = format!("{:<24} {:<10} ", format!("{}/{}", self.flow, run.run), state_word(run.state));
        let indent = " ".repeat(head.len());
        for (index, line) in wrap(&tags, 120 - head.len().min(80)).iter().enumerate() {
            outln!("{}{line}", if index == 0 { &head } else { &indent });
        }
        if let (RunState::Lost | RunState::Failed, Some(cause)) = (run.state, &run.cause) {
            outln!("{indent}({})", cause.text);
        }
    }

    fn by_tag(&self, runs: &[RunRow]) {
        let mut system: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut user: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for run in runs {
            let name = format!("{}/{}", self.flow, run.run);
            if !self.hide_system {
                run.system_tags.iter().for_each(|tag| system.entry(tag).or_default().push(name.clone()));
            }
            run.tags.iter().for_each(|tag| user.entry(tag).or_default().push(name.clone()));
        }
        for (kind, tags) in [("system", system), ("user", user)] {
            for (tag, runs) in tags {
                outln!("{kind}:{tag} ; {}", runs.join(","));
            }
        }
    }

    fn flat(&self, runs: &[RunRow]) {
        let mut seen = HashSet::new();
        for run in runs {
            let system = if self.hide_system { &[][..] } else { &run.system_tags };
            for tag in system.iter().chain(&run.tags).filter(|tag| seen.insert((*tag).clone())) {
                outln!("{tag}");
            }
        }
    }
}

fn state_word(state: RunState) -> &'static str {
    match state {
        RunState::Running => "running",
        RunState::Done => "done",
        RunState::Failed => "failed",
        RunState::Cancelled => "cancelled",
        RunState::Lost => "lost",
    }
}

/// Tags in lines of at most `width` characters; at least one line.
fn wrap(tags: &[String], width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for tag in tags {
        let last = lines.last_mut().expect("there is always a line");
        if !last.is_empty() && last.len() + tag.len() + 2 > width {
            lines.push(tag.clone());
        } else {
            if !last.is_empty() {
                last.push_str(", ");
            }
            last.push_str(tag);
        }
    }
    lines
}
