//! Random flows. A shape is a tree of sequences, splits, foreach loops, switches and recursions;
//! any tree is a valid flow, so that tests explore graphs and not the linter.

use ferroflow_core::ir::Flow;
use proptest::prelude::*;

use crate::flows::FlowBuilder;

/// What stands between two points of a flow.
#[derive(Clone, Debug)]
pub enum Shape {
    /// One step.
    Step,
    Sequence(Vec<Shape>),
    /// Two or more branches and their join.
    Split(Vec<Shape>),
    Foreach(Box<Shape>),
    /// Two or more ways, of which one is taken.
    Switch(Vec<Shape>),
    /// A step that may lead to itself.
    Loop,
    /// Ranks of a `num_parallel` and their join.
    Gang,
}

/// Sequences of a few nested shapes, of about `steps` steps each where they are large.
pub fn shape(steps: u32) -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![4 => Just(Shape::Step), 1 => Just(Shape::Loop), 1 => Just(Shape::Gang)];
    let part = leaf.prop_recursive(4, steps, 3, |inner| {
        prop_oneof![
            1 => inner.clone(),
            2 => prop::collection::vec(inner.clone(), 1..4).prop_map(Shape::Sequence),
            3 => prop::collection::vec(inner.clone(), 2..4).prop_map(Shape::Split),
            4 => inner.clone().prop_map(|body| Shape::Foreach(Box::new(body))),
            2 => prop::collection::vec(inner, 2..3).prop_map(Shape::Switch),
        ]
    });
    prop::collection::vec(part, 1..5).prop_map(Shape::Sequence)
}

impl Shape {
    /// The flow start → shape → end.
    pub fn flow(&self) -> Flow {
        let mut writer = Writer { builder: FlowBuilder::new("Random"), count: 0 };
        let entry = writer.name("s");
        writer.linear("start", &entry);
        writer.write(self, &entry, "end");
        writer.builder.end().build()
    }
}

struct Writer {
    builder: FlowBuilder,
    count: usize,
}

impl Writer {
    fn name(&mut self, kind: &str) -> String {
        self.count += 1;
        format!("{kind}{}", self.count)
    }

    fn linear(&mut self, name: &str, target: &str) {
        self.builder = self.builder.clone().linear(name, target);
    }

    fn join(&mut self, name: &str, target: &str) {
        self.builder = self.builder.clone().join(name, target);
    }

    /// Writes steps from `entry` (which this creates, as no join) on to `exit`.
    fn write(&mut self, shape: &Shape, entry: &str, exit: &str) {
        match shape {
            Shape::Step => self.linear(entry, exit),
            Shape::Loop => {
                // A step between, because a switch may not lead to a join.
                let out = self.name("out");
                self.builder = self.builder.clone().switch(entry, &[entry, &out]);
                self.linear(&out, exit);
            }
            Shape::Gang => {
                let (rank, join) = (self.name("r"), self.name("j"));
                let flow = self.builder.clone().parallel(entry, &rank);
                self.builder = flow.linear(&rank, &join).with("parallel", &serde_json::json!({}));
                self.join(&join, exit);
            }
            Shape::Sequence(parts) => {
                let mut at = entry.to_owned();
                for (index, part) in parts.iter().enumerate() {
                    let next = if index + 1 < parts.len() { self.name("s") } else { exit.to_owned() };
                    self.write(part, &at, &next);
                    at = next;
                }
            }
            Shape::Split(branches) => self.split(branches, entry, exit),
            Shape::Foreach(body) => {
                let first = self.name("f");
                let join = self.name("j");
                self.builder = self.builder.clone().foreach(entry, &first);
                self.write(body, &first, &join);
                self.join(&join, exit);
            }
            Shape::Switch(ways) => {
                let firsts: Vec<String> = ways.iter().map(|_| self.name("w")).collect();
                let names: Vec<&str> = firsts.iter().map(String::as_str).collect();
                self.builder = self.builder.clone().switch(entry, &names);
                // The ways meet in a step of their own, so that branches of a split end in one.
                let meet = self.name("m");
                for (way, first) in ways.iter().zip(&firsts) {
                    self.write(way, first, &meet);
                }
                self.linear(&meet, exit);
            }
        }
    }

    fn split(&mut self, branches: &[Shape], entry: &str, exit: &str) {
        let firsts: Vec<String> = branches.iter().map(|_| self.name("b")).collect();
        let names: Vec<&str> = firsts.iter().map(String::as_str).collect();
        self.builder = self.builder.clone().split(entry, &names);
        let join = self.name("j");
        for (branch, first) in branches.iter().zip(&firsts).rev() {
            self.write(branch, first, &join);
        }
        self.join(&join, exit);
    }
}
