//! The job definition of a step, as JSON: what is the same for all its tasks. A pure function of
//! options, platform and container; its name is a hash of its content, so that equal ones are
//! registered once.

use std::collections::BTreeMap;

use ferroflow_core::decorator::batch::BatchOptions;
use serde_json::{Map, Value, json};

use super::{fargate, multinode};
use crate::remote::identity::digest;

/// What a compute environment's containers run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Platform {
    #[default]
    Ec2,
    Fargate,
}

/// What a job definition is made of.
pub struct DefinitionParts<'a> {
    pub options: &'a BatchOptions,
    pub platform: Platform,
    pub image: &'a str,
    pub command: &'a [String],
    /// `@environment` of the step.
    pub environment: &'a BTreeMap<String, String>,
    /// How many containers start together, of a gang.
    pub nodes: Option<u64>,
}

impl DefinitionParts<'_> {
    /// The request that registers it.
    pub fn request(&self) -> Value {
        let mut definition = json!({
            "type": "container",
            "platformCapabilities": [match self.platform {
                Platform::Ec2 => "EC2",
                Platform::Fargate => "FARGATE",
            }],
            "containerProperties": self.container(),
            "retryStrategy": { "attempts": 1 }, // the engine repeats, and it alone knows when
        });
        if !self.options.tags.is_empty() {
            definition["propagateTags"] = json!(true);
        }
        if let Some(overlay) = &self.options.job_def_attributes {
            lay_over(&mut definition, overlay);
        }
        if let Some(nodes) = self.nodes {
            definition = multinode::definition(definition, nodes);
        }
        let name = format!("metaflow_{}", digest(&[&sorted(&definition).to_string()], 56));
        definition["jobDefinitionName"] = json!(name);
        definition
    }

    fn container(&self) -> Value {
        let options = self.options;
        let mut container = Map::new();
        let mut set = |name: &str, value: Value| {
            if !is_empty(&value) {
                container.insert(name.to_owned(), value);
            }
        };
        let (volumes, mounts) = self.volumes();
        set("image", json!(self.image));
        set("command", json!(self.command));
        set("jobRoleArn", json!(options.iam_role));
        set("executionRoleArn", json!(options.execution_role));
        set("resourceRequirements", self.resources());
        set("environment", variables(&self.variables()));
        set("volumes", json!(volumes));
        set("mountPoints", json!(mounts));
        set("linuxParameters", self.linux());
        set("ulimits", self.ulimits());
        set("logConfiguration", self.log());
        if options.privileged {
            set("privileged", json!(true));
        }
        if self.platform == Platform::Fargate {
            // Else a task in a public subnet cannot fetch its image.
            set("networkConfiguration", json!({ "assignPublicIp": "ENABLED" }));
            set("ephemeralStorage", storage(options));
        }
        Value::Object(container)
    }

    fn resources(&self) -> Value {
        let (cpu, memory) = match self.platform {
            Platform::Ec2 => (options_cpu(self.options), self.options.memory.ceil() as u64),
            Platform::Fargate => {
                let (cpu, memory) = fargate::size(self.options.cpu, self.options.memory)
                    .unwrap_or((self.options.cpu, self.options.memory.ceil() as u64));
                (cpu.to_string(), memory)
            }
        };
        let mut list =
            vec![json!({ "type": "VCPU", "value": cpu }), json!({ "type": "MEMORY", "value": memory.to_string() })];
        if self.options.gpu > 0 {
            list.push(json!({ "type": "GPU", "value": self.options.gpu.to_string() }));
        }
        json!(list)
    }

    fn variables(&self) -> BTreeMap<String, String> {
        let mut variables = self.environment.clone();
        if let Some(tmpfs) = self.options.tmpfs.as_ref().filter(|tmpfs| tmpfs.is_tempdir) {
            variables.insert("METAFLOW_TEMPDIR".to_owned(), tmpfs.path.clone());
        }
        variables
    }

    fn volumes(&self) -> (Vec<Value>, Vec<Value>) {
        let mut volumes = Vec::new();
        let mut mounts = Vec::new();
        let mut mount = |name: &str, path: &str, source: Value| {
            let mut volume = json!({ "name": name });
            lay_over(&mut volume, &source);
            volumes.push(volume);
            mounts.push(json!({ "sourceVolume": name, "containerPath": path }));
        };
        for (index, path) in self.options.host_volumes.iter().enumerate() {
            mount(&format!("host-{index}"), path, json!({ "host": { "sourcePath": path } }));
        }
        for (index, (id, path)) in self.options.efs_volumes.iter().enumerate() {
            let source = json!({ "fileSystemId": id, "transitEncryption": "ENABLED" });
            mount(&format!("efs-{index}"), path, json!({ "efsVolumeConfiguration": source }));
        }
        (volumes, mounts)
    }

    fn linux(&self) -> Value {
        let options = self.options;
        let device = |kind: &str, index: u64| {
            let path = format!("/dev/{kind}{index}");
            json!({ "hostPath": path, "containerPath": path, "permissions": ["READ", "WRITE"] })
        };
        let chips = (0..options.neuron).map(|index| device("neuron", index));
        let adapters = (0..options.efa).map(|index| device("infiniband/uverbs", index));
        let devices: Vec<Value> = chips.chain(adapters).collect();
        let mut linux = Map::new();
        let mut set = |name: &str, value: Value| {
            if !is_empty(&value) {
                linux.insert(name.to_owned(), value);
            }
        };
        set("devices", json!(devices));
        set("sharedMemorySize", json!(options.shared_memory));
        set("maxSwap", json!(options.max_swap));
        set("swappiness", json!(options.swappiness));
        if let Some(tmpfs) = &options.tmpfs {
            set("tmpfs", json!([{ "containerPath": tmpfs.path, "size": tmpfs.size }]));
        }
        Value::Object(linux)
    }

    fn ulimits(&self) -> Value {
        let limit = |(name, (soft, hard)): (&String, &(u64, u64))| json!({ "name": name, "softLimit": soft, "hardLimit": hard });
        Value::Array(self.options.ulimits.iter().map(limit).collect())
    }

    fn log(&self) -> Value {
        let Some(driver) = &self.options.log_driver else { return Value::Null };
        json!({ "logDriver": driver, "options": self.options.log_options })
    }
}

/// EC2 gives whole processors.
fn options_cpu(options: &BatchOptions) -> String {
    format!("{}", options.cpu.ceil().max(1.0) as u64)
}

/// GiB, where more is asked for than every task has.
fn storage(options: &BatchOptions) -> Value {
    let of_disk = options.disk.map(|megabytes| (megabytes / 1024.0).ceil() as u64);
    match options.ephemeral_storage.max(of_disk.filter(|size| *size > fargate::FREE_STORAGE)) {
        Some(size) => json!({ "sizeInGiB": size.clamp(21, 200) }),
        None => Value::Null,
    }
}

/// As Batch writes an environment.
pub fn variables(of: &BTreeMap<String, String>) -> Value {
    Value::Array(of.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    }
}

/// Objects are merged, everything else is replaced; `null` takes away.
fn lay_over(base: &mut Value, overlay: &Value) {
    match (base, overlay) {
        (Value::Object(base), Value::Object(overlay)) => {
            for (name, value) in overlay {
                if value.is_null() {
                    base.remove(name);
                } else {
                    lay_over(base.entry(name.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (base, overlay) => *base = overlay.clone(),
    }
}

/// The same content in one order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let sorted_entries: BTreeMap<&String, Value> = object.iter().map(|(k, v)| (k, sorted(v))).collect();
            json!(sorted_entries)
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::needless_pass_by_value, reason = "literals read better")]
    fn request(given: Value, platform: Platform) -> Value {
        let options =
            BatchOptions::resolve(given.as_object().expect("an object"), None, &BTreeMap::new()).expect("valid");
        let command = ["python3".to_owned(), "-c".to_owned(), "pass".to_owned()];
        let environment = BTreeMap::from([("MODE".to_owned(), "fast".to_owned())]);
        DefinitionParts {
            options: &options,
            platform,
            image: "python:3.11",
            command: &command,
            environment: &environment,
            nodes: None,
        }
        .request()
    }

    #[test]
    fn the_defaults_ask_for_no_more_than_they_must() {
        let mut found = request(json!({}), Platform::Ec2);
        let name = found["jobDefinitionName"].take();
        assert!(name.as_str().is_some_and(|n| n.starts_with("metaflow_") && n.len() == 65), "{name}");
        assert_eq!(
            found,
            json!({
                "type": "container",
                "platformCapabilities": ["EC2"],
                "containerProperties": {
                    "image": "python:3.11",
                    "command": ["python3", "-c", "pass"],
                    "resourceRequirements": [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "4096"}],
                    "environment": [{"name": "MODE", "value": "fast"}],
                },
                "retryStrategy": {"attempts": 1},
                "jobDefinitionName": null,
            })
        );
    }

    #[test]
    fn every_option_has_its_place() {
        let found = request(
            json!({
                "cpu": 2.5, "memory": 8000, "gpu": 1, "iam_role": "arn:job", "execution_role": "arn:start",
                "shared_memory": 64, "max_swap": 100, "swappiness": 10, "inferentia": 1, "efa": 1,
                "host_volumes": ["/data"], "efs_volumes": ["fs-1"], "tmpfs_size": 256, "log_driver": "awslogs",
                "log_options": ["awslogs-group:/g"], "privileged": true, "ulimits": {"nofile": "10:20"},
                "aws_batch_tags": {"team": "a"}, "ephemeral_storage": 50,
            }),
            Platform::Ec2,
        );
        let device = |path: &str| json!({"hostPath": path, "containerPath": path, "permissions": ["READ", "WRITE"]});
        assert_eq!(
            found["containerProperties"],
            json!({
                "image": "python:3.11",
                "command": ["python3", "-c", "pass"],
                "jobRoleArn": "arn:job",
                "executionRoleArn": "arn:start",
                "resourceRequirements": [
                    {"type": "VCPU", "value": "3"}, {"type": "MEMORY", "value": "8000"}, {"type": "GPU", "value": "1"}
                ],
                "environment": [
                    {"name": "METAFLOW_TEMPDIR", "value": "/metaflow_temp"}, {"name": "MODE", "value": "fast"}
                ],
                "volumes": [
                    {"name": "host-0", "host": {"sourcePath": "/data"}},
                    {"name": "efs-0", "efsVolumeConfiguration": {"fileSystemId": "fs-1", "transitEncryption": "ENABLED"}},
                ],
                "mountPoints": [
                    {"sourceVolume": "host-0", "containerPath": "/data"},
                    {"sourceVolume": "efs-0", "containerPath": "/fs-1"},
                ],
                "linuxParameters": {
                    "devices": [device("/dev/neuron0"), device("/dev/infiniband/uverbs0")],
                    "sharedMemorySize": 64, "maxSwap": 100, "swappiness": 10,
                    "tmpfs": [{"containerPath": "/metaflow_temp", "size": 256}],
                },
                "ulimits": [{"name": "nofile", "softLimit": 10, "hardLimit": 20}],
                "logConfiguration": {"logDriver": "awslogs", "options": {"awslogs-group": "/g"}},
                "privileged": true,
            })
        );
        assert_eq!(found["propagateTags"], json!(true));
    }

    #[test]
    fn fargate_gets_sizes_that_it_has_and_its_own_settings() {
        let found = request(json!({"cpu": 1.5, "memory": 5000, "disk": 40_000}), Platform::Fargate);
        let container = &found["containerProperties"];
        assert_eq!(found["platformCapabilities"], json!(["FARGATE"]));
        assert_eq!(
            container["resourceRequirements"],
            json!([{"type": "VCPU", "value": "2"}, {"type": "MEMORY", "value": "5120"}])
        );
        assert_eq!(container["ephemeralStorage"], json!({"sizeInGiB": 40}));
        assert_eq!(container["networkConfiguration"], json!({"assignPublicIp": "ENABLED"}));
        let small = request(json!({"disk": 10_000}), Platform::Fargate);
        assert!(small["containerProperties"].get("ephemeralStorage").is_none());
    }

    #[test]
    fn what_has_no_attribute_is_laid_over() {
        let overlay = json!({"containerProperties": {"user": "1000", "command": null}, "schedulingPriority": 3});
        let found = request(json!({"job_def_attributes": overlay}), Platform::Ec2);
        assert_eq!(found["containerProperties"]["user"], "1000");
        assert!(found["containerProperties"].get("command").is_none());
        assert_eq!(found["schedulingPriority"], 3);
    }

    #[test]
    fn equal_definitions_have_one_name() {
        let name = |given| request(given, Platform::Ec2)["jobDefinitionName"].clone();
        assert_eq!(name(json!({})), name(json!({"cpu": 1})));
        assert_ne!(name(json!({})), name(json!({"cpu": 2})));
        assert_ne!(name(json!({})), request(json!({}), Platform::Fargate)["jobDefinitionName"]);
        let (one, other) = (json!({"a": 1, "b": {"c": 2, "d": 3}}), json!({"b": {"d": 3, "c": 2}, "a": 1}));
        assert_eq!(sorted(&one).to_string(), sorted(&other).to_string());
    }
}
