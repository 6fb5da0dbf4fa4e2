//! `kubernetes list|kill`, and the same of every other layer whose tasks are elsewhere: what was
//! typed.

use clap::Command as Clap;

use super::{Typed, environment_name, flag, option, sub};

/// A layer that has these commands.
#[derive(Debug, PartialEq, Eq)]
pub struct TasksLayer {
    pub name: &'static str,
    about: &'static str,
    about_list: &'static str,
    about_kill: &'static str,
}

pub const LAYERS: &[TasksLayer] = &[
    TasksLayer {
        name: "kubernetes",
        about: "List or kill the flow's tasks on Kubernetes",
        about_list: "List unfinished tasks on Kubernetes",
        about_kill: "Kill unfinished tasks on Kubernetes",
    },
    TasksLayer {
        name: "batch",
        about: "List or kill the flow's tasks on AWS Batch",
        about_list: "List unfinished tasks on AWS Batch",
        about_kill: "Kill unfinished tasks on AWS Batch",
    },
];

const AFTER: &str = "Without options: the tasks of this folder's latest run. With --run-id: those of that run of this \
                     folder, whoever started it. With --user, or --my-runs: those of all the user's runs, wherever they \
                     were started.";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TasksVerb {
    List,
    Kill,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TasksCommand {
    pub layer: &'static str,
    pub verb: TasksVerb,
    pub my_runs: bool,
    pub user: Option<String>,
    pub run: Option<String>,
}

pub fn command(layer: &TasksLayer) -> Clap {
    let selecting = |clap: Clap| {
        clap.arg(flag("my-runs", "All runs of the current user"))
            .arg(option("user", "NAME", "All runs of this user"))
            .arg(option("run-id", "RUN", "The run [default: this folder's latest run]"))
            .after_help(AFTER)
    };
    sub(layer.name, layer.about)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(selecting(sub("list", layer.about_list)))
        .subcommand(selecting(sub("kill", layer.about_kill)))
}

pub fn read(layer: &str, typed: &Typed<'_>) -> TasksCommand {
    let layer = LAYERS.iter().find(|known| known.name == layer).expect("it was looked for before");
    let (name, matches) = typed.matches.subcommand().expect("clap requires a sub-command");
    let typed = Typed { matches, lookup: typed.lookup, prefix: format!("{}_{}", typed.prefix, environment_name(name)) };
    TasksCommand {
        layer: layer.name,
        verb: if name == "kill" { TasksVerb::Kill } else { TasksVerb::List },
        my_runs: typed.is_set("my-runs") || typed.pair("my_runs", "no_my_runs"),
        user: typed.text("user", "user"),
        run: typed.text("run-id", "run_id"),
    }
}
