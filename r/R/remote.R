# The first process of a remote task's container, once the bootstrap
# (crates/compute/src/remote/bootstrap.R) has loaded this package from the code package.

.not_for_tasks <- "^(FERROFLOW_CODE_|FERROFLOW_TASK_SPEC|FERROFLOW_CHILDREN_)"
.packaged_library <- ".mf_code"
# The flow of a session, which has no script.
.packaged_flow <- file.path(.packaged_library, "flow.rds")

# Runs the task that the container is for, and ends the process. `fetch` and `end` are the
# bootstrap's; `children` the list of tasks that share one job.
run_remote <- function(fetch, end, children = NULL) {
  if (!is.null(children)) take_own(children)
  text <- Sys.getenv("FERROFLOW_TASK_SPEC")
  if (!nzchar(text)) text <- rawToChar(fetch("the task", Sys.getenv("FERROFLOW_TASK_SPEC_URL")))
  spec <- tryCatch(native(wrap__rs_decode_spec, text), error = function(e) end(conditionMessage(e), "layer_error"))
  status <- tryCatch(native(wrap__rs_supervise, to_json(container_settings(from_json(spec))), spec), error = function(e) {
    cat(conditionMessage(e), "\n", sep = "", file = stderr())
    1L
  })
  native(wrap__rs_leave, status)
}

# Sets the variables of this container's task, by the index of its job.
take_own <- function(children) {
  own <- from_json(children)[[as.integer(Sys.getenv("AWS_BATCH_JOB_ARRAY_INDEX")) + 1L]]
  do.call(Sys.setenv, own)
}

container_settings <- function(spec) {
  limit <- Sys.getenv("FERROFLOW_TIME_LIMIT")
  list(
    layer = Sys.getenv("FERROFLOW_LAYER"),
    log_prefix = Sys.getenv("FERROFLOW_LOG_PREFIX"),
    lease_key = Sys.getenv("FERROFLOW_LEASE_KEY"),
    lease_seconds = as.numeric(Sys.getenv("FERROFLOW_LEASE_SECONDS")),
    time_limit = if (nzchar(limit)) as.numeric(limit),
    termination_log = Sys.getenv("FERROFLOW_TERMINATION_LOG", "/dev/termination-log"),
    command = list(file.path(R.home("bin"), "R"), "--no-echo", "--no-restore", file_argument(flow_file_in_container())),
    environment = as.list(environment_of_task(spec))
  )
}

flow_file_in_container <- function() {
  if (file.exists(.packaged_flow)) {
    return(file.path(getwd(), .packaged_library, "metaflow", "run.R"))
  }
  file.path(getwd(), Sys.getenv("FERROFLOW_FLOW_FILE"))
}

# `NAME=value` of everything that the task's process finds.
environment_of_task <- function(spec) {
  variables <- as.list(Sys.getenv())
  variables <- variables[!grepl(.not_for_tasks, names(variables))]
  library <- file.path(getwd(), .packaged_library)
  variables$R_LIBS <- paste(c(library, variables$R_LIBS[nzchar(variables$R_LIBS)]), collapse = ":")
  variables$PWD <- getwd()
  if (is.null(variables$R_CONFIG_ACTIVE)) variables$R_CONFIG_ACTIVE <- Sys.getenv("FERROFLOW_LAYER")
  if (file.exists(.packaged_flow)) variables[[.saved_variable]] <- file.path(getwd(), .packaged_flow)
  variables[[.flow_variable]] <- spec$flow
  own <- attributes_by_name(spec$decorators)$environment$vars
  for (name in names(own)) variables[[name]] <- if (is.character(own[[name]])) own[[name]] else to_json(own[[name]])
  paste0(names(variables), "=", unlist(variables))
}
