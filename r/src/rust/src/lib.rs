//! The Rust part of the R package `metaflow`: fork server, artifacts and the client's questions.
//! Conversion and plumbing only; what a flow means is R's and the engine's. No runtime, and no thread
//! that is alive after a call returned.

#![allow(clippy::needless_pass_by_value, reason = "extendr hands arguments over by value")]

mod artifacts;
mod client;
mod columns;
mod crash;
mod plain;
mod process;
mod server;
mod session;
mod sexp;
mod supervisor;
mod task;
mod unpickle;
mod wire;
mod zygote;

use std::cell::RefCell;

use extendr_api::prelude::*;
use serde_json::Value;

use crate::artifacts::{InputPack, OutputPack};
use crate::server::{Origin, Role};
use crate::wire::Connection;

/// What R gets: a value, or a sentence that says what is wrong.
pub type Answer = std::result::Result<Robj, String>;

thread_local! {
    /// The helper's end of its socket to the server.
    static HELPER: RefCell<Option<Connection>> = const { RefCell::new(None) };
}

fn parsed(text: &str) -> std::result::Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("not valid JSON: {error}"))
}

fn origin_of(value: &Value) -> Origin {
    let texts = |name: &str| serde_json::from_value::<Vec<String>>(value[name].clone()).unwrap_or_default();
    Origin {
        command: texts("command"),
        directory: value["directory"].as_str().unwrap_or(".").to_owned(),
        environment: texts("environment")
            .iter()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        spawn_reason: value["spawn_reason"].as_str().map(str::to_owned),
    }
}

/// What a fork is to do, for R.
fn role(role: Role) -> Robj {
    match role {
        Role::Over => list!(role = "over").into(),
        Role::Helper(connection) => {
            HELPER.set(Some(connection));
            list!(role = "helper").into()
        }
        Role::Task { spec, control } => {
            task::begin(control);
            list!(role = "task", spec = plain::as_lists(&spec)).into()
        }
    }
}

#[extendr]
fn rs_version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

#[extendr]
fn rs_hand_over(engine: &str, hello: &str, origin: &str) -> Answer {
    let origin = origin_of(&parsed(origin)?);
    server::hand_over(engine, &parsed(hello)?, &origin).map(role)
}

#[extendr]
fn rs_fresh_zygote(socket: &str, pipe: &str, settings: &str, origin: &str) -> Answer {
    let origin = origin_of(&parsed(origin)?);
    server::serve_fresh_zygote(server::number(socket)?, server::number(pipe)?, settings, &origin).map(role)
}

#[extendr]
fn rs_fork_safety(known: Vec<i32>) -> Nullable<String> {
    server::fork_safety(&known).map_or(Nullable::Null, Nullable::NotNull)
}

#[extendr]
fn rs_open_descriptors() -> Vec<i32> {
    process::open_descriptors()
}

/// The spec of a task that this R was started for.
#[extendr]
fn rs_spawned_task(control: &str, spec: Nullable<String>) -> Answer {
    let control = wire::adopt(server::number(control)?);
    let (spec, control) = match spec {
        Nullable::NotNull(number) => {
            let file = std::fs::File::from(wire::adopt(server::number(&number)?));
            let text = std::io::read_to_string(file).map_err(|error| error.to_string())?;
            (parsed(&text)?, control)
        }
        Nullable::Null => server::spec_from(control)?,
    };
    task::begin_spawned(control);
    Ok(list!(role = "task", spec = plain::as_lists(&spec)).into())
}

/// The next request of the engine; NULL when there will be none.
#[extendr]
fn rs_helper_request() -> Answer {
    HELPER.with_borrow_mut(|helper| {
        let connection = helper.as_mut().ok_or("this process is not the helper")?;
        match connection.receive() {
            Ok(frame) => Ok(plain::as_lists(&frame.message)),
            Err(_) => Ok(().into()),
        }
    })
}

#[extendr]
fn rs_helper_reply(reply: &str) -> Answer {
    let reply = parsed(reply)?;
    HELPER.with_borrow_mut(|helper| {
        let connection = helper.as_mut().ok_or("this process is not the helper")?;
        connection.send(&reply).map_err(|error| error.to_string())?;
        Ok(().into())
    })
}

#[extendr]
fn rs_task_say(message: &str) -> Answer {
    task::say(&parsed(message)?);
    Ok(().into())
}

#[extendr]
fn rs_watch_quit(hook: Robj) {
    task::watch_quit(hook);
}

#[extendr]
fn rs_watch_crashes(report: Robj) {
    crash::watch(report);
}

#[extendr]
fn rs_limit_time(seconds: f64) {
    task::limit_time(seconds);
}

#[extendr]
fn rs_timed_out() -> bool {
    task::timed_out()
}

#[extendr]
fn rs_leave(code: i32) {
    task::leave(code);
}

#[extendr]
fn rs_run_command(command: Vec<String>, variables: Vec<String>) -> Answer {
    session::run(&command, &variables).map(Robj::from)
}

/// In a remote task's container: runs the task to its end; the exit code for this process.
#[extendr]
fn rs_supervise(settings: &str, spec: &str) -> Answer {
    supervisor::run(settings, spec).map(Robj::from)
}

/// A task's spec as JSON, from the form in which it travels.
#[extendr]
fn rs_decode_spec(text: &str) -> Answer {
    ferroflow_task::remote::decode_spec(text).map(Robj::from)
}

#[extendr]
fn rs_to_json(value: Robj) -> Answer {
    let json = plain::message(&value).ok_or("this value has no form in JSON")?;
    Ok(json.to_string().into())
}

#[extendr]
fn rs_from_json(text: &str, simplify: bool) -> Answer {
    let value = parsed(text)?;
    Ok(if simplify { plain::simplify(&value) } else { plain::as_lists(&value) })
}

#[extendr]
fn rs_open_packs(root: &str, flow: &str, reference: &str) -> Answer {
    artifacts::open_packs(root, flow, reference)
}

#[extendr]
fn rs_find_packs(root: &str, flow: &str, reference: &str) -> Answer {
    artifacts::find_packs(root, flow, reference)
}

#[extendr]
fn rs_pack_names(pack: ExternalPtr<InputPack>) -> Vec<String> {
    artifacts::names(&pack)
}

#[extendr]
fn rs_pack_info(pack: ExternalPtr<InputPack>, name: &str) -> Answer {
    artifacts::info(&pack, name)
}

#[extendr]
fn rs_pack_outcome(pack: ExternalPtr<InputPack>) -> Robj {
    artifacts::outcome(&pack)
}

#[extendr]
fn rs_pack_read(pack: ExternalPtr<InputPack>, name: &str) -> Answer {
    artifacts::read(&pack, name)
}

#[extendr]
fn rs_pack_item(pack: ExternalPtr<InputPack>, variable: &str, index: f64) -> Answer {
    artifacts::item(&pack, variable, index)
}

#[extendr]
fn rs_new_pack(root: &str, flow: &str, run: &str, step: &str, task: f64, attempt: i32) -> Answer {
    artifacts::new_pack(root, flow, run, step, task, attempt)
}

#[extendr]
fn rs_write(
    mut pack: ExternalPtr<OutputPack>,
    name: &str,
    type_name: &str,
    preview: Nullable<String>,
    value: Robj,
) -> Answer {
    artifacts::write(&mut pack, name, type_name, preview, &value)
}

#[extendr]
fn rs_write_serialized(mut pack: ExternalPtr<OutputPack>, name: &str, type_name: &str, bytes: Robj) -> Answer {
    artifacts::write_serialized(&mut pack, name, type_name, &bytes)
}

#[extendr]
fn rs_write_json(mut pack: ExternalPtr<OutputPack>, name: &str, text: &str) -> Answer {
    artifacts::write_json(&mut pack, name, text)
}

#[extendr]
fn rs_pass_on(mut pack: ExternalPtr<OutputPack>, name: &str, source: ExternalPtr<InputPack>) -> Answer {
    artifacts::pass_on(&mut pack, name, &source)
}

#[extendr]
fn rs_written_size(pack: ExternalPtr<OutputPack>, name: &str) -> f64 {
    artifacts::size(&pack, name)
}

#[extendr]
fn rs_write_items(mut pack: ExternalPtr<OutputPack>, variable: &str, items: List) -> Answer {
    artifacts::write_items(&mut pack, variable, &items)
}

#[extendr]
fn rs_commit(mut pack: ExternalPtr<OutputPack>, outcome: &str) -> Answer {
    artifacts::commit(&mut pack, outcome)
}

#[extendr]
fn rs_flows(root: &str) -> Answer {
    client::flows(root)
}

#[extendr]
fn rs_runs(root: &str, flow: &str) -> Answer {
    client::runs(root, flow)
}

#[extendr]
fn rs_run(root: &str, flow: &str, run: &str) -> Answer {
    client::run(root, flow, run)
}

#[extendr]
fn rs_tasks(root: &str, flow: &str, run: &str) -> Answer {
    client::tasks(root, flow, run)
}

#[extendr]
fn rs_attempts(root: &str, flow: &str, run: &str, task: f64) -> Answer {
    client::attempts(root, flow, run, task)
}

#[extendr]
fn rs_task_metadata(root: &str, flow: &str, run: &str, task: f64) -> Answer {
    client::task_metadata(root, flow, run, task)
}

#[extendr]
fn rs_change_tags(root: &str, flow: &str, run: &str, add: Vec<String>, remove: Vec<String>) -> Answer {
    client::change_tags(root, flow, run, &add, &remove)
}

#[extendr]
fn rs_log(location: &str, flow: &str, run: &str, step: &str, task: f64, attempt: i32, stderr: bool) -> Answer {
    client::log(location, (flow, run, step), task, attempt, stderr)
}

extendr_module! {
    mod metaflow;
    fn rs_version;
    fn rs_hand_over;
    fn rs_fresh_zygote;
    fn rs_fork_safety;
    fn rs_open_descriptors;
    fn rs_spawned_task;
    fn rs_helper_request;
    fn rs_helper_reply;
    fn rs_task_say;
    fn rs_watch_quit;
    fn rs_watch_crashes;
    fn rs_limit_time;
    fn rs_timed_out;
    fn rs_leave;
    fn rs_run_command;
    fn rs_supervise;
    fn rs_decode_spec;
    fn rs_to_json;
    fn rs_from_json;
    fn rs_open_packs;
    fn rs_find_packs;
    fn rs_pack_names;
    fn rs_pack_info;
    fn rs_pack_outcome;
    fn rs_pack_read;
    fn rs_pack_item;
    fn rs_new_pack;
    fn rs_write;
    fn rs_write_serialized;
    fn rs_write_json;
    fn rs_pass_on;
    fn rs_written_size;
    fn rs_write_items;
    fn rs_commit;
    fn rs_flows;
    fn rs_runs;
    fn rs_run;
    fn rs_tasks;
    fn rs_attempts;
    fn rs_task_metadata;
    fn rs_change_tags;
    fn rs_log;
}
