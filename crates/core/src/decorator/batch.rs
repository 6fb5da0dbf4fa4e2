//! `@batch`: its attributes (one table that decorator, `--with`, help and configuration read) and
//! what they come to once configuration and `@resources` are merged in. How a job definition is made
//! of that is the AWS Batch layer's work.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

pub use super::values::Tmpfs;
use super::values::{Values, unquoted};
use super::{AttributeSpec, attribute};
use crate::ir::Flow;

pub(super) static ATTRIBUTES: &[AttributeSpec] = &[
    attribute("cpu", "float", "1", "Processors (vCPUs)."),
    attribute("gpu", "int", "0", "GPUs."),
    attribute("memory", "int", "4096", "Memory in MB."),
    attribute("disk", "int", "null", "Disk space in MB: ephemeral storage on Fargate, no effect on EC2."),
    attribute(
        "image",
        "str",
        "null",
        "Container image; the default is python:X.Y of the interpreter that starts the run.",
    )
    .configured("METAFLOW_BATCH_CONTAINER_IMAGE"),
    attribute("queue", "str", "null", "Job queue; the default is the first that is enabled and valid.")
        .configured("METAFLOW_BATCH_JOB_QUEUE"),
    attribute("iam_role", "str", "null", "Role of the container, by which it reaches the datastore.")
        .configured("METAFLOW_ECS_S3_ACCESS_IAM_ROLE"),
    attribute("execution_role", "str", "null", "Role by which the container is started; Fargate needs one.")
        .configured("METAFLOW_ECS_FARGATE_EXECUTION_ROLE"),
    attribute("shared_memory", "int", "null", "Size of /dev/shm in MiB."),
    attribute("max_swap", "int", "null", "Swap space in MiB."),
    attribute("swappiness", "int", "null", "0 (swap only when it must) to 99."),
    attribute("inferentia", "int", "null", "Inferentia chips."),
    attribute("trainium", "int", "null", "Trainium chips; another name of `inferentia`."),
    attribute("efa", "int", "null", "Elastic fabric adapters."),
    attribute("host_volumes", "list", "null", "Folders of the instance, mounted at the same path."),
    attribute("efs_volumes", "list", "null", "EFS file systems, `id` or `id:/path`; mounted at /id or that path."),
    attribute("use_tmpfs", "bool", "false", "Mount a file system in memory."),
    attribute("tmpfs_tempdir", "bool", "true", "Make that file system `current.tempdir`."),
    attribute("tmpfs_size", "int", "null", "Its size in MiB; the default is half of `memory`."),
    attribute("tmpfs_path", "str", "\"/metaflow_temp\"", "Where it is mounted."),
    attribute("aws_batch_tags", "dict", "{}", "Tags of the jobs.").configured("METAFLOW_BATCH_DEFAULT_TAGS"),
    attribute("ephemeral_storage", "int", "null", "GiB, 21 to 200; on Fargate only."),
    attribute("log_driver", "str", "null", "Log driver of the container, for example awslogs."),
    attribute("log_options", "list", "null", "Options of that driver, `name:value`."),
    attribute("executable", "str", "null", "Python in the image; the default is `python3`."),
    attribute("privileged", "bool", "false", "Give the container the rights of the instance's root."),
    attribute("ulimits", "dict", "null", "Limits of the container by name: `soft:hard`, or a number for both."),
    attribute("share_identifier", "str", "null", "Share in a fair-share queue; the default is the user's name.")
        .configured("METAFLOW_BATCH_SHARE_IDENTIFIER"),
    attribute("scheduling_priority", "int", "null", "Priority within that share, 0 to 9999."),
    attribute(
        "job_def_attributes",
        "dict",
        "null",
        "Merged over the job definition as it is (`containerProperties` …); for what has no attribute.",
    ),
];

/// A registry to put before images that name none; no attribute.
pub const CONTAINER_REGISTRY: &str = "METAFLOW_BATCH_CONTAINER_REGISTRY";

/// `memory` of R flows that do not say, in MB.
const R_MEMORY: u64 = 4000;

/// R flows that say nothing about memory ask for a little less than Python's.
pub fn ask_as_r_does(flow: &mut Flow) {
    let decorators = flow.steps.iter_mut().flat_map(|step| &mut step.decorators);
    for decorator in decorators.filter(|decorator| decorator.name == "batch") {
        decorator.attributes.entry("memory").or_insert(R_MEMORY.into());
    }
}

/// What `@batch`, `@resources` and the configuration come to for one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchOptions {
    pub cpu: f64,
    /// MB.
    pub memory: f64,
    /// MB.
    pub disk: Option<f64>,
    pub gpu: u64,
    /// `None`: the default of the launching interpreter.
    pub image: Option<String>,
    /// `None`: the first that is enabled and valid.
    pub queue: Option<String>,
    pub iam_role: Option<String>,
    pub execution_role: Option<String>,
    /// MiB.
    pub shared_memory: Option<u64>,
    /// MiB.
    pub max_swap: Option<u64>,
    pub swappiness: Option<u64>,
    /// Inferentia or Trainium chips.
    pub neuron: u64,
    pub efa: u64,
    pub host_volumes: Vec<String>,
    /// File system → mount path.
    pub efs_volumes: BTreeMap<String, String>,
    pub tmpfs: Option<Tmpfs>,
    pub tags: BTreeMap<String, String>,
    /// GiB.
    pub ephemeral_storage: Option<u64>,
    pub log_driver: Option<String>,
    pub log_options: BTreeMap<String, String>,
    pub executable: Option<String>,
    pub privileged: bool,
    /// Name → soft, hard.
    pub ulimits: BTreeMap<String, (u64, u64)>,
    pub share_identifier: Option<String>,
    pub scheduling_priority: Option<u64>,
    pub job_def_attributes: Option<Value>,
}

impl BatchOptions {
    /// Of `@batch`'s attributes as given, those of `@resources` on the same step, and the
    /// configuration by variable. A mistake is a sentence that begins with the attribute.
    pub fn resolve(
        given: &Map<String, Value>,
        resources: Option<&Map<String, Value>>,
        configured: &BTreeMap<String, String>,
    ) -> Result<Self, String> {
        let values = Values { attributes: ATTRIBUTES, given, configured };
        let mut options = Self {
            cpu: values.amount("cpu")?,
            memory: values.amount("memory")?,
            disk: None,
            gpu: values.whole("gpu")?.unwrap_or(0),
            image: values.image(CONTAINER_REGISTRY)?,
            queue: values.text("queue")?,
            iam_role: values.text("iam_role")?,
            execution_role: values.text("execution_role")?,
            shared_memory: values.positive("shared_memory")?,
            max_swap: values.whole("max_swap")?,
            swappiness: up_to(&values, "swappiness", 0, 99)?,
            neuron: chips(&values)?,
            efa: values.whole("efa")?.unwrap_or(0),
            host_volumes: values.names("host_volumes")?,
            efs_volumes: efs_volumes(&values)?,
            tmpfs: None,
            tags: values.merged_pairs("aws_batch_tags")?,
            ephemeral_storage: up_to(&values, "ephemeral_storage", 21, 200)?,
            log_driver: values.text("log_driver")?,
            log_options: log_options(&values)?,
            executable: values.text("executable")?,
            privileged: values.flag("privileged")?,
            ulimits: ulimits(&values)?,
            share_identifier: values.text("share_identifier")?,
            scheduling_priority: up_to(&values, "scheduling_priority", 0, 9999)?,
            job_def_attributes: values.object("job_def_attributes")?,
        };
        if values.value("disk").is_some() {
            options.disk = Some(values.amount("disk")?);
        }
        if let Some(resources) = resources {
            options.merge(resources)?;
        }
        options.tmpfs = values.tmpfs(options.memory)?;
        options.check()?;
        Ok(options)
    }

    /// The larger of both (behaviour.md D-50).
    fn merge(&mut self, resources: &Map<String, Value>) -> Result<(), String> {
        let nothing = BTreeMap::new();
        let theirs = Values { attributes: ATTRIBUTES, given: resources, configured: &nothing };
        for (name, ours) in [("cpu", &mut self.cpu), ("memory", &mut self.memory)] {
            if theirs.value(name).is_some() {
                *ours = ours.max(theirs.amount(name)?);
            }
        }
        if theirs.value("disk").is_some() {
            self.disk = Some(theirs.amount("disk")?.max(self.disk.unwrap_or(0.0)));
        }
        self.gpu = self.gpu.max(theirs.whole("gpu")?.unwrap_or(0));
        self.shared_memory = self.shared_memory.max(theirs.positive("shared_memory")?);
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        if let Some(path) = self.host_volumes.iter().find(|path| !path.starts_with('/')) {
            return Err(format!("`host_volumes` must be absolute paths, not `{path}`"));
        }
        if !self.log_options.is_empty() && self.log_driver.is_none() {
            return Err("`log_options` are of a `log_driver`; name it".to_owned());
        }
        let wrong = |name: &str| name.is_empty() || name.len() > 128 || name.to_ascii_lowercase().starts_with("aws:");
        if let Some(name) = self.tags.keys().find(|name| wrong(name)) {
            return Err(format!(
                "`aws_batch_tags` has the key `{name}`; AWS takes 1 to 128 characters that do not begin with `aws:`"
            ));
        }
        if let Some((name, value)) = self.tags.iter().find(|(_, value)| value.chars().count() > 256) {
            return Err(format!(
                "`aws_batch_tags` has a value of {} characters for `{name}`; AWS takes up to 256",
                value.chars().count()
            ));
        }
        let share = self.share_identifier.as_deref().unwrap_or("x");
        if share.len() > 255 || !share.chars().all(|c| c.is_ascii_alphanumeric() || c == '*') {
            return Err(format!("`share_identifier` must be letters and digits, at most 255, not `{share}`"));
        }
        Ok(())
    }
}

fn up_to(values: &Values, name: &str, least: u64, most: u64) -> Result<Option<u64>, String> {
    let wrong = || {
        let value = values.value(name).unwrap_or_default();
        format!("`{name}` must be a whole number from {least} to {most}, not {value}")
    };
    match values.whole(name).map_err(|_| wrong())? {
        Some(number) if !(least..=most).contains(&number) => Err(wrong()),
        found => Ok(found),
    }
}

/// `inferentia` and `trainium` are the same devices.
fn chips(values: &Values) -> Result<u64, String> {
    match (values.whole("inferentia")?, values.whole("trainium")?) {
        (Some(_), Some(_)) => Err("`inferentia` and `trainium` cannot both be given; keep one of them".to_owned()),
        (one, other) => Ok(one.or(other).unwrap_or(0)),
    }
}

fn efs_volumes(values: &Values) -> Result<BTreeMap<String, String>, String> {
    let volume = |text: String| match text.split_once(':') {
        Some((_, path)) if !path.starts_with('/') => {
            Err(format!("`efs_volumes`: the mount path of `{text}` must begin with `/`"))
        }
        Some((id, path)) => Ok((id.to_owned(), path.to_owned())),
        None => Ok((text.clone(), format!("/{text}"))),
    };
    values.names("efs_volumes")?.into_iter().map(volume).collect()
}

fn log_options(values: &Values) -> Result<BTreeMap<String, String>, String> {
    if let Some(Value::Object(_)) = values.value("log_options").map(unquoted) {
        return values.pairs("log_options");
    }
    let option = |text: String| {
        let (name, value) = text
            .split_once(':')
            .ok_or_else(|| format!("`log_options` must be written `name:value`; `{text}` has no `:`"))?;
        Ok((name.trim().to_owned(), value.trim().to_owned()))
    };
    values.names("log_options")?.into_iter().map(option).collect()
}

fn ulimits(values: &Values) -> Result<BTreeMap<String, (u64, u64)>, String> {
    let limit = |(name, text): (String, String)| {
        let (soft, hard) = text.split_once(':').unwrap_or((&text, &text));
        match (soft.trim().parse(), hard.trim().parse()) {
            (Ok(soft), Ok(hard)) if soft <= hard => Ok((name, (soft, hard))),
            _ => Err(format!(
                "`ulimits`: the limit `{name}` must be a number or `soft:hard`, the hard one not the smaller, not \
                 `{text}`"
            )),
        }
    };
    values.pairs("ulimits")?.into_iter().map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[allow(clippy::needless_pass_by_value, reason = "literals read better")]
    fn resolve(given: Value, resources: Option<Value>, configured: &[(&str, &str)]) -> Result<BatchOptions, String> {
        let map = |value: Value| value.as_object().expect("an object").clone();
        let configured = configured.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        BatchOptions::resolve(&map(given), resources.map(map).as_ref(), &configured)
    }

    #[test]
    fn nothing_given_means_the_defaults() {
        let options = resolve(json!({}), None, &[]).expect("defaults");
        let wanted = BatchOptions { cpu: 1.0, memory: 4096.0, ..BatchOptions::default() };
        assert_eq!(options, wanted);
    }

    #[test]
    fn the_larger_request_wins() {
        let given = json!({"cpu": 4, "memory": 1000, "gpu": 1, "shared_memory": 5});
        let resources = json!({"cpu": 2, "memory": "16000", "gpu": 3, "disk": 30_000, "shared_memory": null});
        let options = resolve(given, Some(resources), &[]).expect("valid");
        assert_eq!((options.cpu, options.memory, options.disk), (4.0, 16000.0, Some(30_000.0)));
        assert_eq!((options.gpu, options.shared_memory), (3, Some(5)));
    }

    #[test]
    fn configuration_fills_what_the_decorator_leaves_open() {
        let configured = [
            ("METAFLOW_BATCH_JOB_QUEUE", "large"),
            ("METAFLOW_BATCH_CONTAINER_IMAGE", "team/train:1"),
            ("METAFLOW_BATCH_CONTAINER_REGISTRY", "registry.example/"),
            ("METAFLOW_ECS_S3_ACCESS_IAM_ROLE", "arn:role"),
            ("METAFLOW_ECS_FARGATE_EXECUTION_ROLE", "arn:start"),
            ("METAFLOW_BATCH_DEFAULT_TAGS", r#"{"team": "a", "cost": "1"}"#),
            ("METAFLOW_BATCH_SHARE_IDENTIFIER", "research"),
        ];
        let given = json!({"queue": "small", "aws_batch_tags": {"cost": "2"}});
        let options = resolve(given, None, &configured).expect("valid");
        assert_eq!(options.queue.as_deref(), Some("small"));
        assert_eq!(options.image.as_deref(), Some("registry.example/team/train:1"));
        assert_eq!(
            (options.iam_role.as_deref(), options.execution_role.as_deref()),
            (Some("arn:role"), Some("arn:start"))
        );
        assert_eq!((options.tags["team"].as_str(), options.tags["cost"].as_str()), ("a", "2"));
        assert_eq!(options.share_identifier.as_deref(), Some("research"));
    }

    #[test]
    fn lists_may_be_texts() {
        let given = json!({
            "host_volumes": "/data, /models",
            "efs_volumes": ["fs-1", "fs-2:/mnt/two"],
            "log_driver": "awslogs",
            "log_options": ["awslogs-group:/batch", "awslogs-region:eu-west-1"],
            "ulimits": {"nofile": "1024:4096", "core": 0},
            "trainium": 2,
            "tmpfs_size": 64,
        });
        let options = resolve(given, None, &[]).expect("valid");
        assert_eq!(options.host_volumes, ["/data", "/models"]);
        assert_eq!((options.efs_volumes["fs-1"].as_str(), options.efs_volumes["fs-2"].as_str()), ("/fs-1", "/mnt/two"));
        assert_eq!(options.log_options["awslogs-region"], "eu-west-1");
        assert_eq!((options.ulimits["nofile"], options.ulimits["core"]), ((1024, 4096), (0, 0)));
        assert_eq!((options.neuron, options.tmpfs.map(|t| t.size)), (2, Some(64)));
    }

    #[test]
    fn mistakes_are_sentences() {
        let cases = [
            (json!({"cpu": 0}), "`cpu` must be a number above 0, not 0"),
            (json!({"gpu": 1.5}), "`gpu` must be a whole number, 0 or more, not 1.5"),
            (json!({"swappiness": 100}), "`swappiness` must be a whole number from 0 to 99, not 100"),
            (json!({"ephemeral_storage": 5}), "`ephemeral_storage` must be a whole number from 21 to 200, not 5"),
            (
                json!({"inferentia": 1, "trainium": 1}),
                "`inferentia` and `trainium` cannot both be given; keep one of them",
            ),
            (json!({"host_volumes": ["data"]}), "`host_volumes` must be absolute paths, not `data`"),
            (json!({"efs_volumes": "fs-1:data"}), "`efs_volumes`: the mount path of `fs-1:data` must begin with `/`"),
            (
                json!({"log_driver": "awslogs", "log_options": ["group"]}),
                "`log_options` must be written `name:value`; `group` has no `:`",
            ),
            (json!({"log_options": ["a:b"]}), "`log_options` are of a `log_driver`; name it"),
            (
                json!({"ulimits": {"nofile": "9:1"}}),
                "`ulimits`: the limit `nofile` must be a number or `soft:hard`, the hard one not the smaller, not `9:1`",
            ),
            (
                json!({"aws_batch_tags": {"aws:x": "1"}}),
                "`aws_batch_tags` has the key `aws:x`; AWS takes 1 to 128 characters that do not begin with `aws:`",
            ),
            (
                json!({"share_identifier": "a-b"}),
                "`share_identifier` must be letters and digits, at most 255, not `a-b`",
            ),
            (json!({"tmpfs_path": "x", "use_tmpfs": true}), "`tmpfs_path` must begin with `/`, not `x`"),
        ];
        for (given, sentence) in cases {
            assert_eq!(resolve(given.clone(), None, &[]), Err(sentence.to_owned()), "{given}");
        }
    }
}
