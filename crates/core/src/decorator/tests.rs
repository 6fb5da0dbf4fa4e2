//! Every rule of the registry, its checks and `--with`.

use serde_json::{Value, json};

use super::*;
use crate::ir::{Decorator, Flow, Step, Transition};

fn decorator(name: &str, attributes: Value) -> Decorator {
    let Value::Object(attributes) = attributes else { panic!("attributes are an object") };
    Decorator { name: name.into(), attributes, file: None, line: 7, in_source: true }
}

fn step(name: &str, decorators: Vec<Decorator>) -> Step {
    Step {
        name: name.into(),
        file: "flow.py".into(),
        line: 8,
        doc: None,
        arguments: 1,
        transition: None,
        tail_line: 9,
        is_start: false,
        is_end: false,
        has_imports: false,
        decorators,
    }
}

fn flow(steps: Vec<Step>) -> Flow {
    Flow {
        name: "F".into(),
        doc: None,
        file: "flow.py".into(),
        line: 1,
        steps,
        parameters: vec![],
        constants: vec![],
        decorators: vec![],
    }
}

fn one(name: &str, attributes: Value) -> Option<(String, String)> {
    let found = check(&flow(vec![step("train", vec![decorator(name, attributes)])]));
    assert!(found.len() <= 1, "{found:?}");
    found.into_iter().next().map(|d| {
        assert_eq!((d.file.as_deref(), d.line), (Some("flow.py"), 7));
        (d.headline.to_owned(), d.message)
    })
}

fn wrong(name: &str, attributes: Value) -> String {
    let (headline, message) = one(name, attributes).expect("a finding");
    assert_eq!(headline, "Flow failed");
    message
}

#[test]
fn the_registry_is_consistent() {
    for kind in [DecoratorKind::Step, DecoratorKind::Flow] {
        let names: Vec<_> = names(kind).collect();
        assert!(names.is_sorted(), "{names:?}");
    }
    for spec in DECORATORS {
        assert!(spec.doc.ends_with('.'), "{}", spec.name);
        for attribute in spec.attributes {
            serde_json::from_str::<Value>(attribute.default).expect(attribute.name);
            assert!(attribute.doc.ends_with('.'), "{}", attribute.name);
        }
        if let Availability::Later { instead } = spec.availability {
            assert!(!instead.is_empty() && !instead.ends_with('.'), "{}", spec.name);
        }
        // Its defaults are no mistake, unless a duration has to be given.
        if spec.kind == DecoratorKind::Step && spec.name != "timeout" {
            assert_eq!(one(spec.name, json!({})), None);
        }
    }
}

#[test]
fn an_unknown_decorator_gets_a_near_match_and_the_list() {
    let (headline, message) = one("retyr", json!({})).expect("a finding");
    assert_eq!(headline, "Unknown step decorator");
    assert_eq!(
        message,
        "Step `train` has a decorator @retyr, which does not exist. Did you mean @retry? Step \
         decorators: batch, card, catch, conda, environment, kubernetes, parallel, pypi, \
         pytorch_parallel, resources, retry, secrets, timeout."
    );
}

#[test]
fn an_unknown_flow_decorator_is_found() {
    let mut f = flow(vec![]);
    f.decorators = vec![decorator("shedule", json!({})), decorator("retry", json!({}))];
    let found = check(&f);
    assert_eq!(found[0].headline, "Unknown flow decorator");
    assert_eq!(
        found[0].message,
        "Flow `F` has a decorator @shedule, which does not exist. Did you mean @schedule? Flow \
         decorators: conda_base, exit_hook, project, pypi_base, schedule, trigger, \
         trigger_on_finish."
    );
    assert!(found[1].message.starts_with("@retry is a decorator of a step;"));
}

#[test]
fn an_unknown_attribute_lists_the_supported_ones() {
    let (headline, message) = one("retry", json!({"time": 2})).expect("a finding");
    assert_eq!(headline, "Unknown decorator attribute");
    assert_eq!(
        message,
        "Decorator @retry of step `train` does not support the attribute `time`. Did you mean \
         `times`? Supported attributes: times, minutes_between_retries."
    );
}

#[test]
fn a_decorator_given_twice_is_refused() {
    let twice = vec![decorator("retry", json!({})), decorator("retry", json!({"times": 1}))];
    let found = check(&flow(vec![step("train", twice)]));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].headline, "Duplicate decorators");
    let cards = vec![decorator("card", json!({})), decorator("card", json!({"id": "x"}))];
    assert_eq!(check(&flow(vec![step("train", cards)])), vec![]);
}

#[test]
fn retry_values() {
    assert_eq!(
        wrong("retry", json!({"times": 5})),
        "@retry of step `train`: the maximum number of retries is 4, but `times` is 5."
    );
    assert_eq!(
        wrong("retry", json!({"times": -1})),
        "@retry of step `train`: `times` must be a whole number from 0 to 4, not -1."
    );
    assert_eq!(
        wrong("retry", json!({"minutes_between_retries": "x"})),
        "@retry of step `train`: `minutes_between_retries` must be 0 or more, not \"x\"."
    );
    assert_eq!(one("retry", json!({"times": 0, "minutes_between_retries": 0.5})), None);
    assert_eq!(one("retry", json!({"times": "4"})), None);
}

#[test]
fn catch_values_and_places() {
    assert_eq!(
        wrong("catch", json!({"var": 3})),
        "@catch of step `train`: `var` must be the name of an artifact, not 3."
    );
    assert_eq!(
        wrong("catch", json!({"print_exception": "no"})),
        "@catch of step `train`: `print_exception` must be true or false, not \"no\"."
    );
    let mut splitting = step("train", vec![decorator("catch", json!({}))]);
    splitting.transition = Some(Transition::Foreach { target: "x".into(), variable: "v".into(), line: 9 });
    assert_eq!(
        check(&flow(vec![splitting.clone()]))[0].message,
        "@catch cannot stand on step `train`, which ends with a foreach: were it to fail, nobody \
         could know where the flow goes on. Put @catch on the steps that follow."
    );
    splitting.transition = Some(Transition::Switch { condition: None, cases: vec![], line: 9 });
    assert!(check(&flow(vec![splitting]))[0].message.contains("ends with a switch"));
}

#[test]
fn timeout_values() {
    assert_eq!(
        wrong("timeout", json!({})),
        "@timeout of step `train`: Specify a duration: seconds, minutes or hours above 0."
    );
    assert_eq!(
        wrong("timeout", json!({"seconds": -1, "hours": 1})),
        "@timeout of step `train`: `seconds` must be 0 or more, not -1."
    );
    assert_eq!(one("timeout", json!({"minutes": 0.5})), None);
}

#[test]
fn environment_and_resources_values() {
    assert_eq!(
        wrong("environment", json!({"vars": ["A"]})),
        "@environment of step `train`: `vars` must be a dictionary of names and values, not \
         [\"A\"]."
    );
    assert_eq!(
        wrong("environment", json!({"vars": {"A=B": 1}})),
        "@environment of step `train`: `A=B` cannot be the name of an environment variable."
    );
    for (attributes, message) in [
        (json!({"cpu": 0}), "`cpu` must be a number above 0, not 0."),
        (json!({"memory": -4}), "`memory` must be a number above 0, not -4."),
        (json!({"disk": "big"}), "`disk` must be a number above 0, not \"big\"."),
        (json!({"gpu": 0.5}), "`gpu` must be a whole number, 0 or more, not 0.5."),
    ] {
        assert_eq!(wrong("resources", attributes), format!("@resources of step `train`: {message}"));
    }
    assert_eq!(one("resources", json!({"cpu": 0.5, "memory": "8000", "gpu": 1})), None);
}

#[test]
fn with_is_parsed_as_documented() {
    let parsed = |text: &str| {
        let decorator = parse_with(text).expect(text);
        assert!(!decorator.in_source);
        (decorator.name, Value::Object(decorator.attributes))
    };
    assert_eq!(parsed("retry"), ("retry".into(), json!({})));
    assert_eq!(
        parsed("retry:times=2,minutes_between_retries=0.5").1,
        json!({"times": 2, "minutes_between_retries": 0.5})
    );
    assert_eq!(parsed(r#"environment:vars={"A":"x,y","B":2}"#).1, json!({"vars": {"A": "x,y", "B": 2}}));
    assert_eq!(parsed(r#"environment:vars={\"A\":1}"#).1, json!({"vars": {"A": 1}}), "quotes may be escaped");
    assert_eq!(parsed("kubernetes:image=a:b,c,cpu= 3").1, json!({"image": "a:b,c", "cpu": 3}));
    assert_eq!(parsed("x:a=true,b=.5,c=+4,d=None").1, json!({"a": true, "b": 0.5, "c": 4, "d": "None"}));
}

#[test]
fn a_malformed_with_says_what_to_write() {
    let error = parse_with("retry:3").expect_err("no `=`");
    assert_eq!(error.headline, "Syntax error");
    assert_eq!(
        error.message,
        "--with `retry:3`: `3` is not of the form name=value. Write --with name or --with \
         name:attribute=value,…"
    );
    assert!(parse_with(":x=1").is_err());
}

#[test]
fn with_goes_to_steps_that_lack_the_decorator() {
    let mut f = flow(vec![step("a", vec![]), step("b", vec![decorator("retry", json!({"times": 0}))])]);
    let specs = ["retry:times=4".to_owned(), "retry:times=1".to_owned(), "catch".to_owned()];
    apply_with(&mut f, &specs).expect("known decorators");
    assert_eq!(f.steps[0].decorators.len(), 2);
    assert_eq!(f.steps[0].decorators[0].attributes["times"], 4, "the earlier spec wins");
    assert_eq!(f.steps[1].decorators[0].attributes["times"], 0, "the source wins");
    assert_eq!(StepPolicy::of(&f.steps[1]).user_retries, 0);
}

#[test]
fn with_refuses_unknown_and_flow_decorators() {
    let error = apply_with(&mut flow(vec![]), &["cach".into()]).expect_err("unknown");
    assert_eq!(error.headline, "Unknown step decorator");
    assert!(
        error
            .message
            .starts_with("--with cach: there is no step decorator @cach. Did you mean @catch? Step decorators:"),
        "{}",
        error.message
    );
    let error = apply_with(&mut flow(vec![]), &["schedule".into()]).expect_err("of the flow");
    assert!(
        error
            .message
            .starts_with("@schedule is a decorator of the flow; it cannot stand on a step or be given with --with.")
    );
}

#[test]
fn a_wrong_value_from_with_names_with() {
    let mut f = flow(vec![step("a", vec![])]);
    apply_with(&mut f, &["retry:times=9".into()]).expect("a known decorator");
    let found = check(&f);
    assert_eq!(found[0].file, None);
    assert!(found[0].message.ends_with("`times` is 9. (@retry comes from --with.)"));
}

#[test]
fn attempts_are_counted_as_the_peer_counts_them() {
    let policy = |decorators| StepPolicy::of(&step("s", decorators));
    let retry = |times: u32| decorator("retry", json!({"times": times}));
    let catch = || decorator("catch", json!({}));
    let counts = |p: StepPolicy| (p.user_retries, p.fallbacks);
    assert_eq!(counts(policy(vec![])), (0, 0));
    assert_eq!(counts(policy(vec![decorator("retry", json!({}))])), (3, 0));
    assert_eq!(counts(policy(vec![catch()])), (0, 3));
    assert_eq!(counts(policy(vec![retry(4), catch()])), (4, 1), "six attempts in all");
}

#[test]
fn policies_hold_what_the_engine_needs() {
    let policy = StepPolicy::of(&step(
        "s",
        vec![
            decorator("timeout", json!({"seconds": 5, "minutes": 1})),
            decorator("environment", json!({"vars": {"A": "x", "B": 2, "C": true, "D": null}})),
            decorator("card", json!({})),
        ],
    ));
    assert_eq!(policy.time_limit, Some(65.0));
    let expected = [("A", "x"), ("B", "2"), ("C", "True"), ("D", "None")];
    assert_eq!(policy.environment, expected.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect());
    let names: Vec<_> = policy.decorators.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["timeout", "environment"], "only what acts in this version");
    assert_eq!(Value::Object(policy.decorators[0].attributes.clone()), json!({"seconds": 5, "minutes": 1, "hours": 0}));
}

#[test]
fn what_is_not_here_is_refused_with_a_way_out() {
    let mut f = flow(vec![step("train", vec![decorator("conda", json!({"packages": {}}))])]);
    assert_eq!(check(&f), vec![]);
    let refusal = check::unavailable(&f).expect("conda is not here");
    assert_eq!(refusal.headline, "Not in this version");
    assert_eq!(
        refusal.message,
        "Decorator @conda of step `train` is not in this version: install the packages into the \
         environment you run the flow with, and remove it."
    );
    f.steps.clear();
    f.decorators = vec![decorator("schedule", json!({"daily": true}))];
    assert_eq!(check::unavailable(&f), None, "only deployments look at it");
}
