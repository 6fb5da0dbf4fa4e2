//! The flow's command line: what was typed, read against the flow's own parameters. Conversion of
//! option values and reading of `METAFLOW_<COMMAND>_<OPTION>` happen here; doing anything does not.

mod active_tasks;

use std::collections::BTreeMap;

use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command as Clap};
use ferroflow_core::ir::{Flow, Parameter, ParameterType};

use crate::config::Lookup;

pub use active_tasks::{TasksCommand, TasksVerb};

/// Options before the command.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopOptions {
    pub quiet: bool,
    pub metadata: Option<String>,
    pub environment: Option<String>,
    pub datastore: Option<String>,
    pub datastore_root: Option<String>,
    pub with: Vec<String>,
    /// Endings of file names that are packaged beside the usual ones.
    pub package_suffixes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Check,
    Show,
    OutputDot,
    OutputRaw {
        json: bool,
    },
    Version,
    Help,
    Run(RunOptions, BTreeMap<String, Vec<String>>),
    Resume(ResumeOptions, RunOptions),
    Dump(DumpOptions),
    Logs(LogsOptions),
    LogsScrub(ScrubOptions),
    Tag(TagCommand),
    Package(PackageCommand),
    Tasks(TasksCommand),
    /// A command of a later version.
    NotYet(&'static str, &'static str),
}

/// Options that `run` and `resume` share.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunOptions {
    pub tags: Vec<String>,
    pub max_workers: usize,
    pub max_num_splits: u64,
    /// Bytes per stream and task.
    pub max_log_size: u64,
    pub with: Vec<String>,
    pub run_id_file: Option<String>,
    pub runner_attribute_file: Option<String>,
    /// `Some("")` is the global namespace.
    pub namespace: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResumeOptions {
    pub step: Option<String>,
    pub origin_run_id: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DumpOptions {
    pub path: String,
    pub private: bool,
    pub max_value_size: u64,
    pub include: Vec<String>,
    pub file: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LogsOptions {
    pub path: String,
    pub stdout: bool,
    pub stderr: bool,
    pub timestamps: bool,
    pub attempt: Option<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ScrubOptions {
    pub logs: LogsOptions,
    pub all_attempts: bool,
    pub include_not_done: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum TagCommand {
    /// Removes, then adds.
    Change {
        verb: &'static str,
        run: Option<String>,
        namespace: Option<String>,
        add: Vec<String>,
        remove: Vec<String>,
    },
    List {
        run: Option<String>,
        my_runs: bool,
        hide_system: bool,
        group: TagGroup,
        flat: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackageCommand {
    Info,
    List {
        /// Names within the package instead of files on this machine.
        archive: bool,
    },
    Save {
        path: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagGroup {
    None,
    ByTag,
    ByRun,
}

/// A mistake on the command line, or a request for help; `text` is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    pub text: String,
    /// 2 for mistakes, 0 for help.
    pub exit_code: u8,
}

impl Usage {
    pub fn mistake(text: impl Into<String>) -> Self {
        Self { text: text.into(), exit_code: 2 }
    }
}

const NOT_YET: &[(&str, &str)] = &[
    ("card", "print results, or keep them as artifacts and read them with the client"),
    ("spin", "re-run a step with `resume STEP`"),
    ("argo-workflows", "run the flow with `run`, started by your scheduler of choice"),
    ("step-functions", "run the flow with `run`, started by your scheduler of choice"),
    ("airflow", "run the flow with `run`, started by your scheduler of choice"),
];

/// Parses the arguments after the flow file.
pub fn parse(flow: &Flow, script: &str, arguments: &[String], lookup: &Lookup) -> Result<(TopOptions, Command), Usage> {
    let clap = command_line(flow, script);
    let typed = std::iter::once(script.to_owned()).chain(arguments.iter().cloned());
    let matches = clap.clone().try_get_matches_from(typed).map_err(|error| usage_of(&error, &clap, script))?;
    let top = top_options(&Typed { matches: &matches, lookup, prefix: "METAFLOW".to_owned() })?;
    let command = match matches.subcommand() {
        None => Command::Check,
        Some((name, matches)) => {
            let prefix = format!("METAFLOW_{}", environment_name(name));
            sub_command(name, flow, &Typed { matches, lookup, prefix })?
        }
    };
    Ok((top, command))
}

/// The text of `--help`.
pub fn help(flow: &Flow, script: &str) -> String {
    command_line(flow, script).render_help().to_string()
}

fn usage_of(error: &clap::Error, clap: &Clap, script: &str) -> Usage {
    let exit_code = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
        _ => 2,
    };
    let misplaced = misplaced(error, clap)
        .map(|option| format!("\n{option} goes before the command: {script} {option} … COMMAND\n"));
    Usage { text: error.render().to_string() + &misplaced.unwrap_or_default(), exit_code }
}

/// The option that a command was given though it is the program's.
fn misplaced(error: &clap::Error, clap: &Clap) -> Option<String> {
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidArg) else { return None };
    let option = typed.split('=').next()?;
    let known = clap.get_arguments().any(|argument| argument.get_long() == option.strip_prefix("--"));
    (error.kind() == ErrorKind::UnknownArgument && known).then(|| option.to_owned())
}

fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value)
        .help(help)
        .allow_hyphen_values(true)
        .value_parser(ValueParser::string())
        .action(ArgAction::Set)
}

fn repeated(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    option(name, value, help).action(ArgAction::Append)
}

/// `--name/--no-name`; the last one given wins.
fn pair(clap: Clap, yes: &'static str, no: &'static str, help: &'static str) -> Clap {
    clap.arg(Arg::new(yes).long(yes).help(help).action(ArgAction::SetTrue).overrides_with(no))
        .arg(Arg::new(no).long(no).hide(true).action(ArgAction::SetTrue).overrides_with(yes))
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
}

fn sub(name: &'static str, about: &'static str) -> Clap {
    Clap::new(name).about(about).args_override_self(true).disable_version_flag(true)
}

fn command_line(flow: &Flow, script: &str) -> Clap {
    let clap = Clap::new("flow")
        .bin_name(script.to_owned())
        .about(flow.doc.clone().unwrap_or_else(|| format!("The flow {}.", flow.name)))
        .args_override_self(true)
        .disable_help_subcommand(true)
        .disable_version_flag(true)
        .arg(option("metadata", "TYPE", "Metadata store [default: local]"))
        .arg(option("environment", "TYPE", "Execution environment [default: local]"))
        .arg(option("datastore", "TYPE", "Artifact datastore [default: local]"))
        .arg(option("datastore-root", "PATH", "Root of the artifact datastore"))
        .arg(repeated("with", "SPEC", "Add a decorator to all steps, `name` or `name:key=value,...` (repeatable)"))
        .arg(option("package-suffixes", "LIST", "More file suffixes for the code package, separated by commas"))
        .arg(option("event-logger", "TYPE", "Accepted for compatibility").hide(true))
        .arg(option("monitor", "TYPE", "Accepted for compatibility").hide(true));
    let clap = pair(clap, "quiet", "not-quiet", "Print only the run's own lines");
    let clap = pair(clap, "pylint", "no-pylint", "Accepted for compatibility; pylint is not run");
    let clap = clap
        .subcommand(pair(
            sub("check", "Check the flow (default)"),
            "warnings",
            "no-warnings",
            "Accepted for compatibility",
        ))
        .subcommand(sub("show", "Show the flow's steps"))
        .subcommand(sub("output-dot", "Print the graph in graphviz' dot language"))
        .subcommand(sub("output-raw", "Print the graph as data").arg(flag("json", "As JSON")))
        .subcommand(sub("help", "Show this text"))
        .subcommand(sub("version", "Show the version"))
        .subcommand(run_command(flow))
        .subcommand(resume_command())
        .subcommand(dump_command())
        .subcommand(logs_command())
        .subcommand(tag_command())
        .subcommand(package_command());
    let clap = active_tasks::LAYERS.iter().fold(clap, |clap, layer| clap.subcommand(active_tasks::command(layer)));
    NOT_YET.iter().fold(clap, |clap, (name, _)| {
        clap.subcommand(
            sub(name, "Not in this version")
                .hide(true)
                .disable_help_flag(true)
                .arg(Arg::new("rest").num_args(0..).trailing_var_arg(true).allow_hyphen_values(true)),
        )
    })
}

fn run_command(flow: &Flow) -> Clap {
    let mut parameters: Vec<&Parameter> = flow.parameters.iter().collect();
    parameters.sort_by(|a, b| a.attribute.cmp(&b.attribute));
    let clap = parameters.into_iter().fold(sub("run", "Run the flow"), |clap, p| clap.arg(parameter_option(p)));
    shared_options(clap).arg(option(
        "namespace",
        "TEXT",
        "Client namespace for code in the run's tasks; empty for the global one",
    ))
}

fn parameter_option(parameter: &Parameter) -> Arg {
    let arg =
        Arg::new(format!("parameter:{}", parameter.name)).long(parameter.name.clone()).help(parameter_help(parameter));
    if parameter.is_flag {
        return arg.action(ArgAction::SetTrue);
    }
    let arg = arg
        .value_name(value_name(parameter.parameter_type))
        .allow_hyphen_values(true)
        .value_parser(ValueParser::string());
    arg.action(if parameter.multiple { ArgAction::Append } else { ArgAction::Set })
}

fn value_name(parameter_type: ParameterType) -> &'static str {
    match parameter_type {
        ParameterType::Str => "TEXT",
        ParameterType::Int => "INTEGER",
        ParameterType::Float => "FLOAT",
        ParameterType::Bool => "BOOLEAN",
        ParameterType::Json => "JSON",
    }
}

fn parameter_help(parameter: &Parameter) -> String {
    let mut help = parameter.help.clone().unwrap_or_default();
    let note = match (&parameter.default_text, parameter.required) {
        (Some(default), _) if parameter.show_default => format!("[default: {default}]"),
        (None, true) => "[required]".to_owned(),
        _ => return help,
    };
    if !help.is_empty() {
        help.push(' ');
    }
    help + &note
}

fn shared_options(clap: Clap) -> Clap {
    clap.arg(repeated("tag", "TEXT", "Tag the run (repeatable)"))
        .arg(option("max-workers", "INTEGER", "Most tasks to run at once [default: 16]"))
        .arg(option("max-num-splits", "INTEGER", "Most splits of a foreach [default: 100]"))
        .arg(option("max-log-size", "INTEGER", "Most megabytes of output to keep, per stream of a task [default: 10]"))
        .arg(repeated("with", "SPEC", "Add a decorator to all steps (repeatable)"))
        .arg(option("run-id-file", "PATH", "Write the run id to this file"))
        .arg(option("runner-attribute-file", "PATH", "Write run id, flow and metadata store to this file as JSON"))
}

fn resume_command() -> Clap {
    shared_options(sub("resume", "Run again what a past run did not finish"))
        .arg(Arg::new("step").value_name("STEP").help("Run this step and all that follow again"))
        .arg(option("origin-run-id", "RUN", "Run to resume [default: this folder's latest run]"))
}

fn dump_command() -> Clap {
    let clap = sub("dump", "Show the artifacts of a task")
        .arg(Arg::new("path").value_name("RUN/STEP[/TASK]").required(true))
        .arg(option("max-value-size", "BYTES", "Show larger values as too large [default: 1000]"))
        .arg(option("include", "NAMES", "Only these artifacts, separated by commas"))
        .arg(option("file", "PATH", "Pickle the artifacts into this file instead"));
    pair(clap, "private", "no-private", "Show names that start with an underscore too")
}

fn logs_options(clap: Clap) -> Clap {
    clap.arg(Arg::new("path").value_name("RUN/STEP[/TASK]").required(true))
        .arg(flag("stdout", "Only stdout"))
        .arg(flag("stderr", "Only stderr"))
        .arg(flag("both", "Both streams (default)"))
        .arg(option("attempt", "INTEGER", "Attempt to show [default: the latest]"))
}

fn logs_command() -> Clap {
    let show = |clap: Clap| pair(logs_options(clap), "timestamps", "no-timestamps", "Show when each line was printed");
    let scrub = logs_options(sub("scrub", "Overwrite the logs of tasks"))
        .arg(flag("latest", "Only the latest attempt (default)").overrides_with("all"))
        .arg(flag("all", "All attempts").overrides_with("latest"))
        .arg(flag("include-not-done", "Tasks that are not finished too"));
    show(sub("logs", "Show what a task printed"))
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true)
        .subcommand(show(sub("show", "Show what a task printed (default)")))
        .subcommand(scrub)
}

fn tag_command() -> Clap {
    let run = || option("run-id", "RUN", "The run");
    let namespace = || option("namespace", "TEXT", "Only runs of this namespace").hide(true);
    let tags = || Arg::new("tags").value_name("TAG").required(true).num_args(1..);
    sub("tag", "Add, remove, replace or list tags of runs")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(sub("add", "Add tags to a run").arg(run()).arg(namespace()).arg(tags()))
        .subcommand(sub("remove", "Remove tags from a run").arg(run()).arg(namespace()).arg(tags()))
        .subcommand(
            sub("replace", "Remove some tags of a run and add others")
                .arg(run())
                .arg(namespace())
                .arg(repeated("add", "TAG", "Tag to add (repeatable)").required(true))
                .arg(repeated("remove", "TAG", "Tag to remove (repeatable)").required(true)),
        )
        .subcommand(
            sub("list", "List runs and their tags")
                .arg(Arg::new("run").value_name("RUN"))
                .arg(run())
                .arg(flag("all", "All runs of the flow (default)"))
                .arg(flag("my-runs", "Only runs of the current user"))
                .arg(flag("hide-system-tags", "Only users' tags"))
                .arg(flag("group-by-tag", "A line per tag, with its runs"))
                .arg(flag("group-by-run", "A line per run, with its tags"))
                .arg(flag("flat", "Bare tags, a line each")),
        )
}

fn package_command() -> Clap {
    let list = sub("list", "List the files of the code package");
    let timeout = option("timeout", "SECONDS", "Accepted for compatibility").hide(true);
    sub("package", "Show or save the code package of remote tasks")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(timeout)
        .subcommand(sub("info", "Say what the code package is"))
        .subcommand(pair(list, "archive", "no-archive", "Show names within the package"))
        .subcommand(
            sub("save", "Save the code package to a file").arg(Arg::new("path").value_name("PATH").required(true)),
        )
}

fn environment_name(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

/// Options as typed, with the environment behind them.
struct Typed<'a> {
    matches: &'a ArgMatches,
    lookup: &'a Lookup,
    prefix: String,
}

impl Typed<'_> {
    fn environment(&self, name: &str) -> Option<&str> {
        self.lookup.environment(&format!("{}_{}", self.prefix, environment_name(name)))
    }

    /// An option's text; `internal` is its name in environment variables.
    fn text(&self, id: &str, internal: &str) -> Option<String> {
        let typed = self.matches.try_get_one::<String>(id).ok().flatten();
        typed.cloned().or_else(|| self.environment(internal).map(str::to_owned))
    }

    fn texts(&self, id: &str, internal: &str) -> Vec<String> {
        match self.matches.try_get_many::<String>(id).ok().flatten() {
            Some(values) => values.cloned().collect(),
            None => self.environment(internal).unwrap_or("").split_whitespace().map(str::to_owned).collect(),
        }
    }

    fn is_set(&self, id: &str) -> bool {
        self.matches.try_get_one::<bool>(id).ok().flatten().copied().unwrap_or(false)
    }

    fn pair(&self, yes: &str, no: &str) -> bool {
        if self.is_set(yes) || self.is_set(no) {
            return self.is_set(yes);
        }
        self.environment(yes)
            .is_some_and(|text| !matches!(text.trim().to_ascii_lowercase().as_str(), "0" | "false" | "no" | "off"))
    }

    fn integer(&self, id: &str, internal: &str, default: u64, least: u64) -> Result<u64, Usage> {
        let Some(text) = self.text(id, internal) else { return Ok(default) };
        let value: i128 = text.trim().parse().map_err(|_| {
            Usage::mistake(format!("Error: Invalid value for '--{id}': '{text}' is not a valid integer.\n"))
        })?;
        u64::try_from(value).ok().filter(|value| *value >= least).ok_or_else(|| {
            Usage::mistake(format!(
                "Error: Invalid value for '--{id}': {value} is smaller than the minimum, {least}.\n"
            ))
        })
    }
}

fn top_options(typed: &Typed<'_>) -> Result<TopOptions, Usage> {
    Ok(TopOptions {
        quiet: typed.pair("quiet", "not-quiet"),
        metadata: typed.text("metadata", "metadata"),
        environment: typed.text("environment", "environment"),
        datastore: typed.text("datastore", "datastore"),
        datastore_root: typed.text("datastore-root", "datastore_root"),
        with: typed.texts("with", "decospecs"),
        package_suffixes: suffixes(&typed.text("package-suffixes", "package_suffixes").unwrap_or_default()),
    })
}

/// Endings of file names, separated by commas.
pub fn suffixes(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|suffix| !suffix.is_empty()).map(str::to_owned).collect()
}

fn package(typed: &Typed<'_>) -> PackageCommand {
    match typed.matches.subcommand() {
        Some(("list", matches)) => {
            let typed = Typed { matches, lookup: typed.lookup, prefix: format!("{}_LIST", typed.prefix) };
            PackageCommand::List { archive: typed.pair("archive", "no-archive") }
        }
        Some(("save", matches)) => {
            let path = matches.get_one::<String>("path").expect("clap requires it");
            PackageCommand::Save { path: path.clone() }
        }
        _ => PackageCommand::Info,
    }
}

fn sub_command(name: &str, flow: &Flow, typed: &Typed<'_>) -> Result<Command, Usage> {
    Ok(match name {
        "check" => Command::Check,
        "show" => Command::Show,
        "output-dot" => Command::OutputDot,
        "output-raw" => Command::OutputRaw { json: typed.is_set("json") },
        "help" => Command::Help,
        "version" => Command::Version,
        "run" => Command::Run(run_options(typed)?, parameters(flow, typed)),
        "resume" => Command::Resume(
            ResumeOptions {
                step: typed.text("step", "step_to_rerun"),
                origin_run_id: typed.text("origin-run-id", "origin_run_id"),
            },
            run_options(typed)?,
        ),
        "dump" => Command::Dump(dump_options(typed)?),
        "logs" => logs(typed)?,
        "tag" => Command::Tag(tag(typed)),
        "package" => Command::Package(package(typed)),
        other if active_tasks::LAYERS.iter().any(|layer| layer.name == other) => {
            Command::Tasks(active_tasks::read(other, typed))
        }
        other => {
            let (name, instead) =
                NOT_YET.iter().find(|(name, _)| *name == other).expect("every sub-command is read here or in the list");
            Command::NotYet(name, instead)
        }
    })
}

fn run_options(typed: &Typed<'_>) -> Result<RunOptions, Usage> {
    let megabytes = typed.integer("max-log-size", "max_log_size", 10, 0)?;
    Ok(RunOptions {
        tags: typed.texts("tag", "tags"),
        max_workers: usize::try_from(typed.integer("max-workers", "max_workers", 16, 1)?).unwrap_or(usize::MAX),
        max_num_splits: typed.integer("max-num-splits", "max_num_splits", 100, 1)?,
        max_log_size: megabytes.saturating_mul(1 << 20),
        with: typed.texts("with", "decospecs"),
        run_id_file: typed.text("run-id-file", "run_id_file"),
        runner_attribute_file: typed.text("runner-attribute-file", "runner_attribute_file"),
        namespace: typed.matches.try_get_one::<String>("namespace").ok().flatten().cloned().or_else(|| {
            typed.environment("user_namespace").or_else(|| typed.environment("namespace")).map(str::to_owned)
        }),
    })
}

/// Parameters as the user gave them, by name; those not given are absent.
fn parameters(flow: &Flow, typed: &Typed<'_>) -> BTreeMap<String, Vec<String>> {
    let mut given = BTreeMap::new();
    for parameter in &flow.parameters {
        let id = format!("parameter:{}", parameter.name);
        let environment = || typed.environment(&parameter.name).map(str::to_owned);
        let texts = if parameter.is_flag {
            if typed.is_set(&id) { vec!["true".to_owned()] } else { environment().into_iter().collect() }
        } else {
            match typed.matches.get_many::<String>(&id) {
                Some(values) => values.cloned().collect(),
                None if parameter.multiple => typed.texts(&id, &parameter.name),
                None => environment().into_iter().collect(),
            }
        };
        if !texts.is_empty() {
            given.insert(parameter.name.clone(), texts);
        }
    }
    given
}

fn dump_options(typed: &Typed<'_>) -> Result<DumpOptions, Usage> {
    let include = typed.text("include", "include").unwrap_or_default();
    Ok(DumpOptions {
        path: typed.text("path", "input_path").unwrap_or_default(),
        private: typed.pair("private", "no-private"),
        max_value_size: typed.integer("max-value-size", "max_value_size", 1000, 0)?,
        include: include.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        file: typed.text("file", "file"),
    })
}

fn logs(typed: &Typed<'_>) -> Result<Command, Usage> {
    match typed.matches.subcommand() {
        Some(("scrub", matches)) => {
            let typed = Typed { matches, lookup: typed.lookup, prefix: format!("{}_SCRUB", typed.prefix) };
            Ok(Command::LogsScrub(ScrubOptions {
                logs: logs_shown(&typed)?,
                all_attempts: typed.is_set("all"),
                include_not_done: typed.is_set("include-not-done"),
            }))
        }
        Some((_, matches)) => {
            let typed = Typed { matches, lookup: typed.lookup, prefix: format!("{}_SHOW", typed.prefix) };
            Ok(Command::Logs(logs_shown(&typed)?))
        }
        None => Ok(Command::Logs(logs_shown(typed)?)),
    }
}

fn logs_shown(typed: &Typed<'_>) -> Result<LogsOptions, Usage> {
    let (out, err, both) = (typed.is_set("stdout"), typed.is_set("stderr"), typed.is_set("both"));
    let everything = both || out == err;
    let attempt = match typed.text("attempt", "attempt") {
        None => None,
        Some(_) => Some(typed.integer("attempt", "attempt", 0, 0)?),
    };
    Ok(LogsOptions {
        path: typed.text("path", "input_path").unwrap_or_default(),
        stdout: everything || out,
        stderr: everything || err,
        timestamps: typed.pair("timestamps", "no-timestamps"),
        attempt: attempt.map(|attempt| u32::try_from(attempt).unwrap_or(u32::MAX)),
    })
}

fn tag(typed: &Typed<'_>) -> TagCommand {
    let (name, matches) = typed.matches.subcommand().expect("clap requires a sub-command of tag");
    let typed = Typed { matches, lookup: typed.lookup, prefix: format!("{}_{}", typed.prefix, environment_name(name)) };
    let run = typed.text("run-id", "run_id");
    if name == "list" {
        let group = match (typed.is_set("group-by-tag"), typed.is_set("group-by-run")) {
            (true, _) => TagGroup::ByTag,
            (false, true) => TagGroup::ByRun,
            (false, false) => TagGroup::None,
        };
        return TagCommand::List {
            run: run.or_else(|| typed.text("run", "arg_run_id")),
            my_runs: typed.is_set("my-runs"),
            hide_system: typed.is_set("hide-system-tags"),
            group,
            flat: typed.is_set("flat"),
        };
    }
    let namespace = typed.text("namespace", "user_namespace");
    let (verb, add, remove) = match name {
        "add" => ("add", typed.texts("tags", "tags"), Vec::new()),
        "remove" => ("remove", Vec::new(), typed.texts("tags", "tags")),
        _ => ("replace", typed.texts("add", "add"), typed.texts("remove", "remove")),
    };
    TagCommand::Change { verb, run, namespace, add, remove }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        serde_json::from_value(serde_json::json!({
            "name": "F", "file": "/f.py", "steps": [],
            "parameters": [
                {"name": "alpha", "attribute": "alpha", "type": "int"},
                {"name": "name", "attribute": "name", "type": "str"},
                {"name": "many", "attribute": "many", "type": "str", "multiple": true}
            ]
        }))
        .expect("a valid flow")
    }

    fn typed(arguments: &[&str]) -> Result<(TopOptions, Command), Usage> {
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        parse(&flow(), "f.py", &arguments, &Lookup::default())
    }

    #[test]
    fn an_option_of_the_program_is_told_its_place() {
        let said = typed(&["run", "--datastore=s3"]).expect_err("misplaced").text;
        assert!(said.ends_with("\n--datastore goes before the command: f.py --datastore … COMMAND\n"), "{said}");
        let said = typed(&["run", "--nonsense"]).expect_err("unknown").text;
        assert!(!said.contains("goes before"), "{said}");
    }

    #[test]
    fn idioms_of_the_peer_are_accepted() {
        let (_, command) =
            typed(&["run", "--alpha", "1", "--alpha", "-1", "--name", "-x", "--many", "a", "--many", "b"])
                .expect("parses");
        let Command::Run(options, given) = command else { panic!("not run: {command:?}") };
        assert_eq!(given["alpha"], ["-1"]);
        assert_eq!(given["name"], ["-x"]);
        assert_eq!(given["many"], ["a", "b"]);
        assert_eq!((options.max_workers, options.max_num_splits), (16, 100));
    }

    #[test]
    fn no_command_is_check() {
        assert_eq!(typed(&[]).expect("parses").1, Command::Check);
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for arguments in [
            &["runn"][..],
            &["run", "--alpah", "1"],
            &["--version"],
            &["run", "--max-workers", "x"],
            &["resume", "--alpha", "1"],
        ] {
            assert_eq!(typed(arguments).expect_err("a mistake").exit_code, 2, "{arguments:?}");
        }
        assert!(typed(&["runn"]).expect_err("a mistake").text.contains("'run'"));
    }

    #[test]
    fn logs_take_a_path_or_a_sub_command() {
        for arguments in [&["logs", "3/start"][..], &["logs", "show", "3/start"]] {
            let Command::Logs(options) = typed(arguments).expect("parses").1 else { panic!("not logs") };
            assert_eq!((options.path.as_str(), options.stdout, options.stderr), ("3/start", true, true));
        }
    }
}
