//! Who runs a run, and whether that process still lives: boot id, pid namespace and the start
//! time of the process, so that neither a recycled pid nor another container is mistaken for it.

use std::fs;
use std::os::unix::fs::MetadataExt;

use ferroflow_core::metadata::EngineIdentity;

/// An engine on another machine counts as gone when it was silent for this long.
pub const HEARTBEAT_LIMIT_MILLIS: i64 = 60_000;

/// Identity of the calling process.
pub fn engine_identity_of_this_process() -> EngineIdentity {
    let pid = std::process::id();
    EngineIdentity { host: this_host(), pid, pid_start: living_since(pid).unwrap_or(0) }
}

/// Boot id and pid namespace; a name that matches no other machine where there is no `/proc`.
pub fn this_host() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::metadata("/proc/self/ns/pid").map_or(0, |entry| entry.ino());
    format!("{}:{namespace}", boot.trim())
}

/// Whether the engine is known to be gone, and the sentence that says so.
pub fn why_gone(engine: &EngineIdentity, heartbeat_at: i64, now: i64) -> Option<String> {
    if engine.host == this_host() && engine.pid_start != 0 {
        if living_since(engine.pid) == Some(engine.pid_start) {
            return None;
        }
        return Some(format!(
            "the engine of this run (process {}) ended without finishing it; use `resume` to go on",
            engine.pid
        ));
    }
    let silent = now - heartbeat_at;
    (silent > HEARTBEAT_LIMIT_MILLIS).then(|| {
        format!(
            "the engine of this run, on another machine, has not been heard of for {} seconds; \
             use `resume` to go on",
            silent / 1000
        )
    })
}

/// Whether another engine may take the run over, and why: its own is gone, stopped, or silent.
pub fn why_silent(engine: &EngineIdentity, heartbeat_at: i64, now: i64) -> Option<String> {
    if let Some(text) = why_gone(engine, heartbeat_at, now) {
        return Some(text);
    }
    if engine.host == this_host() && matches!(state_of(engine.pid), Some('T' | 't')) {
        return Some(format!("the engine of this run (process {}) is stopped", engine.pid));
    }
    let silent = now - heartbeat_at;
    (silent > HEARTBEAT_LIMIT_MILLIS)
        .then(|| format!("the engine of this run has not been heard of for {} seconds", silent / 1000))
}

/// The letter that `ps` shows.
fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.get(stat.rfind(')')? + 1..)?.trim_start().chars().next()
}

/// Start time of a living process, in clock ticks since boot; none for a dead one or a zombie.
fn living_since(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold blanks and parentheses.
    let after_name = stat.get(stat.rfind(')')? + 1..)?;
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_a_recycled_pid_does_not() {
        let here = engine_identity_of_this_process();
        assert_eq!(why_gone(&here, 0, 10_000_000), None);
        let recycled = EngineIdentity { pid_start: here.pid_start + 1, ..here };
        let text = why_gone(&recycled, 0, 0).expect("a recycled pid is another process");
        assert!(text.contains(&format!("process {}", recycled.pid)), "{text}");
    }

    #[test]
    fn another_machine_is_judged_by_its_heartbeat() {
        let there = EngineIdentity { host: "elsewhere:1".into(), pid: 1, pid_start: 1 };
        assert_eq!(why_gone(&there, 1_000, 61_000), None);
        assert!(why_gone(&there, 1_000, 61_001).expect("silent").contains("60 seconds"));
    }

    #[test]
    fn a_zombie_is_dead() {
        let mut child = std::process::Command::new("true").spawn().expect("spawn `true`");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while living_since(child.id()).is_some() {
            assert!(std::time::Instant::now() < deadline, "`true` never became a zombie");
            std::thread::yield_now();
        }
        child.wait().expect("wait");
    }
}
