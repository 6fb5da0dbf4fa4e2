//! What every remote layer reads from a graph's steps, the user's configuration and the run.

use std::collections::{BTreeMap, HashMap, HashSet};

use ferroflow_compute::remote::RunIdentity;
use ferroflow_compute::remote::refusal::{Refusal, in_words};
use ferroflow_core::decorator::in_registry;
use ferroflow_core::decorator::{DecoratorKind, find};
use ferroflow_core::graph::{Graph, StepKind};
use ferroflow_core::id::{RunId, StepName};
use serde_json::{Map, Value};

use crate::config::Lookup;
use crate::context::Context;
use crate::datastore;
use crate::report::Failure;

/// A layer, as far as its decorator is concerned.
pub struct Layer {
    /// Of the layer and of its decorator.
    pub name: &'static str,
    /// Above what is wrong with it.
    pub headline: &'static str,
    /// The variable that says which registry images come from.
    pub registry: &'static str,
}

type Attributes = Map<String, Value>;
type Resolve<T> = fn(&Attributes, Option<&Attributes>, &BTreeMap<String, String>) -> Result<T, String>;

impl Layer {
    /// A step of the graph that runs there.
    pub fn first<'a>(&self, graph: &'a Graph) -> Option<&'a StepName> {
        graph.steps.iter().find(|step| step.policy.layer == Some(self.name)).map(|step| &step.name)
    }

    /// What each step that runs there asks for.
    pub fn options<T>(
        &self,
        context: &Context,
        graph: &Graph,
        resolve: Resolve<T>,
    ) -> Result<HashMap<StepName, T>, Failure> {
        let configured = self.configured(&context.config.lookup);
        let mut steps = HashMap::new();
        for step in graph.steps.iter().filter(|step| step.policy.layer == Some(self.name)) {
            let attributes = |name: &str| step.policy.decorators.iter().find(|d| d.name == name).map(|d| &d.attributes);
            let nothing = Map::new();
            let own = attributes(self.name).unwrap_or(&nothing);
            let options = resolve(own, attributes("resources"), &configured).map_err(|mistake| {
                Failure::new(self.headline, format!("@{} of step `{}`: {mistake}.", self.name, step.name))
            })?;
            steps.insert(step.name.clone(), options);
        }
        Ok(steps)
    }

    /// The configuration that decorators fall back to.
    fn configured(&self, lookup: &Lookup) -> BTreeMap<String, String> {
        let spec = find(DecoratorKind::Step, self.name);
        let names = spec.into_iter().flat_map(|spec| spec.attributes.iter().filter_map(|a| a.configured));
        names.chain([self.registry]).filter_map(|name| Some((name.to_owned(), lookup.value(name)?))).collect()
    }

    /// The image of steps that name none: that of the language as it runs here.
    pub fn default_image(&self, context: &Context) -> String {
        let version = &context.hello.language_version;
        let image = match context.hello.language.as_str() {
            "R" => format!("rocker/ml:{version}"),
            _ => format!("python:{}", version.split('.').take(2).collect::<Vec<_>>().join(".")),
        };
        match context.config.lookup.value(self.registry) {
            Some(registry) => in_registry(&image, &registry),
            None => image,
        }
    }

    /// Shows what the layer warns of; an error where it refuses.
    pub fn admitted(&self, graph: &Graph, refusals: &[Refusal], warnings: &[String]) -> Result<(), Failure> {
        for warning in warnings {
            errln!("{warning}");
        }
        if refusals.is_empty() {
            return Ok(());
        }
        let order: Vec<StepName> = graph.steps.iter().map(|step| step.name.clone()).collect();
        Err(Failure::new(self.headline, in_words(refusals, &order)))
    }
}

/// Steps whose tasks are ranks of a gang.
pub fn gangs(graph: &Graph) -> HashSet<StepName> {
    let splits = graph.steps.iter().filter(|step| step.kind == StepKind::Parallel);
    splits.flat_map(|step| &step.children).map(|rank| graph.steps[*rank].name.clone()).collect()
}

/// `@environment` by step.
pub fn environments(graph: &Graph) -> HashMap<StepName, BTreeMap<String, String>> {
    graph.steps.iter().map(|step| (step.name.clone(), step.policy.environment.clone())).collect()
}

/// How a user gives a remote layer a datastore that its tasks reach.
pub fn how_with_s3(context: &Context, layer: &str) -> String {
    let words = ["--datastore", "s3", "run", "--with", layer].map(str::to_owned);
    let typed = context.hello.typed(&words);
    let place = if context.hello.is_of_session() { "For example" } else { "Give it before the command, for example" };
    format!("{place}: {typed}")
}

/// The run before it has a number.
pub fn identity(context: &Context) -> RunIdentity {
    RunIdentity {
        flow: context.flow.name.clone(),
        run: RunId::from("0"),
        user: context.config.user.clone(),
        metadata: String::new(),
        created_at: 0,
    }
}

/// Says which run it is.
pub fn identify(context: &Context, identity: &mut RunIdentity, run: &RunId, created_at: i64) -> Result<(), Failure> {
    identity.run = run.clone();
    identity.metadata = datastore::scope(&context.root)?;
    identity.created_at = created_at;
    Ok(())
}
