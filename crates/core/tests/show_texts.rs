//! `show`, `output-dot` and `output-raw`, whole outputs.

use ferroflow_core::graph::Graph;
use ferroflow_core::show::{dot, graph_info, raw, show};
use ferroflow_testkit::flows::FlowBuilder;
use ferroflow_testkit::{samples, shapes};
use proptest::prelude::*;
use serde_json::{Value, json};

fn documented() -> std::sync::Arc<Graph> {
    let mut flow = FlowBuilder::new("Demo")
        .foreach("start", "train")
        .but(|s| s.doc = Some("Begins.\n\n        With a second paragraph.\n        ".into()))
        .linear("train", "join")
        .with("retry", &json!({"times": 2}))
        .with("catch", &json!({}))
        .join("join", "end")
        .end()
        .build();
    flow.doc = Some("\n    A flow.\n    Two lines.\n    ".into());
    samples::graph(flow)
}

#[test]
fn show_prints_steps_in_order() {
    let shown = show(&documented());
    assert_eq!(shown.doc, "A flow.\nTwo lines.");
    assert_eq!(
        shown.steps,
        "Step start\n    Begins.\n\n    With a second paragraph.\n    => train\n\n\
         @retry(times=2)\n@catch\nStep train\n    => join\n\n\
         Step join\n    => end\n\n\
         Step end\n\n"
    );
}

#[test]
fn dot_is_graphviz() {
    assert_eq!(
        dot(&documented()),
        "digraph \"Demo\" {\n    rankdir=LR;\n    node [shape=box];\n\
        \x20   \"start\" [label=\"start | split-foreach\", shape=box3d];\n\
        \x20   \"train\" [label=\"train | linear\", shape=box];\n\
        \x20   \"join\" [label=\"join | join\", shape=house];\n\
        \x20   \"end\" [label=\"end | end\", shape=box];\n\
        \x20   \"start\" -> \"train\" [label=\"foreach items\"];\n\
        \x20   \"train\" -> \"join\";\n\
        \x20   \"join\" -> \"end\";\n}\n"
    );
}

#[test]
fn raw_has_a_line_per_step() {
    assert_eq!(
        raw(&samples::graph(samples::branches()), false),
        "start type=split-static line=10 parents=[] next=[b, a] splits=[] matching_join=join\n\
         b type=linear line=30 parents=[start] next=[join] splits=[start]\n\
         a type=linear line=20 parents=[start] next=[join] splits=[start]\n\
         join type=join line=40 parents=[b, a] next=[end] splits=[]\n\
         end type=end line=50 parents=[join] next=[] splits=[]\n"
    );
}

#[test]
fn graph_info_has_the_documented_keys() {
    let info: Value = serde_json::from_str(&raw(&documented(), true)).expect("valid JSON");
    assert_eq!(info, graph_info(&documented()));
    let keys: Vec<&str> = info.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "file",
            "start_step",
            "end_step",
            "parameters",
            "constants",
            "steps",
            "graph_structure",
            "doc",
            "decorators",
            "extensions"
        ]
    );
    assert_eq!(info["file"], "flow.py");
    assert_eq!(info["graph_structure"], json!(["start", [["train"]], "join", "end"]));
    assert_eq!(
        info["steps"]["train"],
        json!({
            "name": "train", "type": "linear", "line": 20, "source_file": "/flows/flow.py", "doc": "",
            "decorators": [
                {"name": "retry", "attributes": {"times": 2}, "statically_defined": true, "inserted_by": null},
                {"name": "catch", "attributes": {}, "statically_defined": true, "inserted_by": null},
            ],
            "next": ["join"], "node_info": null,
        })
    );
    assert_eq!(info["steps"]["start"]["foreach_artifact"], "items");
    assert_eq!(info["steps"]["start"]["matching_join"], "join");
}

#[test]
fn structures_nest() {
    let structure = |flow| graph_info(&samples::graph(flow))["graph_structure"].clone();
    assert_eq!(structure(samples::linear()), json!(["start", "middle", "end"]));
    assert_eq!(structure(samples::branches()), json!(["start", [["b"], ["a"]], "join", "end"]));
    assert_eq!(
        structure(samples::nested()),
        json!(["start", [["outer", [["inner"]], "inner_join"]], "outer_join", "end"])
    );
    assert_eq!(structure(samples::switch()), json!(["start", "choose", [["left"], ["right"]], "end"]));
    assert_eq!(structure(samples::recursion()), json!(["start", "again", "end"]));
    let info = graph_info(&samples::graph(samples::switch()));
    assert_eq!(info["steps"]["choose"]["switch_cases"], json!({"0": "left", "1": "right"}));
    assert_eq!(info["steps"]["choose"]["condition"], "choice");
}

fn count(structure: &Value, names: &mut Vec<String>) {
    match structure {
        Value::String(name) => names.push(name.clone()),
        Value::Array(parts) => parts.iter().for_each(|part| count(part, names)),
        other => panic!("{other} in a structure"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_step_is_in_the_structure_once(shape in shapes::shape(40)) {
        let graph = samples::graph(shape.flow());
        let mut names = Vec::new();
        count(&graph_info(&graph)["graph_structure"], &mut names);
        names.sort();
        let mut expected: Vec<String> = graph.steps.iter().map(|s| s.name.to_string()).collect();
        expected.sort();
        prop_assert_eq!(names, expected);
        prop_assert_eq!(show(&graph).steps.matches("Step ").count(), graph.steps.len());
    }
}
