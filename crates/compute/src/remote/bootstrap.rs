//! The program that a container's interpreter is given as an argument.

use ferroflow_core::task::TaskLaunch;

const BOOTSTRAP: &str = include_str!("bootstrap.py");
/// Every image with Python 3 has it; `python` is missing in those of Linux distributions.
const INTERPRETER: &str = "python3";

/// What process 1 of the container runs. No shell: there may be none.
pub fn command(interpreter: &str) -> Vec<String> {
    [interpreter, "-u", "-c", BOOTSTRAP].map(str::to_owned).to_vec()
}

/// Shell commands of the user's that a container runs first; what they export the task has, too.
pub const INIT_SCRIPT: &str = "METAFLOW_INIT_SCRIPT";

/// The command after the user's own first commands.
pub fn after_init_script(command: Vec<String>) -> Vec<String> {
    let shell = ["bash", "-c", "eval \"$METAFLOW_INIT_SCRIPT\"; exec \"$@\"", "bash"].map(str::to_owned);
    shell.into_iter().chain(command).collect()
}

/// The layer's `executable=`, else `python3`.
pub fn interpreter(launch: &TaskLaunch, layer: &str) -> String {
    attribute(launch, layer, "executable").unwrap_or_else(|| INTERPRETER.to_owned())
}

/// A text attribute of the layer's decorator.
pub fn attribute(launch: &TaskLaunch, layer: &str, name: &str) -> Option<String> {
    let decorator = launch.spec.decorators.iter().find(|decorator| decorator.name == layer)?;
    Some(decorator.attributes.get(name)?.as_str()?.to_owned()).filter(|text| !text.is_empty())
}
