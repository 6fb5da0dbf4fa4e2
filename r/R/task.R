# Runs one task: sets the scene, runs the step's function, stores what came of it, reports.

run_forked_task <- function(flow, role) {
  opened <- getAllConnections()
  devices <- grDevices_open()
  watch_ends()
  status <- run_task(flow, role)
  close_what_is_open(opened, devices)
  status
}

watch_ends <- function() {
  native(wrap__rs_watch_quit, function(status) end_by_quit(status))
  native(wrap__rs_watch_crashes, function(words) tell_crash(words))
}

grDevices_open <- function() {
  if (isNamespaceLoaded("grDevices")) grDevices::dev.list() else NULL
}

# What R would have written out and closed at the end of the session.
close_what_is_open <- function(opened, devices) {
  if (!identical(devices, grDevices_open())) grDevices::graphics.off()
  for (number in setdiff(getAllConnections(), opened)) {
    try(close(getConnection(number)), silent = TRUE)
  }
}

run_task <- function(flow, role) {
  spec <- role$spec
  spec$root <- store_text(spec$store)
  task <- new.env(parent = emptyenv())
  task$flow <- flow
  task$spec <- spec
  task$decorators <- attributes_by_name(spec$decorators)
  task$outcome <- list(ok = TRUE, success = TRUE, may_retry = TRUE)
  task$own <- list()
  task$code <- 0L
  .state$task <- task
  enter_task(flow, spec)
  if (getOption("warn") == 0) options(warn = 1)
  failure <- failure_of_step(task)
  if (!is.null(failure)) end_by_failure(task, failure)
  store_and_say(task)
  task$code
}

attributes_by_name <- function(decorators) {
  values <- lapply(decorators, function(each) each$attributes)
  names(values) <- vapply(decorators, function(each) each$name, "")
  values
}

# A `core::task::StoreLocation` as the Rust part takes it.
store_text <- function(store) if (store$kind == "local") store$root else to_json(store)

# Runs user code and checks what it came to; the failure, or NULL.
failure_of_step <- function(task) {
  with_failure({
    spec <- task$spec
    check_inputs(spec)
    self <- task$self <- new_self(task$flow, spec)
    if (spec$fallback) {
      stop_metaflow(fallback_text(spec), "metaflow_fallback")
    }
    inputs <- if (spec$join) inputs_of(task$flow, spec)
    task$user_code <- TRUE
    with_time_limit(task$decorators$timeout, spec$step, call_step(task$flow$steps[[spec$step]], self, inputs))
    task$user_code <- FALSE
    task$transition <- transition_of(task, self)
    catch <- task$decorators$catch
    if (!is.null(catch$var)) task$own[catch$var] <- list(NULL)
    NULL
  })
}

# The call reads as the step's name in a traceback.
call_step <- function(step, self, inputs) {
  f <- step$r_function
  if (is.null(f)) {
    return(invisible())
  }
  scene <- new.env(parent = globalenv())
  assign(step$name, f, envir = scene)
  scene$self <- self
  call <- if (step$join) as.call(list(as.name(step$name), quote(self), quote(inputs))) else as.call(list(as.name(step$name), quote(self)))
  if (step$join) scene$inputs <- inputs
  eval(call, scene)
  invisible()
}

with_time_limit <- function(limit, step, code) {
  seconds <- sum(as.numeric(limit$seconds), 60 * as.numeric(limit$minutes), 3600 * as.numeric(limit$hours))
  if (seconds <= 0) {
    return(force(code))
  }
  native(wrap__rs_limit_time, seconds)
  on.exit(native(wrap__rs_limit_time, 0))
  tryCatch(force(code), interrupt = function(i) {
    if (!native(wrap__rs_timed_out)) stop(i)
    stop_metaflow(
      sprintf("step `%s` ran for more than %s second%s, its time limit", step, format(seconds), if (seconds == 1) "" else "s"),
      "metaflow_timeout"
    )
  })
}

check_inputs <- function(spec) {
  if (is.null(spec$expected_inputs)) {
    return(invisible())
  }
  found <- 0
  for (reference in spec$inputs) for (range in reference$tasks) found <- found + range[[2]] - range[[1]] + 1
  if (found != spec$expected_inputs) {
    stop_metaflow(
      sprintf("step `%s` joins %s tasks, but %s are there: the run cannot go on; resume it, which runs the missing ones again",
        spec$step, spec$expected_inputs, found),
      "metaflow_data_error"
    )
  }
}

fallback_text <- function(spec) {
  how <- if (is.null(spec$previous_failure)) "" else paste0("; the last one: ", spec$previous_failure)
  sprintf("step `%s` kept failing over %d attempt%s without an error that catch() could handle%s",
    spec$step, as.integer(spec$attempt), if (spec$attempt == 1) "" else "s", how)
}

# --- transitions ------------------------------------------------------------------------------------

transition_of <- function(task, self) {
  step <- task$flow$steps[[task$spec$step]]
  if (is.null(step$foreach)) {
    return(list(targets = as.list(step$next_step)))
  }
  count <- count_items(task, self, step$foreach)
  list(targets = as.list(step$next_step), num_splits = count, foreach = step$foreach)
}

count_items <- function(task, self, variable) {
  refuse_foreach <- function(problem, class = "metaflow_foreach_error") {
    task$outcome$may_retry <- FALSE
    stop_metaflow(sprintf("the foreach of step `%s` over `%s` %s", task$spec$step, variable, problem), class)
  }
  if (!exists(variable, envir = self, inherits = FALSE)) {
    refuse_foreach(sprintf("has nothing to go over: set self$%s in the step", variable))
  }
  items <- self[[variable]]
  if (!is.vector(items) && !is.factor(items) && !is.list(items) && !is.atomic(items)) {
    refuse_foreach(sprintf("cannot go over an object of class %s: use a vector or a list", class(items)[1]))
  }
  count <- length(items)
  if (count == 0) {
    refuse_foreach("has zero items, so no task would follow: make sure that there is at least one, or branch before")
  }
  if (count > task$spec$max_num_splits) {
    refuse_foreach(sprintf("yields %s child steps, more than the maximum of %s: raise it with --max-num-splits",
      count, task$spec$max_num_splits))
  }
  as.integer(count)
}

# --- failures -----------------------------------------------------------------------------------------

end_by_failure <- function(task, failure) {
  catches <- !is.null(task$decorators$catch) && failure$can_be_caught &&
    task$spec$attempt >= task$spec$max_user_code_retries
  if (catches) {
    catch_failure(task, failure)
    return(invisible())
  }
  report_failure(task, failure)
}

report_failure <- function(task, failure) {
  task$code <- if (failure$code == 0L) 1L else failure$code
  task$outcome[c("ok", "success")] <- list(FALSE, FALSE)
  task$outcome$exception <- failure$exception
  task$transition <- NULL
  task$own[c("_task_ok", "_success")] <- list(FALSE, FALSE)
  task$own[["_exception"]] <- failure$exception
  cat(failure_block(failure, place_of(task$spec, task$self)), file = stderr())
}

catch_failure <- function(task, failure) {
  catch <- task$decorators$catch
  if (!identical(catch$print_exception, FALSE)) {
    lines <- strsplit(failure$text, "\n", fixed = TRUE)[[1]]
    cat(sprintf("catch() caught an error of %s\n", place_of(task$spec, task$self)), paste0(">  ", lines, "\n"),
      sep = "", file = stderr())
  }
  task$code <- 0L
  task$outcome$success <- FALSE
  task$own[c("_task_ok", "_success")] <- list(TRUE, FALSE)
  if (!is.null(catch$var)) task$own[[catch$var]] <- failure$exception
  task$transition <- list(targets = as.list(task$flow$steps[[task$spec$step]]$next_step))
}

# `quit()` in a step: never a success, because what follows is not known.
end_by_quit <- function(status) {
  task <- .state$task
  if (is.null(task) || isTRUE(task$said)) {
    return(invisible())
  }
  text <- sprintf("step `%s` ended by quit() instead of reaching its end: let the function return", task$spec$step)
  report_failure(task, own_failure(text, code = as.integer(status)))
  store_and_say(task)
}

# --- storing ------------------------------------------------------------------------------------------

store_and_say <- function(task) {
  problem <- with_failure({
    store_task(task)
    NULL
  })
  if (!is.null(problem)) {
    # The disk is full, say: the outcome travels on the control channel alone.
    if (task$outcome$ok) {
      report_failure(task, problem)
    } else {
      cat("    The artifacts of this attempt could not be stored: ", problem$exception$message, "\n", sep = "", file = stderr())
    }
  }
  task$said <- TRUE
  native(wrap__rs_task_say, to_json(list(type = "outcome", outcome = outcome_of(task))))
}

outcome_of <- function(task) {
  outcome <- task$outcome
  outcome$imports <- list()
  if (task$outcome$ok) outcome$transition <- task$transition
  outcome
}

store_task <- function(task) {
  spec <- task$spec
  pack <- native(wrap__rs_new_pack, spec$root, spec$flow, spec$run, spec$step, as.numeric(spec$task), as.integer(spec$attempt))
  if (!is.null(task$self)) store_artifacts(pack, task)
  if (is.null(task$self) || !exists("name", envir = task$self, inherits = FALSE)) write_artifact(pack, "name", spec$flow)
  transition <- if (task$outcome$ok) task$transition
  if (!is.null(transition$foreach)) store_items(pack, transition$foreach, task$self[[transition$foreach]])
  own <- c(list(`_current_step` = spec$step), task$own)
  if (is.null(own[["_task_ok"]])) own[c("_task_ok", "_success")] <- list(TRUE, TRUE)
  for (name in names(own)) write_artifact(pack, name, own[[name]])
  if (length(spec$foreach_stack) > 0) native(wrap__rs_write_json, pack, "_foreach_stack", to_json(spec$foreach_stack))
  if (!is.null(transition)) native(wrap__rs_write_json, pack, "_transition", to_json(transition))
  native(wrap__rs_commit, pack, to_json(outcome_of(task)))
}

store_artifacts <- function(pack, task) {
  self <- task$self
  state <- state_of(self)
  for (name in setdiff(ls(self, all.names = TRUE, sorted = FALSE), c(names(task$own), .own_of_task))) {
    source <- state$packs[[name]]
    if (!is.null(source) && is_bound(self, name) && !may_have_changed(state, name, source)) {
      native(wrap__rs_pass_on, pack, name, source)
      next
    }
    write_artifact(pack, name, get(name, envir = self))
  }
}

# What was read and holds references (environments, a data.table) can be changed in place.
may_have_changed <- function(state, name, source) {
  isTRUE(state$read[[name]]) && identical(native(wrap__rs_pack_info, source, name)$tag, "serialized")
}

write_artifact <- function(pack, name, value) {
  type <- class(value)[1]
  if (!native(wrap__rs_write, pack, name, type, preview(value), value)) {
    native(wrap__rs_write_serialized, pack, name, type, serialize_value(value))
  }
}

# Lets splits read their own item where reading all of them would be slow.
store_items <- function(pack, variable, items) {
  if (!is.list(items) || native(wrap__rs_written_size, pack, variable) <= 65536) {
    return(invisible())
  }
  native(wrap__rs_write_items, pack, variable, lapply(items, serialize_value))
}

preview <- function(value) {
  if (is.data.frame(value) || is.matrix(value)) {
    return(sprintf("shape (%d, %d)", nrow(value), ncol(value)))
  }
  if (is.null(value)) {
    return("NULL")
  }
  if (!is.atomic(value) && !is.list(value)) {
    return(NULL)
  }
  if (is.atomic(value) && length(value) == 1) {
    text <- if (is.character(value) && !is.na(value)) encodeString(substr(plain_text(value), 1, 80), quote = "\"") else format(value)
    return(if (is.na(text)) "NA" else text)
  }
  sprintf("%s items", format(length(value), scientific = FALSE))
}
