//! How a task's spec travels into its container: in a variable, compressed when that pays, or,
//! when it is long, as an object that the variable names by its address.

use std::io::Write;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ferroflow_core::task::TaskSpec;
use flate2::Compression;
use flate2::write::ZlibEncoder;

/// Plain JSON up to here: somebody may want to read it in the pod.
const PLAIN: usize = 4_000;

/// The text of a spec: JSON, or base64 of compressed JSON (which never begins with `{`).
pub fn encode(spec: &TaskSpec) -> String {
    let json = serde_json::to_string(spec).expect("a spec is plain data");
    if json.len() <= PLAIN {
        return json;
    }
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::new(6));
    zlib.write_all(json.as_bytes()).expect("writing to memory");
    STANDARD.encode(zlib.finish().expect("writing to memory"))
}

/// Bytes that one variable may have. Linux takes 131,072 with the name; all container overrides
/// of a Batch job together may have 8,192.
pub fn most_in_variable(layer: &str) -> usize {
    if layer == "batch" { 3_000 } else { 100_000 }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ferroflow_core::id::{RunId, StepName, TaskId};
    use ferroflow_core::task::{InputRef, StoreLocation};
    use std::io::Read;

    pub(in crate::remote) fn spec_with(inputs: u64) -> TaskSpec {
        let parent = |step: &str, tasks| InputRef { run: RunId::from("7"), step: StepName::from(step), tasks };
        TaskSpec {
            flow: "F".to_owned(),
            run: RunId::from("7"),
            step: StepName::from("join"),
            task: TaskId(12),
            attempt: 1,
            max_user_code_retries: 0,
            fallback: false,
            previous_failure: None,
            join: true,
            // No two in a row, so that each needs its own range.
            inputs: vec![parent("work", (0..inputs).map(|n| (TaskId(n * 2), TaskId(n * 2), (n % 3) as u32)).collect())],
            parameters: parent("_parameters", vec![(TaskId(0), TaskId(0), 0)]),
            foreach_stack: Vec::new(),
            origin_run: None,
            store: StoreLocation { kind: "s3".to_owned(), root: "s3://b/p".to_owned(), options: Default::default() },
            decorators: Vec::new(),
            user: "ada".to_owned(),
            identity: "user:ada".to_owned(),
            namespace: None,
            tags: Vec::new(),
            expected_inputs: None,
            max_num_splits: 100,
            gang: None,
        }
    }

    #[test]
    fn a_short_spec_is_plain_and_a_long_one_comes_back() {
        let short = encode(&spec_with(1));
        assert!(short.starts_with('{') && short.len() < PLAIN);
        let long = encode(&spec_with(5_000));
        assert!(!long.starts_with('{') && long.len() < 60_000, "{}", long.len());
        let mut json = String::new();
        let bytes = STANDARD.decode(&long).expect("base64");
        flate2::read::ZlibDecoder::new(bytes.as_slice()).read_to_string(&mut json).expect("zlib");
        assert_eq!(serde_json::from_str::<TaskSpec>(&json).expect("spec"), spec_with(5_000));
    }
}
