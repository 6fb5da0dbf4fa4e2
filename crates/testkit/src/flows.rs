//! Builds `ir::Flow`s as a front end would describe them. Lines count up by ten per step: the
//! `def` of the n-th step (from 1) is on line 10 n, its `self.next` on line 10 n + 5.

use ferroflow_core::ir::{Case, Decorator, Flow, Step, Transition};
use serde_json::Value;

/// Name of the file every step is said to be in.
pub const FILE: &str = "/flows/flow.py";

/// Each method adds a step, in source order.
#[derive(Clone, Debug)]
pub struct FlowBuilder {
    flow: Flow,
}

impl FlowBuilder {
    pub fn new(name: &str) -> Self {
        Self {
            flow: Flow {
                name: name.into(),
                doc: None,
                file: FILE.into(),
                line: 1,
                steps: Vec::new(),
                parameters: Vec::new(),
                constants: Vec::new(),
                decorators: Vec::new(),
            },
        }
    }

    fn line(&self) -> u32 {
        (self.flow.steps.len() as u32 + 1) * 10
    }

    fn add(mut self, name: &str, transition: Option<Transition>) -> Self {
        let line = self.line();
        self.flow.steps.push(Step {
            name: name.into(),
            file: FILE.into(),
            line,
            doc: None,
            arguments: 1,
            transition,
            tail_line: line + 5,
            is_start: false,
            is_end: false,
            has_imports: false,
            decorators: Vec::new(),
        });
        self
    }

    /// `self.next(self.target)`
    #[must_use]
    pub fn linear(self, name: &str, target: &str) -> Self {
        let line = self.line() + 5;
        self.add(name, Some(Transition::Linear { target: target.into(), line }))
    }

    /// A step that takes `inputs` and goes on to `target`.
    #[must_use]
    pub fn join(self, name: &str, target: &str) -> Self {
        self.linear(name, target).arguments(2)
    }

    /// `self.next(self.a, self.b)`
    #[must_use]
    pub fn split(self, name: &str, targets: &[&str]) -> Self {
        let line = self.line() + 5;
        let targets = targets.iter().map(|t| (*t).into()).collect();
        self.add(name, Some(Transition::Split { targets, line }))
    }

    /// `self.next(self.target, foreach='items')`
    #[must_use]
    pub fn foreach(self, name: &str, target: &str) -> Self {
        let line = self.line() + 5;
        let variable = "items".into();
        self.add(name, Some(Transition::Foreach { target: target.into(), variable, line }))
    }

    /// `self.next(self.target, num_parallel=n)`
    #[must_use]
    pub fn parallel(self, name: &str, target: &str) -> Self {
        let line = self.line() + 5;
        self.add(name, Some(Transition::Parallel { target: target.into(), line }))
    }

    /// `self.next({0: self.a, 1: self.b}, condition='choice')`
    #[must_use]
    pub fn switch(self, name: &str, targets: &[&str]) -> Self {
        let line = self.line() + 5;
        let case = |(key, target): (usize, &&str)| Case { key: Value::from(key), target: (*target).into() };
        let cases = targets.iter().enumerate().map(case).collect();
        self.add(name, Some(Transition::Switch { condition: Some("choice".into()), cases, line }))
    }

    /// A step with this transition, or none.
    #[must_use]
    pub fn step(self, name: &str, transition: Option<Transition>) -> Self {
        self.add(name, transition)
    }

    #[must_use]
    pub fn end(self) -> Self {
        self.add("end", None)
    }

    /// Changes the last step.
    #[must_use]
    pub fn but(mut self, change: impl FnOnce(&mut Step)) -> Self {
        change(self.flow.steps.last_mut().expect("a step to change"));
        self
    }

    /// Arguments of the last step.
    #[must_use]
    pub fn arguments(self, count: u32) -> Self {
        self.but(|step| step.arguments = count)
    }

    /// A decorator of the last step; `attributes` is a JSON object.
    #[must_use]
    pub fn with(self, name: &str, attributes: &Value) -> Self {
        let attributes = attributes.as_object().expect("attributes are an object").clone();
        self.but(|step| {
            step.decorators.push(Decorator {
                name: name.into(),
                attributes,
                file: None,
                line: step.line - 1,
                in_source: true,
            });
        })
    }

    pub fn build(self) -> Flow {
        self.flow
    }
}
