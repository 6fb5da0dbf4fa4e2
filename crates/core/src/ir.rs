//! The flow as its front end describes it: the JSON a speaker of the front-end protocol sends
//! (`docs/contributing/front-end-protocol.md`). Nothing here is checked; that is `lint`'s work.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A flow, as read from the user's source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    pub name: String,
    #[serde(default)]
    pub doc: Option<String>,
    /// Absolute path of the file the flow was run from.
    pub file: String,
    /// Line of the class (or of the pipeline's first call), 1-based.
    #[serde(default)]
    pub line: u32,
    /// In source order; inherited steps come before the class's own, as defined.
    pub steps: Vec<Step>,
    #[serde(default)]
    pub parameters: Vec<Parameter>,
    #[serde(default)]
    pub constants: Vec<Constant>,
    /// Decorators of the flow itself.
    #[serde(default)]
    pub decorators: Vec<Decorator>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub name: String,
    /// Source file of the step (an inherited step's file may differ from the flow's).
    pub file: String,
    /// Line of the `def`, 1-based.
    pub line: u32,
    #[serde(default)]
    pub doc: Option<String>,
    /// Positional arguments, `self` included: 1 for a plain step, 2 for a join.
    pub arguments: u32,
    /// The transition read from the last statement; `None` when the last statement is not
    /// `self.next(...)`.
    #[serde(default)]
    pub transition: Option<Transition>,
    /// Line of the last statement, 1-based.
    #[serde(default)]
    pub tail_line: u32,
    /// `@step(start=True)` / `@step(end=True)`.
    #[serde(default)]
    pub is_start: bool,
    #[serde(default)]
    pub is_end: bool,
    /// The body contains import statements, so imports can be learned from its first task.
    #[serde(default)]
    pub has_imports: bool,
    #[serde(default)]
    pub decorators: Vec<Decorator>,
}

/// A transition, by the form of the `self.next` call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Transition {
    /// `self.next(self.a)`
    Linear { target: String, line: u32 },
    /// `self.next(self.a, self.b)`
    Split { targets: Vec<String>, line: u32 },
    /// `self.next(self.a, foreach='var')`
    Foreach { target: String, variable: String, line: u32 },
    /// `self.next(self.a, num_parallel=n)`
    Parallel { target: String, line: u32 },
    /// `self.next({key: self.a}, condition='var')`
    Switch { condition: Option<String>, cases: Vec<Case>, line: u32 },
    /// A `self.next(...)` of a form that is not supported; `problem` says why in a few words.
    Unsupported { problem: String, line: u32 },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    pub key: Value,
    pub target: String,
}

impl Transition {
    /// Targets in source order; a step named by two cases of a switch appears once.
    pub fn targets(&self) -> Vec<&str> {
        match self {
            Self::Linear { target, .. } | Self::Foreach { target, .. } | Self::Parallel { target, .. } => vec![target],
            Self::Split { targets, .. } => targets.iter().map(String::as_str).collect(),
            Self::Switch { cases, .. } => {
                let mut seen = Vec::new();
                for case in cases {
                    if !seen.contains(&case.target.as_str()) {
                        seen.push(case.target.as_str());
                    }
                }
                seen
            }
            Self::Unsupported { .. } => Vec::new(),
        }
    }

    pub fn line(&self) -> u32 {
        match self {
            Self::Linear { line, .. }
            | Self::Split { line, .. }
            | Self::Foreach { line, .. }
            | Self::Parallel { line, .. }
            | Self::Switch { line, .. }
            | Self::Unsupported { line, .. } => *line,
        }
    }
}

/// A decorator with the arguments the user wrote; defaults come from the registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decorator {
    pub name: String,
    #[serde(default)]
    pub attributes: Map<String, Value>,
    #[serde(default)]
    pub file: Option<String>,
    #[serde(default)]
    pub line: u32,
    /// `false` for one added by `--with`.
    #[serde(default = "yes")]
    pub in_source: bool,
}

fn yes() -> bool {
    true
}

/// Value type of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterType {
    Str,
    Int,
    Float,
    Bool,
    Json,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameter {
    /// Option name, without dashes.
    pub name: String,
    /// Attribute of the flow that holds it; may differ from the name.
    pub attribute: String,
    #[serde(rename = "type")]
    pub parameter_type: ParameterType,
    #[serde(default)]
    pub help: Option<String>,
    #[serde(default)]
    pub required: bool,
    /// Text of the default as help shows it; `None` when there is no default.
    #[serde(default)]
    pub default_text: Option<String>,
    /// Whether help shows the default.
    #[serde(default = "yes")]
    pub show_default: bool,
    /// `separator=','`: the text is split into a list of str.
    #[serde(default)]
    pub separator: Option<String>,
    /// May be given several times; the value is a tuple.
    #[serde(default)]
    pub multiple: bool,
    /// Takes no value on the command line.
    #[serde(default)]
    pub is_flag: bool,
    #[serde(default)]
    pub line: u32,
}

/// A class attribute that became a read-only artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Constant {
    pub name: String,
    #[serde(rename = "type")]
    pub type_name: String,
}
