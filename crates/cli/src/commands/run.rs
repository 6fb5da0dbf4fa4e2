//! `run` and `resume`: joins the concrete parts, starts the engine and tells how it ended.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Once};

use ferroflow_core::graph::Graph;
use ferroflow_core::id::{RunId, StepName};
use ferroflow_core::metadata::{NewRun, RunState};
use ferroflow_core::port::{EventSink, MetadataError, MetadataStore};
use ferroflow_core::run::{Line, ResumePlan, Run, RunEnd, RunSettings};
use ferroflow_core::task::StoreLocation;
use ferroflow_core::wire::Request;
use ferroflow_engine::{Mailbox, Parts, StopRequest, Unfinished, clock, drive, resume};
use ferroflow_store::remote::log::log_store;
use ferroflow_store::{Datastore, SqliteMetadata};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::adoption;
use crate::again;
use crate::arguments::{ResumeOptions, RunOptions};
use crate::checks;
use crate::context::{Context, latest_run_file};
use crate::datastore;
use crate::layers::{self, Plan, Registered};
use crate::origin;
use crate::report::Failure;
use crate::terminal;
use crate::unread;

/// `run`: exit code of the command.
pub async fn run(context: &Context, options: RunOptions, given: BTreeMap<String, Vec<String>>) -> Result<u8, Failure> {
    checks::supported(context)?;
    let user = context.config.user.clone();
    context.ask(Request::Convert { id: 0, given, user }).await?;
    let graph = checks::graph_to_run(context, &options.with)?;
    let layers = layers::plan(context, &graph).await?;
    let metadata = open_for_writing(context)?;
    let store = datastore::for_new_runs(&context.config, &context.top, &context.root)?;
    datastore::check(&store, &context.flow.name)?;
    let run = create_run(context, &metadata, &graph, &options, (None, &[]), &store)?;
    write_file(&latest_run_file(&context.root, &context.flow.name), run.as_str())?;
    write_run_files(context, &options, &run)?;
    let written = context
        .ask(Request::WriteParameters {
            id: 0,
            store: store.clone(),
            flow: context.flow.name.clone(),
            run: run.clone(),
        })
        .await;
    if let Err(failure) = written {
        give_up(context, &metadata, &run, &failure);
        return Err(failure);
    }
    start(context, &options, graph, metadata, run, (store, layers, None)).await
}

/// `resume`: nothing is left behind when it cannot start (difference 9).
pub async fn resume(context: &Context, resume: ResumeOptions, options: RunOptions) -> Result<u8, Failure> {
    checks::supported(context)?;
    let is_named = resume.origin_run_id.is_some();
    let Some(origin) = resume.origin_run_id.or_else(|| context.latest_run()) else {
        return Err(Failure::invalid_command(
            "a run id to resume is required: there is no latest run in this folder. Specify --origin-run-id.",
        ));
    };
    let graph = checks::graph_to_run(context, &options.with)?;
    let layers = layers::plan(context, &graph).await?;
    let rerun_from = resume.step.map(StepName::from);
    let not_found = |text: String| {
        Failure::invalid_command(format!("Resume could not find run id {origin} of {}: {text}", context.flow.name))
    };
    if context.root_is_new {
        return Err(not_found("nothing was run in this folder".to_owned()));
    }
    let metadata = open_for_writing(context)?;
    let origin = RunId::from(origin.as_str());
    outln!("{}", line_now(&Line::GatheringOrigin));
    if !is_named && let Some(remark) = origin::got_further(&metadata.runs(&context.flow.name)?, &origin) {
        context.say(&remark);
    }
    let plan = resume::plan(&metadata, &context.flow.name, &origin, rerun_from).map_err(|error| match error {
        MetadataError::NotFound(text) => not_found(text),
        error => error.into(),
    })?;
    plan.check(&graph).map_err(Failure::invalid_command)?;
    if let Some(remark) = origin::left_layers(&origin, &plan.tasks, &graph) {
        context.say(&remark);
    }
    let store = datastore::for_new_runs(&context.config, &context.top, &context.root)?;
    datastore::check(&store, &context.flow.name)?;
    datastore::bring(context, &store, &metadata.run(&context.flow.name, &origin)?, &plan)?;
    let layers = layers.adopting(adoption::find(context, &metadata, &plan, &graph).await?);
    let run = create_run(context, &metadata, &graph, &options, (Some(origin), &layers.taken()), &store)?;
    write_run_files(context, &options, &run)?;
    start(context, &options, graph, metadata, run, (store, layers, Some(plan))).await
}

fn line_now(line: &Line) -> String {
    let zone = jiff::tz::TimeZone::system();
    format!("{} {line}", terminal::local_time(clock::now(), &zone))
}

fn open_for_writing(context: &Context) -> Result<SqliteMetadata, Failure> {
    if context.root_is_new {
        let root = context.root.display();
        context.say(&match datastore::kind(&context.config, &context.top) {
            "local" => format!("Runs are kept in a new local datastore: {root}"),
            kind => format!("Runs are recorded in a new folder, {root}; artifacts and logs are kept in {kind}"),
        });
    }
    std::fs::create_dir_all(&context.root).map_err(|error| {
        Failure::new("Data store error", format!("cannot create the datastore `{}`: {error}", context.root.display()))
    })?;
    context.metadata(true)
}

fn create_run(
    context: &Context,
    metadata: &SqliteMetadata,
    graph: &Graph,
    options: &RunOptions,
    (origin_run, taken): (Option<RunId>, &[RunId]),
    store: &StoreLocation,
) -> Result<RunId, Failure> {
    let new = NewRun {
        flow: context.flow.name.clone(),
        user: context.config.user.clone(),
        tags: options.tags.clone(),
        system_tags: system_tags(context),
        origin_run,
        graph: serde_json::to_string(&*graph.flow).expect("a flow is plain data"),
        created_at: clock::now(),
        engine: ferroflow_store::engine_identity_of_this_process(),
        store: datastore::recorded(store),
    };
    metadata.create_run_from(&new, taken).map_err(|error| match error {
        MetadataError::TakenOver(text) => Failure::invalid_command(text),
        error => error.into(),
    })
}

fn system_tags(context: &Context) -> Vec<String> {
    vec![
        context.config.identity.clone(),
        format!("runtime:{}", context.config.runtime_name),
        format!("{}_version:{}", context.hello.language.to_lowercase(), context.hello.language_version),
        format!("metaflow_version:{}", env!("CARGO_PKG_VERSION")),
    ]
}

/// Files that tell other programs which run this is; whole or not at all.
fn write_run_files(context: &Context, options: &RunOptions, run: &RunId) -> Result<(), Failure> {
    if let Some(path) = &options.run_id_file {
        write_file(&context.cwd.join(path), run.as_str())?;
    }
    if let Some(path) = &options.runner_attribute_file {
        // As the client's `metadata()` takes and tells it: the folder around the datastore.
        let metadata = format!("local@{}", context.root.parent().unwrap_or(&context.root).display());
        let attributes = serde_json::json!({
            "run_id": run.as_str(), "flow_name": context.flow.name, "metadata": metadata,
        });
        // Not renamed into place: callers pass a fifo.
        std::fs::write(context.cwd.join(path), attributes.to_string())
            .map_err(|error| Failure::new("Flow failed", format!("cannot write `{path}`: {error}")))?;
    }
    Ok(())
}

fn write_file(path: &Path, text: &str) -> Result<(), Failure> {
    let problem =
        |error: std::io::Error| Failure::new("Data store error", format!("cannot write `{}`: {error}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(problem)?;
    }
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, path)).map_err(problem)
}

/// Records that a registered run failed before its first task.
fn give_up(context: &Context, metadata: &SqliteMetadata, run: &RunId, failure: &Failure) {
    use ferroflow_core::metadata::Record;
    use ferroflow_core::task::{Cause, CauseKind};
    let cause = Some(Cause::new(CauseKind::LayerError, failure.message.clone()));
    let record = Record::RunState { state: RunState::Failed, cause, at: clock::now() };
    if let Err(error) = metadata.record(&context.flow.name, run, &[record]) {
        errln!("The failure of run {run} could not be recorded: {error}");
    }
}

async fn start(
    context: &Context,
    options: &RunOptions,
    graph: Graph,
    metadata: SqliteMetadata,
    run: RunId,
    (store, layers, plan): (StoreLocation, Plan, Option<ResumePlan>),
) -> Result<u8, Failure> {
    let (mailbox, letters) = Mailbox::new();
    let created_at = metadata.run(&context.flow.name, &run)?.created_at;
    let events: Arc<dyn EventSink> = mailbox;
    let layer = layers.layer(context, &graph, &Registered { run: &run, created_at, store: &store }, &events)?;
    let machine = Run::new(Arc::new(graph), run_settings(context, options, &run, store.clone()), plan)
        .map_err(|text| Failure::new("Internal error", text))?;
    let parts = Parts {
        layer,
        metadata: Arc::new(metadata),
        logs: Arc::from(log_store(Datastore::open(&store)?)),
        console: terminal::for_this_process(),
        flow: context.flow.name.clone(),
        run: run.clone(),
        max_log_size: options.max_log_size,
    };
    let stops = watch_signals()?;
    let end = drive(parts, machine, letters, stops).await.map_err(|Unfinished(error)| match error {
        MetadataError::TakenOver(text) => {
            Failure::new("Run taken over", format!("{text}. This engine stops and leaves everything to it."))
        }
        error => Failure::new(
            "Data store error",
            format!("run {run} was stopped because what happens could not be recorded: {error}"),
        ),
    })?;
    Ok(tell_end(context, options, &run, &end))
}

fn run_settings(context: &Context, options: &RunOptions, run: &RunId, store: StoreLocation) -> RunSettings {
    let namespace = match options.namespace.as_deref() {
        None => Some(context.config.identity.clone()),
        Some("") => None,
        Some(name) => Some(name.to_owned()),
    };
    RunSettings {
        flow: context.flow.name.clone(),
        run: run.clone(),
        store,
        user: context.config.user.clone(),
        identity: context.config.identity.clone(),
        namespace,
        tags: options.tags.clone(),
        max_workers: options.max_workers,
        max_num_splits: options.max_num_splits,
        layer: adoption::LOCAL.to_owned(),
    }
}

/// SIGINT, SIGTERM and SIGHUP become requests to stop.
fn watch_signals() -> Result<UnboundedReceiver<StopRequest>, Failure> {
    let (sender, receiver) = unbounded_channel();
    let kinds =
        [(SignalKind::interrupt(), "SIGINT"), (SignalKind::terminate(), "SIGTERM"), (SignalKind::hangup(), "SIGHUP")];
    for (kind, name) in kinds {
        let mut signals = signal(kind)
            .map_err(|error| Failure::new("Internal error", format!("cannot watch for {name}: {error}")))?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                static ONCE: Once = Once::new();
                ONCE.call_once(unread::give_up_on_readers);
                if sender.send(StopRequest { signal: name.to_owned() }).is_err() {
                    return;
                }
            }
        });
    }
    Ok(receiver)
}

/// The closing words on stderr, and the exit code.
fn tell_end(context: &Context, options: &RunOptions, run: &RunId, end: &RunEnd) -> u8 {
    if let Some(failed) = &end.failed {
        Failure::new("Step failure", format!("Step {} (task-id {}) failed.", failed.step, failed.task)).print();
    } else if let (Some(cause), None) = (&end.cause, &end.signal)
        && end.state != RunState::Done
    {
        Failure::new("Flow failed", cause.text.clone()).print();
    }
    match (end.state, end.signal.as_deref()) {
        (RunState::Done, _) => 0,
        (_, Some(signal)) => {
            unread::say("Aborted!\n");
            hint(context, options, run);
            match signal {
                "SIGINT" => 130,
                "SIGHUP" => 129,
                _ => 143,
            }
        }
        _ => {
            hint(context, options, run);
            1
        }
    }
}

fn hint(context: &Context, options: &RunOptions, run: &RunId) {
    context.say(&format!(
        "To finish this run without redoing what is done: {}",
        context.hello.typed(&again::resume(&context.top, options, run))
    ));
}
