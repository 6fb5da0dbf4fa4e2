//! What process 1 of a task's container is: an interpreter with our first program as an argument.

use ferroflow_core::task::TaskLaunch;

use super::language::Language;

/// Shell commands of the user's that a container runs first; what they export the task has, too.
pub const INIT_SCRIPT: &str = "METAFLOW_INIT_SCRIPT";

/// The command after the user's own first commands.
pub fn after_init_script(command: Vec<String>) -> Vec<String> {
    let shell = ["bash", "-c", "eval \"$METAFLOW_INIT_SCRIPT\"; exec \"$@\"", "bash"].map(str::to_owned);
    shell.into_iter().chain(command).collect()
}

/// The command of a task's container on a layer: the layer's `executable=`, else the language's
/// interpreter.
pub fn command(language: Language, launch: &TaskLaunch, layer: &str) -> Vec<String> {
    let chosen = attribute(launch, layer, "executable");
    language.command(chosen.as_deref().unwrap_or(language.interpreter()))
}

/// A text attribute of the layer's decorator.
pub fn attribute(launch: &TaskLaunch, layer: &str, name: &str) -> Option<String> {
    let decorator = launch.spec.decorators.iter().find(|decorator| decorator.name == layer)?;
    Some(decorator.attributes.get(name)?.as_str()?.to_owned()).filter(|text| !text.is_empty())
}
