//! Checks before anything runs: options that belong to later versions, the flow's graph, its
//! decorators.

use ferroflow_core::decorator::apply_with;
use ferroflow_core::decorator::batch::ask_as_r_does;
use ferroflow_core::graph::Graph;

use crate::context::Context;
use crate::report::Failure;

/// Refuses metadata stores and environments that are not in this version.
pub fn supported(context: &Context) -> Result<(), Failure> {
    let top = &context.top;
    let choices = [
        ("metadata", &top.metadata, &context.config.default_metadata, &["service"][..]),
        ("environment", &top.environment, &context.config.default_environment, &["conda", "pypi", "uv"][..]),
    ];
    let datastore = crate::datastore::kind(&context.config, top);
    if !crate::datastore::kinds().contains(&datastore) {
        return Err(Failure::usage(format!(
            "Invalid value for '--datastore': '{datastore}' is not one of '{}'.",
            crate::datastore::kinds().join("', '")
        )));
    }
    for (option, typed, configured, later) in choices {
        let value = typed.as_ref().unwrap_or(configured);
        if value == "local" {
            continue;
        }
        if later.contains(&value.as_str()) {
            return Err(Failure::invalid_command(format!(
                "--{option} {value} is not in this version; use --{option} local"
            )));
        }
        return Err(Failure::usage(format!(
            "Invalid value for '--{option}': '{value}' is not one of 'local', '{}'.",
            later.join("', '")
        )));
    }
    Ok(())
}

/// The checked graph of the flow with the decorators of `--with` added.
pub fn graph_to_run(context: &Context, with: &[String]) -> Result<Graph, Failure> {
    context.say_bold("Validating your flow...");
    let mut flow = context.flow.clone();
    let specs: Vec<String> =
        with.iter().chain(&context.config.default_decorators).chain(&context.top.with).cloned().collect();
    apply_with(&mut flow, &specs)?;
    if context.hello.language == "R" {
        ask_as_r_does(&mut flow);
    }
    let graph = Graph::build(flow)?;
    context.say("    The graph looks good!");
    graph.check_can_run()?;
    Ok(graph)
}

/// `check`: the graph alone.
pub fn check(context: &Context) -> Result<(), Failure> {
    context.say_bold("Validating your flow...");
    let mut flow = context.flow.clone();
    apply_with(&mut flow, &context.top.with)?;
    Graph::build(flow)?;
    context.say("    The graph looks good!");
    let [show, run, help] = ["show", "run", "help"].map(|command| context.hello.typed(&[command.to_owned()]));
    context.say(&format!("\n'{show}' shows the flow's steps\n'{run}' runs the flow\n'{help}' shows all commands"));
    Ok(())
}
