//! The processes of a run as the operating system shows them: who descends from whom, and how to
//! leave none of them alive. Linux's `/proc` only; which processes are wanted is decided elsewhere.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, set_child_subreaper, wait, waitpid};

/// Pause between two looks at what is still alive.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Looks in a row at our own children alone.
const CHAIN_LOOKS: usize = 100;

/// What `/proc/<pid>/stat` says of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: Pid,
    /// Name of the program, at most 15 bytes.
    pub name: String,
    pub parent: i32,
    /// Its process group: a task leads its own, and what a task starts is in that or in a newer one.
    pub group: i32,
    /// Has ended and only waits to be waited for.
    pub ended: bool,
}

/// How a sweep ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Names of what could not be killed (another user's, or stuck in the kernel).
    pub alive: Vec<String>,
}

/// From now on orphans among this process' descendants become its children, so that nothing a
/// task starts can leave the run's family.
pub fn become_subreaper() -> std::io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

pub fn look_at(pid: Pid) -> Option<Process> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(stat: &str) -> Option<Process> {
    // The name stands in parentheses and may itself hold some.
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let mut rest = stat.get(close + 1..)?.split_ascii_whitespace();
    let state = rest.next()?;
    Some(Process {
        pid: Pid::from_raw(stat[..open].trim().parse().ok()?)?,
        name: stat[open + 1..close].to_owned(),
        parent: rest.next()?.parse().ok()?,
        group: rest.next()?.parse().ok()?,
        ended: matches!(state, "Z" | "X"),
    })
}

/// Every process below `root`, parents before children, without `root`.
pub fn descendants(root: Pid) -> Vec<Process> {
    match children_by_listing(root) {
        Some(children) => walk(children, |pid| children_by_listing(pid).unwrap_or_default()),
        None => {
            let mut by_parent = children_by_scan();
            let children = by_parent.remove(&root.as_raw_pid()).unwrap_or_default();
            walk(children, |pid| by_parent.remove(&pid.as_raw_pid()).unwrap_or_default())
        }
    }
}

fn walk(mut queue: Vec<Pid>, mut children: impl FnMut(Pid) -> Vec<Pid>) -> Vec<Process> {
    let (mut found, mut seen, mut next) = (Vec::new(), HashSet::new(), 0);
    while let Some(pid) = queue.get(next).copied() {
        next += 1;
        if !seen.insert(pid) {
            continue;
        }
        if let Some(process) = look_at(pid) {
            queue.extend(children(pid));
            found.push(process);
        }
    }
    found
}

/// `None` where the kernel was built without `/proc/<pid>/task/<tid>/children`.
fn children_by_listing(pid: Pid) -> Option<Vec<Pid>> {
    let mut children = Vec::new();
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Some(children) };
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(text) => children.extend(text.split_ascii_whitespace().filter_map(parse_pid)),
            // The thread ended meanwhile, unless the folder is still there without the file.
            Err(_) if thread.path().exists() => return None,
            Err(_) => {}
        }
    }
    Some(children)
}

fn children_by_scan() -> BTreeMap<i32, Vec<Pid>> {
    let mut by_parent: BTreeMap<i32, Vec<Pid>> = BTreeMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| parse_pid(entry.file_name().to_str()?)) {
        if let Some(process) = look_at(pid) {
            by_parent.entry(process.parent).or_default().push(pid);
        }
    }
    by_parent
}

fn parse_pid(text: &str) -> Option<Pid> {
    text.parse().ok().and_then(Pid::from_raw)
}

/// How a child of ours ended, if it has. `Err` when it is not our child (any more).
pub fn reap(pid: Pid) -> std::io::Result<Option<WaitStatus>> {
    Ok(waitpid(Some(pid), WaitOptions::NOHANG)?.map(|(_pid, status)| status))
}

/// Waits until a process has ended, and reaps it if it is our child. `None` after `deadline`.
pub async fn wait_for_end(pid: Pid, deadline: Duration) -> Option<Option<WaitStatus>> {
    let until = Instant::now() + deadline;
    loop {
        match reap(pid) {
            Ok(Some(status)) => return Some(Some(status)),
            Ok(None) => {}
            Err(_) if look_at(pid).is_none_or(|process| process.ended) => return Some(None),
            Err(_) => {}
        }
        if Instant::now() >= until {
            return None;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Kills every descendant of this process until none is left or `deadline` passed. The process
/// must be a subreaper: having no child then means having no descendant. Listings alone cannot
/// tell, for they miss processes while others come and go.
pub async fn kill_descendants(deadline: Duration) -> Swept {
    let until = Instant::now() + deadline;
    while reap_all() == Children::Left {
        if Instant::now() >= until {
            let alive = descendants(getpid()).into_iter().filter(|process| !process.ended);
            return Swept { alive: alive.map(|process| process.name).collect() };
        }
        for pid in stop_all() {
            signal(pid, Signal::KILL);
        }
        if kill_chains() == Children::None {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Swept::default()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Children {
    None,
    Left,
}

/// Reaps whatever has ended.
fn reap_all() -> Children {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_reaped)) => {}
            Ok(None) => return Children::Left,
            Err(Errno::INTR) => {}
            Err(_no_child) => return Children::None,
        }
    }
}

/// Stops all descendants that can be found, so that none can fork while the others are being
/// killed, and returns them.
fn stop_all() -> HashSet<Pid> {
    let mut stopped = HashSet::new();
    // A family that forks faster than this is caught by the next look.
    for _ in 0..10 {
        let before = stopped.len();
        for process in descendants(getpid()).into_iter().filter(|process| !process.ended) {
            if stopped.insert(process.pid) {
                signal(process.pid, Signal::STOP);
            }
        }
        if stopped.len() == before {
            break;
        }
    }
    stopped
}

/// A process that forks and leaves is gone before a walk through the family gets to it. Its
/// orphan is our child, and the shortest way from listing to killing catches it.
fn kill_chains() -> Children {
    for _ in 0..CHAIN_LOOKS {
        for pid in children_by_listing(getpid()).unwrap_or_default() {
            signal(pid, Signal::KILL);
        }
        if reap_all() == Children::None {
            return Children::None;
        }
    }
    Children::Left
}

fn signal(pid: Pid, signal: Signal) {
    // It may have ended meanwhile, or be another user's; the next look tells.
    let _gone = kill_process(pid, signal);
}

/// `2 sleep, python3`: names with their counts, for a sentence.
pub fn name_list(names: impl IntoIterator<Item = String>) -> String {
    let (mut order, mut counts) = (Vec::new(), HashMap::<String, usize>::new());
    for name in names {
        let count = counts.entry(name.clone()).or_default();
        if *count == 0 {
            order.push(name);
        }
        *count += 1;
    }
    let text = |name: &String| match counts[name] {
        1 => name.clone(),
        count => format!("{count} {name}"),
    };
    order.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// Memory of a process without what it maps from files, in bytes: what a forked child starts with.
pub fn anonymous_memory(pid: Pid) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kibibytes = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some((kibibytes("RssAnon:")? + kibibytes("RssShmem:")?) * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_and_spaces_are_read() {
        let process = parse_stat("77 (a) b (c)) Z 12 70 77 0 -1").expect("a good line");
        assert_eq!((process.pid.as_raw_pid(), process.name.as_str()), (77, "a) b (c)"));
        assert_eq!((process.parent, process.group, process.ended), (12, 70, true));
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn both_ways_of_finding_children_agree() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = Pid::from_child(&child);
        assert!(children_by_listing(getpid()).is_none_or(|children| children.contains(&pid)));
        assert!(children_by_scan()[&getpid().as_raw_pid()].contains(&pid));
        assert!(descendants(getpid()).iter().any(|process| process.pid == pid && process.name == "sleep"));
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }

    #[test]
    fn names_are_counted_in_order() {
        let names = ["sleep", "python3", "sleep"].map(str::to_owned);
        assert_eq!(name_list(names), "2 sleep, python3");
        assert_eq!(name_list([]), "");
    }

    #[test]
    fn our_own_memory_is_plausible() {
        let bytes = anonymous_memory(getpid()).expect("our own process");
        assert!((100_000..10_000_000_000).contains(&bytes), "{bytes}");
    }
}
