# current(): where the running code is.

#' Where the running code is
#'
#' @param value One of `"flow_name"`, `"run_id"`, `"step_name"`, `"task_id"`, `"pathspec"`,
#'   `"retry_count"`, `"origin_run_id"`, `"namespace"`, `"username"`, `"tags"`, `"is_running_flow"` and
#'   `"parameter_names"`; without it, all of them as a list.
#' @return The value; NULL outside of a running step.
#' @export
current <- function(value) {
  values <- .state$current
  all <- c(values, list(is_running_flow = !is.null(values)))
  if (missing(value)) {
    return(all)
  }
  known <- c(
    "flow_name", "run_id", "step_name", "task_id", "pathspec", "retry_count", "origin_run_id", "namespace",
    "username", "tags", "is_running_flow", "parameter_names"
  )
  if (!is_text(value) || !value %in% known) {
    stop_metaflow(sprintf("current() has no `%s`.%s", paste(value, collapse = " "), near_match(value, known)),
      "metaflow_usage_error")
  }
  all[[value]]
}

enter_task <- function(flow, spec) {
  place <- c(spec$flow, spec$run, spec$step, format(spec$task, scientific = FALSE))
  .state$current <- list(
    flow_name = spec$flow, run_id = spec$run, step_name = spec$step, task_id = place[4],
    pathspec = paste(place, collapse = "/"), retry_count = as.integer(spec$attempt), origin_run_id = spec$origin_run,
    namespace = spec$identity, username = spec$user, tags = unlist(spec$tags),
    parameter_names = vapply(flow$parameters, function(each) each$attribute, "")
  )
  .state$root <- if (is.null(spec$store$options$metadata)) spec$store$root else spec$store$options$metadata
  .state$namespace <- list(spec$namespace)
  Sys.setenv(METAFLOW_RUN_ID = spec$run, METAFLOW_USER = spec$user)
  if (!nzchar(Sys.getenv("METAFLOW_RUNTIME_ENVIRONMENT"))) Sys.setenv(METAFLOW_RUNTIME_ENVIRONMENT = "local")
}
