//! What EC2 instance types have, as far as their names say: enough to tell that none of a compute
//! environment's can hold a job. A type that is not known here is never a reason to refuse.

/// Upper bounds of an instance; AWS Batch itself needs a little of the memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub cpus: f64,
    /// MB as users ask for it (MiB of the instance).
    pub memory: f64,
    pub gpus: u64,
}

/// Families whose sizes all have the same memory per processor: GiB of each, and processors of the
/// largest size.
const PLAIN: &[(&[&str], f64, f64)] = &[
    (&["c5", "c5d", "c5a", "c5ad"], 2.0, 96.0),
    (&["m5", "m5d", "m5a", "m5ad", "m5n", "m5dn"], 4.0, 96.0),
    (&["r5", "r5d", "r5a", "r5ad", "r5b", "r5n", "r5dn"], 8.0, 96.0),
    (&["c6i", "c6id", "c6in"], 2.0, 128.0),
    (&["m6i", "m6id", "m6in", "m6idn"], 4.0, 128.0),
    (&["r6i", "r6id", "r6in", "r6idn"], 8.0, 128.0),
    (&["c6g", "c6gd", "c6gn"], 2.0, 64.0),
    (&["m6g", "m6gd"], 4.0, 64.0),
    (&["r6g", "r6gd"], 8.0, 64.0),
    (&["c6a", "c7i", "c7a"], 2.0, 192.0),
    (&["m6a", "m7i", "m7a"], 4.0, 192.0),
    (&["r6a", "r7i", "r7a"], 8.0, 192.0),
    (&["c7g", "c7gd"], 2.0, 64.0),
    (&["m7g", "m7gd"], 4.0, 64.0),
    (&["r7g", "r7gd"], 8.0, 64.0),
];

/// Types with GPUs: processors, GiB, GPUs.
const WITH_GPUS: &[(&str, f64, f64, u64)] = &[
    ("p2.xlarge", 4.0, 61.0, 1),
    ("p2.8xlarge", 32.0, 488.0, 8),
    ("p2.16xlarge", 64.0, 732.0, 16),
    ("p3.2xlarge", 8.0, 61.0, 1),
    ("p3.8xlarge", 32.0, 244.0, 4),
    ("p3.16xlarge", 64.0, 488.0, 8),
    ("p3dn.24xlarge", 96.0, 768.0, 8),
    ("p4d.24xlarge", 96.0, 1152.0, 8),
    ("p4de.24xlarge", 96.0, 1152.0, 8),
    ("p5.48xlarge", 192.0, 2048.0, 8),
    ("g4dn.xlarge", 4.0, 16.0, 1),
    ("g4dn.2xlarge", 8.0, 32.0, 1),
    ("g4dn.4xlarge", 16.0, 64.0, 1),
    ("g4dn.8xlarge", 32.0, 128.0, 1),
    ("g4dn.12xlarge", 48.0, 192.0, 4),
    ("g4dn.16xlarge", 64.0, 256.0, 1),
    ("g4dn.metal", 96.0, 384.0, 8),
    ("g5.xlarge", 4.0, 16.0, 1),
    ("g5.2xlarge", 8.0, 32.0, 1),
    ("g5.4xlarge", 16.0, 64.0, 1),
    ("g5.8xlarge", 32.0, 128.0, 1),
    ("g5.12xlarge", 48.0, 192.0, 4),
    ("g5.16xlarge", 64.0, 256.0, 1),
    ("g5.24xlarge", 96.0, 384.0, 4),
    ("g5.48xlarge", 192.0, 768.0, 8),
];

/// The shapes behind an entry of a compute environment's instance types: a type, a family (its
/// types together), or `optimal`; `None` when it is not known.
pub fn shapes(entry: &str) -> Option<Vec<Shape>> {
    match entry.split_once('.') {
        // AWS chooses from the C, M and R families of the fourth and fifth generation.
        None if entry == "optimal" => Some(vec![plain(96.0, 8.0)]),
        None => {
            let with_gpus: Vec<Shape> =
                WITH_GPUS.iter().filter(|(name, ..)| name.split('.').next() == Some(entry)).map(with_gpu).collect();
            if with_gpus.is_empty() { Some(vec![largest_of(entry)?]) } else { Some(with_gpus) }
        }
        Some((family, size)) => {
            if let Some(row) = WITH_GPUS.iter().find(|(name, ..)| *name == entry) {
                return Some(vec![with_gpu(row)]);
            }
            let (_, gigabytes, most) = PLAIN.iter().find(|(families, ..)| families.contains(&family))?;
            let cpus = if size.starts_with("metal") { *most } else { cpus_of(size)? };
            Some(vec![plain(cpus, *gigabytes)])
        }
    }
}

fn largest_of(family: &str) -> Option<Shape> {
    let (_, gigabytes, most) = PLAIN.iter().find(|(families, ..)| families.contains(&family))?;
    Some(plain(*most, *gigabytes))
}

fn plain(cpus: f64, gigabytes_each: f64) -> Shape {
    Shape { cpus, memory: cpus * gigabytes_each * 1024.0, gpus: 0 }
}

fn with_gpu((_, cpus, gigabytes, gpus): &(&str, f64, f64, u64)) -> Shape {
    Shape { cpus: *cpus, memory: gigabytes * 1024.0, gpus: *gpus }
}

fn cpus_of(size: &str) -> Option<f64> {
    match size {
        "medium" => Some(1.0),
        "large" => Some(2.0),
        "xlarge" => Some(4.0),
        _ => size.strip_suffix("xlarge")?.parse::<f64>().ok().map(|times| times * 4.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_instances_have() {
        let shape = |name: &str| shapes(name).map(|found| (found[0].cpus, found[0].memory / 1024.0, found[0].gpus));
        assert_eq!(shape("m5.large"), Some((2.0, 8.0, 0)));
        assert_eq!(shape("c5.9xlarge"), Some((36.0, 72.0, 0)));
        assert_eq!(shape("r6i"), Some((128.0, 1024.0, 0)));
        assert_eq!(shape("g5.12xlarge"), Some((48.0, 192.0, 4)));
        assert_eq!(shapes("p3").map(|found| found.len()), Some(3));
        assert_eq!(shape("optimal"), Some((96.0, 768.0, 0)));
        for unknown in ["x99", "x99.large", "m5.huge", "default_x86_64", ""] {
            assert_eq!(shapes(unknown), None, "{unknown}");
        }
    }
}
