//! Several containers with one spec (an array job, a multi-node job, a JobSet): what is the same for all
//! are their variables; what is each one's own is a list in the store, of which a container takes the
//! entry of its index. How it learns its index is the layer's and the bootstrap's business.

use std::collections::BTreeMap;

use serde_json::json;

type Variables = BTreeMap<String, String>;

/// What all have, and what each has of its own, in order.
pub fn split(environments: &[Variables]) -> (Variables, Vec<Variables>) {
    let Some(first) = environments.first() else { return Default::default() };
    let same = |name: &String, value: &String| environments.iter().all(|other| other.get(name) == Some(value));
    let common: Variables =
        first.iter().filter(|(name, value)| same(name, value)).map(|(n, v)| (n.clone(), v.clone())).collect();
    let own = |of: &Variables| -> Variables {
        of.iter().filter(|(name, _)| !common.contains_key(*name)).map(|(n, v)| (n.clone(), v.clone())).collect()
    };
    let own = environments.iter().map(own).collect();
    (common, own)
}

/// The list that containers read.
pub fn list(own: &[Variables]) -> Vec<u8> {
    json!(own).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn environment(pairs: &[(&str, &str)]) -> Variables {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn each_child_finds_its_own_by_its_index() {
        let environments: Vec<Variables> =
            (0..3).map(|n| environment(&[("CODE", "x"), ("SPEC", &format!("task {n}"))])).collect();
        let (common, own) = split(&environments);
        assert_eq!(common, environment(&[("CODE", "x")]));
        let listed: Value = serde_json::from_slice(&list(&own)).expect("JSON");
        assert_eq!(listed[2], json!({"SPEC": "task 2"}));
        for (index, whole) in environments.iter().enumerate() {
            let mut together = common.clone();
            together.extend(own[index].clone());
            assert_eq!(together, *whole);
        }
    }

    #[test]
    fn one_that_lacks_a_variable_gets_none() {
        let (common, own) = split(&[environment(&[("A", "1"), ("B", "2")]), environment(&[("A", "1")])]);
        assert_eq!((common, own), (environment(&[("A", "1")]), vec![environment(&[("B", "2")]), environment(&[])]));
    }
}
