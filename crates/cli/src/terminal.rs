//! What a run looks like: plain lines in the peer's shape, and on a terminal a live block with a
//! bar per step below them (design D11).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use console::Style;
use ferroflow_core::id::StepName;
use ferroflow_core::port::Stream;
use ferroflow_core::run::StepProgress;
use ferroflow_core::task::Millis;
use ferroflow_engine::console::{Console, Holdup, Progress, TaskLabel, Tone};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::unread;

/// Bars that are shown at once; finished steps make room for running ones.
const MOST_BARS: usize = 12;

/// The console for this process's stdout and stderr.
pub fn for_this_process() -> Box<dyn Console> {
    let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = Lines { zone: TimeZone::system(), colours };
    if io::stdout().is_terminal() && io::stderr().is_terminal() && console::Term::stderr().features().is_attended() {
        Box::new(LiveConsole::new(lines))
    } else {
        Box::new(PlainConsole { lines, is_read: true })
    }
}

/// Formats lines of behaviour.md §4.1.
struct Lines {
    zone: TimeZone,
    colours: bool,
}

impl Lines {
    fn system(&self, at: Millis, task: Option<&TaskLabel>, text: &str, tone: Tone) -> String {
        let style = match tone {
            Tone::Bad => Style::new().red().bold(),
            Tone::Plain | Tone::Routine => Style::new().bold(),
        };
        let text = if self.colours { style.force_styling(true).apply_to(text).to_string() } else { text.to_owned() };
        self.prefix(at, task) + &text
    }

    fn log(&self, at: Millis, task: &TaskLabel, line: &[u8]) -> String {
        self.prefix(at, Some(task)) + &String::from_utf8_lossy(line)
    }

    fn prefix(&self, at: Millis, task: Option<&TaskLabel>) -> String {
        let time = self.time(at);
        let mut prefix = if self.colours { format!("\x1b[35m{time}\x1b[0m ") } else { time + " " };
        if let Some(task) = task {
            let bracket = bracket(task);
            // Writing to a String cannot fail.
            let _ =
                if self.colours { write!(prefix, "\x1b[32m{bracket}\x1b[0m ") } else { write!(prefix, "{bracket} ") };
        }
        prefix
    }

    fn time(&self, at: Millis) -> String {
        local_time(at, &self.zone)
    }
}

/// `YYYY-MM-DD HH:MM:SS.mmm` in the given zone.
pub fn local_time(at: Millis, zone: &TimeZone) -> String {
    let timestamp = Timestamp::from_millisecond(at).unwrap_or(Timestamp::UNIX_EPOCH);
    timestamp.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S.%3f").to_string()
}

fn bracket(task: &TaskLabel) -> String {
    match task.pid {
        Some(pid) => format!("[{}/{}/{} (pid {pid})]", task.run, task.step, task.task),
        None => format!("[{}/{}/{}]", task.run, task.step, task.task),
    }
}

/// Lines on stdout, until its reader has gone: the run goes on without it.
struct PlainConsole {
    lines: Lines,
    is_read: bool,
}

impl PlainConsole {
    fn line(&mut self, mut line: String) {
        line.push('\n');
        self.is_read = self.is_read && unread::write(io::stdout().as_fd(), line.as_bytes()).is_ok();
    }
}

impl Console for PlainConsole {
    fn system(&mut self, at: Millis, task: Option<&TaskLabel>, text: &str, tone: Tone) {
        let line = self.lines.system(at, task, text, tone);
        self.line(line);
    }

    fn log(&mut self, at: Millis, task: &TaskLabel, _stream: Stream, line: &[u8]) {
        let line = self.lines.log(at, task, line);
        self.line(line);
    }

    fn notice(&mut self, text: &str) {
        unread::say(&format!("{text}\n"));
    }

    fn close(&mut self) {}
}

/// Lines above, bars below.
struct LiveConsole {
    lines: Lines,
    bars: MultiProgress,
    by_step: HashMap<StepName, ProgressBar>,
    /// Steps in order of their bars.
    order: Vec<StepName>,
    /// Lines that wait for the next redraw.
    pending: String,
}

impl LiveConsole {
    fn new(lines: Lines) -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        Self { lines, bars, by_step: HashMap::new(), order: Vec::new(), pending: String::new() }
    }

    fn queue(&mut self, line: &str) {
        self.pending.push_str(line);
        self.pending.push('\n');
        if self.pending.len() > 1 << 16 {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let text = std::mem::take(&mut self.pending);
        self.bars.suspend(|| {
            let mut out = io::stdout().lock();
            // A terminal that went away cannot be told anything; the run goes on.
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        });
    }

    fn show(&mut self, step: &StepProgress, width: usize, holdup: Option<&Holdup>) {
        let total = step.done + step.failed + step.running + step.starting + step.queued;
        if total == 0 {
            return;
        }
        if !self.by_step.contains_key(&step.step) {
            self.make_room();
            let bar = self.bars.add(ProgressBar::new(total));
            bar.set_style(style());
            self.order.push(step.step.clone());
            self.by_step.insert(step.step.clone(), bar);
        }
        let bar = &self.by_step[&step.step];
        bar.set_prefix(format!("{:width$}", step.step.as_str()));
        bar.set_length(total);
        bar.set_position(step.done);
        bar.set_message(describe(step, bar, holdup));
        bar.tick();
    }

    /// Takes down the oldest finished bar when there are too many.
    fn make_room(&mut self) {
        if self.order.len() < MOST_BARS {
            return;
        }
        let finished = self
            .order
            .iter()
            .position(|step| self.by_step.get(step).is_some_and(|bar| bar.length() == Some(bar.position())));
        if let Some(index) = finished {
            let step = self.order.remove(index);
            if let Some(bar) = self.by_step.remove(&step) {
                self.bars.remove(&bar);
            }
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("  {prefix} {bar:24.green/dim} {pos:>4}/{len:<4} {wide_msg}")
        .expect("the template is valid")
        .progress_chars("━━─")
}

/// `3 running, 2 starting, 12 waiting (reason), 1 failed, 20s left`.
fn describe(step: &StepProgress, bar: &ProgressBar, holdup: Option<&Holdup>) -> String {
    let nothing = Holdup::default();
    let holdup = holdup.unwrap_or(&nothing);
    let mut parts = Vec::new();
    let active = (step.running + step.starting).saturating_sub(holdup.waiting + holdup.on_their_way);
    if active > 0 {
        parts.push(format!("{active} running"));
    }
    if holdup.on_their_way > 0 {
        parts.push(format!("{} starting", holdup.on_their_way));
    }
    let waiting = step.queued + holdup.waiting;
    if waiting > 0 {
        let why = if holdup.reason.is_empty() { String::new() } else { format!(" ({})", holdup.reason) };
        parts.push(format!("{waiting} waiting{why}"));
    }
    if step.failed > 0 {
        parts.push(format!("{} failed", step.failed));
    }
    if active > 0 && step.done > 1 && step.queued > 0 {
        parts.push(format!("{} left", indicatif::HumanDuration(bar.eta())));
    }
    parts.join(", ")
}

impl Console for LiveConsole {
    fn system(&mut self, at: Millis, task: Option<&TaskLabel>, text: &str, tone: Tone) {
        if tone == Tone::Routine {
            return;
        }
        let line = self.lines.system(at, task, text, tone);
        self.queue(&line);
    }

    fn log(&mut self, at: Millis, task: &TaskLabel, _stream: Stream, line: &[u8]) {
        let line = self.lines.log(at, task, line);
        self.queue(&line);
    }

    fn notice(&mut self, text: &str) {
        self.queue(text);
    }

    fn wants_progress(&self) -> bool {
        true
    }

    fn progress(&mut self, progress: &Progress) {
        self.flush();
        let width = progress.steps.iter().map(|step| step.step.as_str().chars().count()).max().unwrap_or(0);
        for step in &progress.steps {
            self.show(step, width, progress.holdups.get(&step.step));
        }
    }

    fn close(&mut self) {
        self.flush();
        for bar in self.by_step.values() {
            bar.abandon();
        }
    }
}
