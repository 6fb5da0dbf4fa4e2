//! The `metaflow` command. Started by a flow (`metaflow flow --socket-fd N`) it is the engine of that
//! flow's command line; typed by a user it tells what it is.

#![deny(clippy::print_stdout, clippy::print_stderr, reason = "they panic when the reader is gone: `unread`")]

#[macro_use]
mod unread;

mod adoption;
mod again;
mod arguments;
mod checks;
mod commands;
mod config;
mod context;
mod datastore;
mod layers;
mod origin;
mod remote;
mod report;
mod terminal;

use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;

use ferroflow_compute::frontend::FrontEnd;
use ferroflow_core::graph::Graph;
use ferroflow_core::show;
use ferroflow_core::wire::Hello;

use crate::arguments::{Command, TopOptions};
use crate::config::Config;
use crate::context::Context;
use crate::report::Failure;

const VERSION: &str = env!("CARGO_PKG_VERSION");

const ABOUT: &str = "\
Ferroflow runs Metaflow flows.

Write a flow in Python and run it:

    python flow.py run

  metaflow help       this text
  metaflow version    the version

Every flow has its own commands: python flow.py --help
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["flow", "--socket-fd", fd] => flow_command_line(fd),
        [] | ["help" | "--help" | "-h"] => {
            out!("{ABOUT}");
            ExitCode::SUCCESS
        }
        ["version" | "--version" | "-V"] => {
            outln!("{VERSION}");
            ExitCode::SUCCESS
        }
        [other, ..] => {
            errln!("Error: `metaflow {other}` is not a command of this version.\n\n{ABOUT}");
            ExitCode::from(2)
        }
    }
}

fn flow_command_line(fd: &str) -> ExitCode {
    let Ok(fd) = fd.parse::<i32>() else {
        errln!("Error: `metaflow flow` is started by a flow's own process, not by hand. Use: python flow.py run");
        return ExitCode::from(2);
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            errln!("Error: the engine cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    // SAFETY: the flow's process passes this descriptor on for us alone to own.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let code = runtime.block_on(async {
        match FrontEnd::connect(socket).await {
            Ok((front_end, hello)) => {
                let code = serve(front_end.clone(), hello).await;
                front_end.close().await;
                code
            }
            Err(error) => {
                Failure::new("Internal error", error.to_string()).print();
                1
            }
        }
    });
    // Threads that still read a terminal or a pipe must not keep the command from ending.
    runtime.shutdown_background();
    ExitCode::from(code)
}

async fn serve(front_end: FrontEnd, hello: Hello) -> u8 {
    match command(front_end, hello).await {
        Ok(code) => code,
        Err(failure) => {
            failure.print();
            failure.exit_code
        }
    }
}

async fn command(front_end: FrontEnd, hello: Hello) -> Result<u8, Failure> {
    let cwd = std::env::current_dir()
        .map_err(|error| Failure::new("Flow failed", format!("the current folder cannot be read: {error}")))?;
    let config = Config::read(&cwd).map_err(|mistakes| Failure::new("Incorrect configuration", mistakes.join("\n")))?;
    let quiet = hello.arguments.iter().any(|a| a == "--quiet") || config.lookup.flag("METAFLOW_QUIET", false);
    if !quiet {
        errln!("Metaflow {VERSION} executing {} for {}", hello.flow.name, config.identity);
    }
    let parsed = arguments::parse(&hello.flow, &hello.command(), &hello.arguments, &config.lookup);
    let (top, command) = match parsed {
        Ok(parsed) => parsed,
        Err(usage) if usage.exit_code == 0 => {
            out!("{}", usage.text);
            return Ok(0);
        }
        Err(usage) => {
            err!("{}", usage.text);
            return Ok(usage.exit_code);
        }
    };
    let context = context(front_end, hello, config, top, cwd);
    carry_out(&context, command).await
}

fn context(front_end: FrontEnd, hello: Hello, config: Config, top: TopOptions, cwd: std::path::PathBuf) -> Context {
    // A remote datastore's root is not where the metadata is.
    let local_root = top.datastore_root.as_deref().filter(|_| datastore::kind(&config, &top) == "local");
    let (root, root_is_new) = config.local_root(&cwd, local_root);
    Context { flow: hello.flow.clone(), hello, front_end, config, top, cwd, root, root_is_new }
}

async fn carry_out(context: &Context, command: Command) -> Result<u8, Failure> {
    match command {
        Command::Check => checks::check(context)?,
        Command::Help => out!("{}", arguments::help(&context.flow, &context.hello.command())),
        Command::Version => errln!("{VERSION}"),
        Command::Show => show_flow(context)?,
        Command::OutputDot => out!("{}", show::dot(&graph(context)?)),
        Command::OutputRaw { json } => out!("{}", show::raw(&graph(context)?, json)),
        Command::Run(options, given) => return commands::run::run(context, options, given).await,
        Command::Resume(resume, options) => return commands::run::resume(context, resume, options).await,
        Command::Dump(options) => commands::dump::dump(context, options).await?,
        Command::Logs(options) => commands::logs::logs(context, &options)?,
        Command::LogsScrub(options) => commands::logs::scrub(context, &options)?,
        Command::Tag(command) => commands::tag::tag(context, command)?,
        Command::Package(command) => commands::package::package(context, command)?,
        Command::Tasks(command) => commands::active_tasks::active_tasks(context, command).await?,
        Command::NotYet(name, instead) => {
            return Err(Failure::invalid_command(format!("`{name}` is not in this version; {instead}.")));
        }
    }
    Ok(0)
}

fn graph(context: &Context) -> Result<Graph, Failure> {
    Ok(Graph::build(context.flow.clone())?)
}

fn show_flow(context: &Context) -> Result<(), Failure> {
    let graph = graph(context)?;
    let shown = show::show(&graph);
    errln!("\n{}", shown.doc);
    out!("{}", shown.steps);
    Ok(())
}
