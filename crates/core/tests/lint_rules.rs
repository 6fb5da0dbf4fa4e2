//! Every lint rule with its whole sentence and its place. Steps of a `FlowBuilder` are on lines
//! 10, 20, …, their `self.next` five lines below.

use ferroflow_core::graph::{Graph, StepKind};
use ferroflow_core::ir::{Flow, Transition};
use ferroflow_core::lint::check;
use ferroflow_testkit::flows::{FILE, FlowBuilder};
use ferroflow_testkit::samples;
use ferroflow_testkit::shapes;
use proptest::prelude::*;
use serde_json::json;

fn flow() -> FlowBuilder {
    FlowBuilder::new("F")
}

/// The first finding.
fn finding(flow: &FlowBuilder) -> (u32, String) {
    let found = check(&flow.clone().build()).into_iter().next().expect("a finding");
    assert_eq!(found.headline, "Validity checker found an issue");
    assert_eq!(found.file.as_deref(), Some(FILE));
    (found.line, found.message)
}

fn assert_finds(flow: FlowBuilder, line: u32, message: &str) {
    assert_eq!(finding(&flow), (line, message.to_owned()));
    let error = Graph::build(flow.build()).expect_err("no graph of a wrong flow");
    assert_eq!((error.line, error.message.as_str()), (line, message));
}

#[test]
fn l1_reserved_names() {
    for name in ["name", "next", "input", "index", "cmd"] {
        assert_finds(
            flow().linear("start", name).linear(name, "end").end(),
            20,
            &format!(
                "Step name `{name}` is reserved, because flows have something of that name. Give the step \
                 another name."
            ),
        );
    }
}

#[test]
fn l2_start_and_end() {
    assert_finds(
        flow().linear("begin", "end").end(),
        1,
        "Flow `F` has no start step. Name a step `start`, or mark one with @step(start=True).",
    );
    assert_finds(
        flow().linear("strat", "end").end(),
        1,
        "Flow `F` has no start step. Name a step `start`, or mark one with @step(start=True). Is `strat` to \
         be it?",
    );
    assert_finds(
        flow().linear("start", "finish").step("finish", None),
        1,
        "Flow `F` has no end step. Name a step `end`, or mark one with @step(end=True).",
    );
    assert_finds(
        flow().linear("a", "b").but(|s| s.is_start = true).linear("b", "end").but(|s| s.is_start = true).end(),
        20,
        "Steps `a` and `b` are both marked with @step(start=True); a flow has one start step.",
    );
}

#[test]
fn l3_a_mark_and_the_name() {
    assert_finds(
        flow().linear("first", "start").but(|s| s.is_start = true).linear("start", "end").end(),
        20,
        "Step `first` is marked with @step(start=True), but there is also a step named `start`. Rename that \
         step or remove the mark.",
    );
    assert_finds(
        flow().linear("start", "end").linear("end", "last").step("last", None).but(|s| s.is_end = true),
        20,
        "Step `last` is marked with @step(end=True), but there is also a step named `end`. Rename that step \
         or remove the mark.",
    );
}

#[test]
fn l4_edges_of_start_and_end() {
    assert_finds(
        flow().linear("start", "a").linear("a", "start").end(),
        25,
        "Step `a` leads to the start step `start`; nothing may lead to the start step.",
    );
    assert_finds(
        flow().linear("start", "end").linear("end", "a").linear("a", "end"),
        25,
        "The end step `end` leads to `a`; the flow is over there. Remove its `self.next`.",
    );
}

#[test]
fn l5_the_end_step() {
    let odd = Transition::Unsupported { problem: "it has no target".into(), line: 25 };
    assert_finds(
        flow().linear("start", "end").step("end", Some(odd)),
        25,
        "The end step `end` contains `self.next`; the flow is over there. Remove its `self.next`.",
    );
    assert_finds(
        flow().linear("start", "end").end().arguments(2),
        20,
        "The end step `end` takes `inputs`, but it cannot be a join. Join the branches in a step before it.",
    );
}

#[test]
fn l6_names() {
    for name in ["Train", "_a", "tr-ain", "träin"] {
        assert_finds(
            flow().linear("start", name).linear(name, "end").end(),
            20,
            &format!(
                "Step name `{name}` is not allowed: use lowercase letters, digits and underscores, and do \
                 not begin with an underscore."
            ),
        );
    }
}

#[test]
fn l7_arguments() {
    assert_finds(
        flow().linear("start", "end").arguments(0).end(),
        10,
        "Step `start` takes no argument; write `def start(self)`.",
    );
    assert_finds(
        flow().linear("start", "end").arguments(3).end(),
        10,
        "Step `start` takes 3 arguments; a step takes `self`, and a join `self` and `inputs`.",
    );
    let both = |flow: FlowBuilder, form: &str| {
        let message = format!(
            "Step `a` takes `inputs`, so it is a join, and ends with {form}. A step cannot be both; put {form} \
             into a step after it."
        );
        assert_finds(flow.arguments(2).linear("b", "end").linear("c", "end").end(), 20, &message);
    };
    both(flow().linear("start", "a").split("a", &["b", "c"]), "a split");
    both(flow().linear("start", "a").foreach("a", "b"), "a foreach");
    both(flow().linear("start", "a").switch("a", &["b", "c"]), "a switch");
}

#[test]
fn l8_no_transition() {
    assert_finds(
        flow().linear("start", "a").step("a", None).end(),
        25,
        "Step `a` does not end with `self.next(…)`; its last statement must say which step follows.",
    );
}

#[test]
fn l9_unsupported_forms() {
    let odd = Transition::Unsupported { problem: "the target is a variable".into(), line: 27 };
    assert_finds(
        flow().linear("start", "a").step("a", Some(odd)).end(),
        27,
        "The `self.next(…)` of step `a` is not supported: the target is a variable.",
    );
}

#[test]
fn l10_unknown_steps() {
    assert_finds(
        flow().linear("start", "trian").linear("train", "end").end(),
        15,
        "Step `start` leads to `trian`, which is not a step. Did you mean `train`?",
    );
}

#[test]
fn l11_circles() {
    assert_finds(
        flow().linear("start", "a").linear("a", "b").linear("b", "c").linear("c", "a").end(),
        45,
        "The flow runs in a circle: a->b->c->a. Only a switch may lead back, to its own step, and it needs a \
         way out.",
    );
    assert_finds(
        flow().linear("start", "a").switch("a", &["a", "a"]).end(),
        25,
        "The flow runs in a circle: a->a. Only a switch may lead back, to its own step, and it needs a way \
         out.",
    );
    assert_eq!(check(&samples::recursion()), []);
}

#[test]
fn l12_unreachable_steps() {
    assert_finds(
        flow().linear("start", "end").linear("lonely", "end").end(),
        20,
        "Step `lonely` is not reachable from the start step `start`. Lead to it with `self.next`, or remove \
         it.",
    );
}

#[test]
fn l13_balance() {
    assert_finds(
        flow().foreach("start", "a").linear("a", "end").end(),
        30,
        "The end step `end` is reached before the split of step `start` was joined. Add a join, a step that \
         takes `inputs`, before it.",
    );
    assert_finds(
        flow().linear("start", "j").join("j", "end").end(),
        20,
        "Step `j` takes `inputs`, but no split leads to it. Remove the argument, or split in a step before \
         it.",
    );
    assert_finds(
        flow().split("start", &["a", "b"]).linear("a", "c").linear("b", "c").linear("c", "end").end(),
        40,
        "Steps `a` and `b` both lead to `c`, which does not take `inputs`. Make it a join: def c(self, \
         inputs).",
    );
    assert_finds(
        flow().split("start", &["a", "a"]).linear("a", "j").join("j", "end").end(),
        20,
        "The split of step `start` leads to `a` twice; name each step once.",
    );
    assert_finds(
        flow()
            .split("start", &["a", "b", "c"])
            .linear("a", "j")
            .linear("b", "j")
            .linear("c", "end")
            .join("j", "end")
            .end(),
        50,
        "Join `j` does not join the whole split of step `start`: the branch that begins with `c` does not lead \
         to it.",
    );
    assert_finds(
        flow().split("start", &["a", "b"]).linear("a", "j").foreach("b", "c").linear("c", "j").join("j", "end").end(),
        50,
        "Join `j` mixes the splits of steps `start` and `b`; a join closes one split.",
    );
    assert_finds(
        flow().switch("start", &["a", "b"]).foreach("a", "c").linear("c", "j").linear("b", "j").join("j", "end").end(),
        50,
        "Join `j` mixes branches of the split of step `a` with step `b`, which is not inside that split.",
    );
    assert_finds(
        flow().split("start", &["a", "j"]).linear("a", "j").join("j", "end").end(),
        30,
        "The split of step `start` leads directly to the join `j`; put a step in between.",
    );
}

#[test]
fn l14_switches() {
    let switch = |condition: Option<&str>, targets: &[&str]| {
        let cases =
            targets.iter().map(|t| ferroflow_core::ir::Case { key: json!(*t), target: (*t).to_owned() }).collect();
        let condition = condition.map(str::to_owned);
        flow()
            .linear("start", "s")
            .step("s", Some(Transition::Switch { condition, cases, line: 25 }))
            .linear("a", "end")
            .linear("b", "end")
            .end()
    };
    let last = |flow: FlowBuilder| check(&flow.build()).into_iter().next_back().expect("a finding").message;
    assert_eq!(
        last(switch(None, &["a", "b"])),
        "The switch of step `s` has no condition; write condition='name of an artifact'."
    );
    assert_eq!(last(switch(Some("x"), &["a"])), "The switch of step `s` has one case; it needs two or more.");
    assert_eq!(last(switch(Some("x"), &[])), "The switch of step `s` has no cases.");
}

#[test]
fn l15_foreach_to_a_join() {
    assert_finds(
        flow().foreach("start", "j").join("j", "end").end(),
        15,
        "The foreach of step `start` leads directly to the join `j`; put a step in between.",
    );
}

#[test]
fn l16_to_l18_parallel() {
    let gang = |flow: FlowBuilder| flow.with("parallel", &json!({}));
    assert_finds(
        flow().parallel("start", "a").linear("a", "j").join("j", "end").end(),
        15,
        "Step `start` leads to `a` with num_parallel, but `a` has no @parallel.",
    );
    assert_finds(
        gang(flow().parallel("start", "a").linear("a", "b")).linear("b", "j").join("j", "end").end(),
        25,
        "Step `a` has @parallel, so a join must follow it.",
    );
    assert_finds(
        gang(flow().foreach("start", "a").linear("a", "j")).join("j", "end").end(),
        15,
        "Step `a` has @parallel, but step `start` leads to it without num_parallel.",
    );
}

#[test]
fn l20_switch_to_a_join() {
    assert_finds(
        flow().foreach("start", "s").switch("s", &["a", "j"]).linear("a", "j").join("j", "end").end(),
        25,
        "The switch of step `s` leads directly to the join `j`; put a step in between.",
    );
}

#[test]
fn rules_come_in_their_order() {
    let many = flow().linear("start", "Next").step("Next", None).arguments(5).linear("next", "nowhere").end();
    let messages: Vec<String> = check(&many.build()).into_iter().map(|d| d.message).collect();
    let begins =
        ["Step name `next`", "Step name `Next`", "Step `Next` takes 5", "Step `Next` does", "Step `next` leads"];
    assert_eq!(messages.len(), begins.len(), "{messages:#?}");
    for (message, begin) in messages.iter().zip(begins) {
        assert!(message.starts_with(begin), "{message}");
    }
}

#[test]
fn one_step_is_start_and_end() {
    let graph = Graph::build(flow().step("only", None).build()).expect("a valid flow");
    assert_eq!((graph.start, graph.end, graph.steps[0].kind.clone()), (0, 0, StepKind::End));
}

#[test]
fn marked_steps_are_start_and_end() {
    let flow = flow().linear("first", "last").but(|s| s.is_start = true).step("last", None).but(|s| s.is_end = true);
    let graph = Graph::build(flow.build()).expect("a valid flow");
    assert_eq!((graph.step("first"), graph.step("last")), (Some(graph.start), Some(graph.end)));
}

#[test]
fn a_graph_knows_what_the_run_asks() {
    let graph = samples::graph(samples::nested());
    let name = |index: usize| graph.steps[index].name.as_str().to_owned();
    let order: Vec<String> = (0..graph.steps.len()).map(name).collect();
    assert_eq!(order, ["start", "outer", "inner", "inner_join", "outer_join", "end"]);
    let inner = &graph.steps[2];
    assert_eq!(inner.split_stack, [0, 1]);
    assert_eq!((graph.steps[0].matching_join, graph.steps[1].matching_join), (Some(4), Some(3)));
    assert_eq!((graph.steps[3].joins, graph.steps[4].joins), (Some(1), Some(0)));

    let graph = samples::graph(samples::branches());
    let join = &graph.steps[graph.step("join").expect("a step")];
    let parents: Vec<&str> = join.parents.iter().map(|p| graph.steps[*p].name.as_str()).collect();
    assert_eq!(parents, ["b", "a"], "in order of self.next");
}

#[test]
fn num_parallel_runs() {
    let flow: Flow =
        flow().parallel("start", "a").linear("a", "j").with("parallel", &json!({})).join("j", "end").end().build();
    assert_eq!(check(&flow), []);
    assert_eq!(samples::graph(flow).check_can_run(), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_shape_is_a_valid_flow(shape in shapes::shape(40)) {
        let flow = shape.flow();
        prop_assert_eq!(check(&flow), vec![]);
        let graph = Graph::build(flow).expect("lint found nothing");
        for (index, step) in graph.steps.iter().enumerate() {
            for child in step.children.iter().filter(|c| **c != index) {
                prop_assert!(*child > index, "topological");
                prop_assert!(graph.steps[*child].parents.contains(&index));
            }
            if let Some(split) = step.joins {
                prop_assert_eq!(graph.steps[split].matching_join, Some(index));
            }
        }
    }
}
