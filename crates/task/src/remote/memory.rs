//! The memory of the container's control group: whether the kernel killed something of it, how much
//! there may be, how much there was.

use std::fs;
use std::path::{Path, PathBuf};

/// Above it a number means that there is no limit.
const NO_LIMIT: u64 = 1 << 60;

/// Where a control group of version 2, and of version 1, counts kills, and its limit and peak beside.
const GROUPS: [(&str, &str, &str); 2] = [
    ("/sys/fs/cgroup/memory.events", "memory.max", "memory.peak"),
    ("/sys/fs/cgroup/memory/memory.oom_control", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
];

#[derive(Clone, Debug)]
struct Group {
    events: PathBuf,
    limit: &'static str,
    peak: &'static str,
}

/// Made before the task starts.
#[derive(Clone, Debug)]
pub struct Memory {
    group: Option<Group>,
    kills_at_start: u64,
}

impl Memory {
    pub fn of_container() -> Self {
        let groups = GROUPS.iter().map(|(events, limit, peak)| Group { events: PathBuf::from(events), limit, peak });
        Self::of(groups.into_iter().find(|group| group.events.exists()))
    }

    fn of(group: Option<Group>) -> Self {
        let mut memory = Self { group, kills_at_start: 0 };
        memory.kills_at_start = memory.kills();
        memory
    }

    fn kills(&self) -> u64 {
        let Some(group) = &self.group else { return 0 };
        let text = fs::read_to_string(&group.events).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// The kernel killed something of this container since the start.
    pub fn was_exhausted(&self) -> bool {
        self.kills() > self.kills_at_start
    }

    /// In bytes; none when there is no limit.
    pub fn limit(&self) -> Option<u64> {
        self.number(|group| group.limit)
    }

    /// In bytes; none where the kernel does not count it.
    pub fn peak(&self) -> Option<u64> {
        self.number(|group| group.peak)
    }

    fn number(&self, name: fn(&Group) -> &'static str) -> Option<u64> {
        let group = self.group.as_ref()?;
        let text = fs::read_to_string(group.events.parent().unwrap_or(Path::new("/")).join(name(group))).ok()?;
        text.trim().parse().ok().filter(|number| *number < NO_LIMIT)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A control group of version 2 in a folder.
    pub fn memory_in(folder: &Path, limit: &str, peak: &str) -> Memory {
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("file");
        write("memory.events", "low 0\noom 3\noom_kill 2\n");
        write("memory.max", limit);
        write("memory.peak", peak);
        Memory::of(Some(Group { events: folder.join("memory.events"), limit: "memory.max", peak: "memory.peak" }))
    }

    #[test]
    fn only_kills_since_the_start_count() {
        let folder = tempfile::tempdir().expect("folder");
        let memory = memory_in(folder.path(), "max\n", "1024\n");
        assert!(!memory.was_exhausted());
        assert_eq!((memory.limit(), memory.peak()), (None, Some(1024)));
        fs::write(folder.path().join("memory.events"), "oom_kill 3\n").expect("file");
        assert!(memory.was_exhausted());
    }

    #[test]
    fn a_container_without_a_control_group_says_nothing() {
        let memory = Memory::of(None);
        assert!(!memory.was_exhausted());
        assert_eq!((memory.limit(), memory.peak()), (None, None));
    }
}
