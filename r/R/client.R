# The client: runs, steps, tasks and artifacts of the past. What is asked of the store is in
# client_store.R.

client_object <- function(class, fields, methods) {
  object <- new.env(parent = emptyenv())
  for (name in names(fields)) makeActiveBinding(name, fields[[name]], object)
  for (name in names(methods)) assign(name, methods[[name]], envir = object)
  class(object) <- c(class, "metaflow_client")
  lockEnvironment(object, bindings = TRUE)
  object
}

generator <- function(name, new) structure(list(new = new, classname = name), class = "metaflow_generator")

#' @export
print.metaflow_generator <- function(x, ...) {
  cat(sprintf("<%s: make one with %s$new(...)>\n", x$classname, x$classname))
  invisible(x)
}

#' @export
print.metaflow_client <- function(x, ...) {
  x$summary()
  invisible(x)
}

# The client's errors are its own class, so that tryCatch() can tell them apart.
not_found <- function(...) stop_metaflow(sprintf(...), "metaflow_not_found")

not_in_namespace <- function(...) stop_metaflow(sprintf(...), "metaflow_namespace_mismatch")

say <- function(label, value) {
  if (length(value) > 0) cat(sprintf("%-14s %s\n", label, paste(value, collapse = ", ")))
}

#' Look at past runs
#'
#' `flow_client$new("HelloFlow")`, `run_client$new("HelloFlow/1")`, `step_client$new("HelloFlow/1/start")`
#' and `task_client$new("HelloFlow/1/start/1")` give objects whose fields tell of the past; `new_flow()`,
#' `new_run()`, `new_step()` and `new_task()` are short for them, and `mf_client$new()` has a method for each.
#' A parent and an id may be given instead of the whole path.
#'
#' Fields of all: `id`, `pathspec`, `parent`, `created_at`, `finished_at`, `tags`. Of a flow: `runs` (ids),
#' `latest_run`, `latest_successful_run`, `run(id)`, `runs_with_tags(...)`. Of a run: `steps`, `end_task`,
#' `finished`, `successful`, `code`, `artifacts`, `step(id)`, `artifact(name)`, `add_tag()`, `remove_tag()`. Of a step:
#' `tasks`, `a_task`, `task(id)`. Of a task: `artifacts`, `artifact(name)`, `exception`, `stdout`, `stderr`,
#' `index`, `successful`, `finished`, `metadata_dict`, `runtime_name`. Each prints a summary.
#'
#' @format Objects with a function `new`.
#' @examples
#' \dontrun{
#' run <- flow_client$new("HelloFlow")$latest_run
#' new_run(paste0("HelloFlow/", run))$artifact("x")
#' }
#' @name client
NULL

#' @rdname client
#' @export
flow_client <- generator("flow_client", function(flow_id) {
  name <- as.character(flow_id)
  if (length(all_runs(name)) == 0) {
    not_found("there is no flow `%s` in %s.%s", name, datastore_root(), near_match(name, all_flows()))
  }
  visible <- function() Filter(in_namespace, all_runs(name))
  if (length(visible()) == 0) {
    not_in_namespace("flow `%s` has no run in namespace `%s`: see all runs after set_namespace(NULL)", name, get_namespace())
  }
  ids <- function(runs) vapply(runs, function(run) run$run, "")
  first_id <- function(runs) if (length(runs) > 0) runs[[1]]$run
  fields <- list(
    id = function() name,
    pathspec = function() name,
    parent = function() NULL,
    tags = function() character(),
    created_at = function() time_of(min(numbers(visible(), "created_at"))),
    finished_at = function() time_of(visible()[[1]]$finished_at),
    runs = function() ids(visible()),
    latest_run = function() first_id(visible()),
    latest_successful_run = function() first_id(Filter(function(run) run$state == "done", visible()))
  )
  methods <- list(
    run = function(run_id) run_client$new(paste0(name, "/", run_id)),
    runs_with_tags = function(...) ids(Filter(function(run) all(c(...) %in% tags_of(run)), visible())),
    summary = function() {
      say("flow", name)
      say("runs", length(visible()))
      say("latest run", first_id(visible()))
      say("created at", format(time_of(min(numbers(visible(), "created_at")))))
    }
  )
  client_object("flow_client", fields, methods)
})

parts_of <- function(object, id, count, what) {
  path <- if (is.character(object)) object else object$pathspec
  if (!is.null(id)) path <- paste0(path, "/", id)
  if (!is_text(path)) {
    stop_metaflow(sprintf("a %s is found by its path, one text in quotes, not by %s", what, one_line(object)), "metaflow_usage_error")
  }
  parts <- strsplit(path, "/", fixed = TRUE)[[1]]
  if (length(parts) != count) {
    stop_metaflow(sprintf("`%s` is not the path of a %s: it has %d parts, such as %s", path, what, count,
      paste(c("Flow", "1", "start", "1")[seq_len(count)], collapse = "/")), "metaflow_usage_error")
  }
  parts
}

#' @rdname client
#' @export
run_client <- generator("run_client", function(flow, run_id = NULL) {
  parts <- parts_of(flow, run_id, 2, "run")
  name <- parts[1]
  id <- parts[2]
  row <- function() {
    found <- find_run(name, id)
    if (is.null(found)) not_found("there is no run `%s/%s` in %s", name, id, datastore_root())
    found
  }
  this <- row()
  if (!in_namespace(this)) {
    not_in_namespace("run `%s/%s` is not in namespace `%s`: see it after set_namespace(NULL)", name, id, get_namespace())
  }
  tasks <- function() all_tasks(name, id)
  step_names <- function() setdiff(rev(unique(vapply(tasks(), function(task) task$step, ""))), "_parameters")
  end_task <- function() {
    ends <- Filter(function(task) task$step == "end", tasks())
    if (length(ends) > 0) paste(name, id, "end", number_text(ends[[1]]$task), sep = "/")
  }
  final <- function() {
    task <- end_task()
    if (is.null(task)) not_found("run `%s/%s` has not come to its end step: it has no artifacts yet", name, id)
    task_client$new(task)
  }
  fields <- list(
    id = function() id,
    pathspec = function() paste0(name, "/", id),
    parent = function() name,
    tags = function() tags_of(row()),
    user_tags = function() as.character(unlist(row()$tags)),
    code = function() NULL,
    created_at = function() time_of(row()$created_at),
    finished_at = function() time_of(row()$finished_at),
    finished = function() row()$state != "running",
    successful = function() row()$state == "done",
    origin_run_id = function() row()$origin_run,
    end_task = end_task,
    steps = step_names,
    artifacts = function() final()$artifacts
  )
  change <- function(add, remove) invisible(native(wrap__rs_change_tags, datastore_root(), name, id, add, remove))
  methods <- list(
    step = function(step_id) step_client$new(paste(name, id, step_id, sep = "/")),
    artifact = function(name) final()$artifact(name),
    add_tag = function(tags) change(as.character(tags), character()),
    remove_tag = function(tags) change(character(), as.character(tags)),
    summary = function() {
      say("run", paste0(name, "/", id))
      say("state", row()$state)
      say("created at", format(time_of(row()$created_at)))
      say("finished at", format(time_of(row()$finished_at)))
      say("tags", unlist(row()$tags))
      say("steps", step_names())
    }
  )
  client_object("run_client", fields, methods)
})

#' @rdname client
#' @export
step_client <- generator("step_client", function(run, step_id = NULL) {
  parts <- parts_of(run, step_id, 3, "step")
  run_client$new(parts[1], parts[2])
  tasks <- function() Filter(function(task) task$step == parts[3], all_tasks(parts[1], parts[2]))
  if (length(tasks()) == 0) {
    steps <- unique(vapply(all_tasks(parts[1], parts[2]), function(task) task$step, ""))
    not_found("run `%s/%s` has no tasks of a step `%s`.%s", parts[1], parts[2], parts[3], near_match(parts[3], steps))
  }
  path <- paste(parts, collapse = "/")
  ids <- function() vapply(tasks(), function(task) number_text(task$task), "")
  fields <- list(
    id = function() parts[3],
    pathspec = function() path,
    parent = function() paste(parts[1:2], collapse = "/"),
    tags = function() tags_of(find_run(parts[1], parts[2])),
    created_at = function() time_of(min(numbers(tasks(), "created_at"))),
    finished_at = function() time_of(max(numbers(tasks(), "finished_at"))),
    tasks = ids,
    a_task = function() ids()[1]
  )
  methods <- list(
    task = function(task_id) task_client$new(paste(path, task_id, sep = "/")),
    summary = function() {
      say("step", path)
      say("tasks", length(ids()))
      say("states", states_text(vapply(tasks(), function(task) task$state, "")))
    }
  )
  client_object("step_client", fields, methods)
})

states_text <- function(states) {
  counted <- table(states)
  paste(counted, names(counted))
}

#' @rdname client
#' @export
task_client <- generator("task_client", function(step, task_id = NULL) {
  parts <- parts_of(step, task_id, 4, "task")
  run_client$new(parts[1], parts[2])
  number <- suppressWarnings(as.numeric(parts[4]))
  path <- paste(parts, collapse = "/")
  row <- function() {
    found <- if (!is.na(number)) latest_attempt(parts[1], parts[2], number)
    if (is.null(found) || found$step != parts[3]) not_found("there is no task `%s` in %s", path, datastore_root())
    found
  }
  row()
  stored <- function() pack_of(parts[1], parts[2], row())
  names_in_pack <- function(stored) if (!is.null(stored)) native(wrap__rs_pack_names, state_of(stored)$pack)
  names_of <- function() {
    held <- stored()
    if (is.null(held)) character() else sort(grep("^_", names(held), value = TRUE, invert = TRUE))
  }
  read <- function(stored, name) read_artifact(state_of(stored)$pack, name, stored)
  entries <- function() native(wrap__rs_task_metadata, datastore_root(), parts[1], parts[2], number)
  fields <- list(
    id = function() parts[4],
    pathspec = function() path,
    parent = function() paste(parts[1:3], collapse = "/"),
    tags = function() tags_of(find_run(parts[1], parts[2])),
    created_at = function() time_of(row()$created_at),
    finished_at = function() time_of(row()$finished_at),
    finished = function() row()$state %in% c("done", "failed", "cancelled", "lost"),
    successful = function() isTRUE(row()$ok),
    artifacts = names_of,
    exception = function() {
      held <- stored()
      cause <- row()$cause
      if (!is.null(held)) {
        native(wrap__rs_pack_outcome, state_of(held)$pack)$exception
      } else if (!is.null(cause)) {
        list(type = cause$kind, message = cause$text, traceback = NULL)
      }
    },
    index = function() if (length(row()$foreach_path) > 0) as.integer(rev(unlist(row()$foreach_path))[1]),
    code = function() NULL,
    metadata_dict = function() {
      values <- entries()
      stats_named(lapply(values, function(entry) entry$value), vapply(values, function(entry) entry$name, ""))
    },
    runtime_name = function() {
      system <- as.character(unlist(find_run(parts[1], parts[2])$system_tags))
      sub("^runtime:", "", grep("^runtime:", system, value = TRUE))
    },
    stdout = function() log_of(parts[1], parts[2], row(), FALSE),
    stderr = function() log_of(parts[1], parts[2], row(), TRUE)
  )
  methods <- list(
    artifact = function(name) {
      held <- stored()
      if (is.null(held)) {
        not_found("task `%s` has no artifact `%s`: it %s", path, name, ending(row()))
      }
      if (!name %in% names_in_pack(held)) {
        not_found("task `%s` has no artifact `%s`.%s", path, name, near_match(name, names_of()))
      }
      read(held, name)
    },
    summary = function() {
      say("task", path)
      say("state", row()$state)
      say("cause", row()$cause$text)
      say("created at", format(time_of(row()$created_at)))
      say("finished at", format(time_of(row()$finished_at)))
      say("artifacts", names_of())
    }
  )
  client_object("task_client", fields, methods)
})

# Why a task has stored nothing.
ending <- function(row) {
  if (is.null(row$finished_at)) {
    return("has not finished")
  }
  paste0("ended before it stored anything", if (!is.null(row$cause)) paste0(" (", row$cause$text, ")"))
}

stats_named <- function(values, names) {
  names(values) <- names
  values[!duplicated(names, fromLast = TRUE)]
}

#' @rdname client
#' @export
mf_client <- generator("mf_client", function() {
  methods <- list(
    flow = function(flow_id) flow_client$new(flow_id),
    run = function(flow_client, run_id) run_client$new(flow_client, run_id),
    step = function(run_client, step_id) step_client$new(run_client, step_id),
    task = function(step_client, task_id) task_client$new(step_client, task_id),
    summary = function() say("flows", list_flows())
  )
  client_object("mf_client", list(flow_ids = function() list_flows()), methods)
})

#' @rdname client
#' @param flow_id,run_id,step_id,task_id Ids; a run's is its number, a step's its name.
#' @param flow,run,step The parent, or the whole path.
#' @export
new_flow <- function(flow_id) flow_client$new(flow_id)

#' @rdname client
#' @export
new_run <- function(flow, run_id = NULL) run_client$new(flow, run_id)

#' @rdname client
#' @export
new_step <- function(run, step_id = NULL) step_client$new(run, step_id)

#' @rdname client
#' @export
new_task <- function(step, task_id = NULL) task_client$new(step, task_id)

#' @rdname client
#' @export
list_flows <- function() {
  Filter(function(name) any(vapply(all_runs(name), in_namespace, NA)), all_flows())
}
