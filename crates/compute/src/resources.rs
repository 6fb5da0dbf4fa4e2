//! What memory this process may use: the machine's and, where there is one, its control group's
//! (version 1 and 2, up the hierarchy). Reads and numbers only; what follows from them is decided
//! in `admission`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Machine,
    ControlGroup,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "this machine",
            Self::ControlGroup => "this process' control group (container or job)",
        })
    }
}

/// Memory in bytes, at the level where least of it is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub available: u64,
    pub total: u64,
    pub bound: Bound,
}

/// Where memory can be read.
#[derive(Clone, Debug)]
pub struct MemoryGauge {
    proc: PathBuf,
    /// Our control group and those above it, innermost first.
    groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    folder: PathBuf,
    files: &'static GroupFiles,
}

#[derive(Debug, PartialEq, Eq)]
struct GroupFiles {
    limit: &'static str,
    usage: &'static str,
    /// In `memory.stat`: page cache that the kernel drops when memory is short, counted as used.
    reclaimable: &'static str,
    kills: &'static str,
}

const VERSION_1: GroupFiles = GroupFiles {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
    kills: "memory.oom_control",
};
const VERSION_2: GroupFiles =
    GroupFiles { limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file", kills: "memory.events" };

impl MemoryGauge {
    /// For this process.
    pub fn discover() -> Self {
        Self::discover_below(Path::new("/proc"))
    }

    /// The same from another `/proc`, for tests.
    pub fn discover_below(proc: &Path) -> Self {
        let read = |name: &str| fs::read_to_string(proc.join(name)).unwrap_or_default();
        let groups = find_groups(&read("self/cgroup"), &read("self/mountinfo"));
        Self { proc: proc.to_owned(), groups }
    }

    /// Memory now; `None` where the system does not tell (then nothing is held back).
    pub fn read(&self) -> Option<Memory> {
        let machine = self.machine();
        let groups = self.groups.iter().filter_map(|group| group.memory(machine.map(|memory| memory.total)));
        machine.into_iter().chain(groups).min_by_key(|memory| memory.available)
    }

    fn machine(&self) -> Option<Memory> {
        let text = fs::read_to_string(self.proc.join("meminfo")).ok()?;
        let kibibytes = |name: &str| value_of(&text, name).map(|number| number * 1024);
        let (available, total) = (kibibytes("MemAvailable:")?, kibibytes("MemTotal:")?);
        Some(Memory { available, total, bound: Bound::Machine })
    }

    /// The tightest memory limit that holds for this process.
    pub fn limit(&self) -> Option<(u64, Bound)> {
        let machine = self.machine().map(|memory| (memory.total, Bound::Machine));
        let groups = self.groups.iter().filter_map(|group| Some((group.limit()?, Bound::ControlGroup)));
        machine.into_iter().chain(groups).min_by_key(|(limit, _bound)| *limit)
    }

    /// How many processes the kernel has killed for lack of memory: in our control group where
    /// it counts them, else on the whole machine.
    pub fn memory_kills(&self) -> Option<u64> {
        let own = self.groups.iter().find_map(Group::kills);
        own.or_else(|| value_of(&fs::read_to_string(self.proc.join("vmstat")).ok()?, "oom_kill"))
    }
}

impl Group {
    fn number(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.folder.join(file)).ok()?.trim().parse().ok()
    }

    fn limit(&self) -> Option<u64> {
        // `max`, and in version 1 the largest multiple of a page, mean that there is none.
        self.number(self.files.limit).filter(|limit| *limit < 1 << 60)
    }

    fn memory(&self, machine: Option<u64>) -> Option<Memory> {
        let total = self.limit().filter(|limit| machine.is_none_or(|machine| *limit < machine))?;
        let used = self.number(self.files.usage)?;
        let stat = fs::read_to_string(self.folder.join("memory.stat")).unwrap_or_default();
        let reclaimable = value_of(&stat, self.files.reclaimable).unwrap_or(0);
        let available = total.saturating_sub(used.saturating_sub(reclaimable));
        Some(Memory { available, total, bound: Bound::ControlGroup })
    }

    fn kills(&self) -> Option<u64> {
        value_of(&fs::read_to_string(self.folder.join(self.files.kills)).ok()?, "oom_kill")
    }
}

/// The number after `name` at the start of a line.
fn value_of(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

/// Folders of our control group and its ancestors that this process can see.
fn find_groups(cgroup: &str, mounts: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let files = match controllers {
            "" => &VERSION_2,
            names if names.split(',').any(|name| name == "memory") => &VERSION_1,
            _ => continue,
        };
        if let Some((root, mounted_at)) = find_mount(mounts, files == &VERSION_1) {
            groups.extend(folders_up(path, &root, &mounted_at).into_iter().map(|folder| Group { folder, files }));
        }
    }
    groups
}

/// The part of the hierarchy that is mounted, and where.
fn find_mount(mounts: &str, version_1: bool) -> Option<(PathBuf, PathBuf)> {
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let mut kind = kind.split(' ');
        let (file_system, _source, options) = (kind.next()?, kind.next()?, kind.next()?);
        let wanted = if version_1 {
            file_system == "cgroup" && options.split(',').any(|option| option == "memory")
        } else {
            file_system == "cgroup2"
        };
        wanted.then(|| Some((PathBuf::from(place.next()?), PathBuf::from(place.next()?))))?
    })
}

fn folders_up(path: &str, root: &Path, mounted_at: &Path) -> Vec<PathBuf> {
    // In a container the path may lie outside what is mounted; the mount point is then our group.
    let inside = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
    let mut folders: Vec<PathBuf> =
        inside.ancestors().map(|part| mounted_at.join(part)).filter(|folder| folder.is_dir()).collect();
    if folders.is_empty() {
        folders.push(mounted_at.to_owned());
    }
    folders
}

/// `3.1 GiB`, for sentences.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 10.0 && unit > 0 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    struct Fixture(tempfile::TempDir);

    impl Fixture {
        fn new() -> Self {
            let fixture = Self(tempfile::tempdir().expect("a temporary folder"));
            fixture.write("proc/meminfo", "MemTotal:  8192000 kB\nMemFree: 1 kB\nMemAvailable:   4096000 kB\n");
            fixture.write("proc/vmstat", "nr_free 3\noom_kill 5\n");
            fixture
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        }

        fn mount(&self, cgroup: &str, root: &str, kind: &str) -> MemoryGauge {
            let at = self.0.path().join("group");
            fs::create_dir_all(&at).expect("a folder");
            self.write("proc/self/cgroup", cgroup);
            self.write("proc/self/mountinfo", &format!("30 1 0:1 {root} {} rw shared:9 - {kind}\n", at.display()));
            MemoryGauge::discover_below(&self.0.path().join("proc"))
        }
    }

    #[test]
    fn without_a_control_group_the_machine_counts() {
        let fixture = Fixture::new();
        let gauge = MemoryGauge::discover_below(&fixture.0.path().join("proc"));
        let memory = gauge.read().expect("meminfo is there");
        assert_eq!(memory, Memory { available: 4000 * MIB, total: 8000 * MIB, bound: Bound::Machine });
        assert_eq!(gauge.limit(), Some((8000 * MIB, Bound::Machine)));
        assert_eq!(gauge.memory_kills(), Some(5));
    }

    #[test]
    fn the_tightest_group_of_version_2_counts_and_cache_is_available() {
        let fixture = Fixture::new();
        for (folder, limit, used) in [("a", 1000 * MIB, 900 * MIB), ("a/b", 2000 * MIB, 100 * MIB)] {
            fixture.write(&format!("group/{folder}/memory.max"), &format!("{limit}\n"));
            fixture.write(&format!("group/{folder}/memory.current"), &format!("{used}\n"));
        }
        fixture.write("group/memory.max", "max\n");
        fixture.write("group/a/memory.stat", &format!("anon 1\ninactive_file {}\n", 300 * MIB));
        fixture.write("group/a/b/memory.events", "low 0\noom 2\noom_kill 2\n");
        let gauge = fixture.mount("0::/a/b\n", "/", "cgroup2 cgroup2 rw");
        let memory = gauge.read().expect("meminfo is there");
        assert_eq!(memory, Memory { available: 400 * MIB, total: 1000 * MIB, bound: Bound::ControlGroup });
        assert_eq!(gauge.limit(), Some((1000 * MIB, Bound::ControlGroup)));
        assert_eq!(gauge.memory_kills(), Some(2));
    }

    #[test]
    fn version_1_is_read_too_even_when_our_path_is_not_mounted() {
        let fixture = Fixture::new();
        fixture.write("group/memory.limit_in_bytes", &format!("{}\n", 512 * MIB));
        fixture.write("group/memory.usage_in_bytes", &format!("{}\n", 200 * MIB));
        fixture.write("group/memory.stat", "inactive_file 0\ntotal_inactive_file 0\n");
        fixture.write("group/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n");
        for root in ["/docker/abc", "/docker/abc/below", "/elsewhere"] {
            let gauge = fixture.mount("8:pids:/\n4:cpu,memory:/docker/abc\n", root, "cgroup cgroup rw,memory");
            assert_eq!(gauge.read().map(|memory| memory.available), Some(312 * MIB), "mounted from {root}");
            assert_eq!(gauge.memory_kills(), Some(1));
        }
    }

    #[test]
    fn a_group_without_a_limit_does_not_count() {
        let fixture = Fixture::new();
        fixture.write("group/memory.limit_in_bytes", "9223372036854771712\n");
        fixture.write("group/memory.usage_in_bytes", "1\n");
        let gauge = fixture.mount("4:memory:/\n", "/", "cgroup cgroup rw,memory");
        assert_eq!(gauge.read().map(|memory| memory.bound), Some(Bound::Machine));
    }

    #[test]
    fn this_machine_can_be_read() {
        let memory = MemoryGauge::discover().read().expect("Linux tells its memory");
        assert!(memory.available > 0 && memory.available <= memory.total);
    }

    #[test]
    fn bytes_read_well() {
        let shown: Vec<String> =
            [0, 700 * 1024, 5 * MIB + 300_000, 999 * MIB, 1000 * MIB, 40_000 * MIB].map(human_bytes).into();
        assert_eq!(shown, ["0 KiB", "700 KiB", "5.3 MiB", "999 MiB", "1.0 GiB", "39 GiB"]);
    }
}
