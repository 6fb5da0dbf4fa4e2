# run() in a session: the flow is saved and a new R process runs it. The session itself is never
# forked: it has windows, connections and threads that a fork would break.

run_in_new_process <- function(flow, given, script) {
  typed <- if (interactive() || is.null(script)) character() else commandArgs(trailingOnly = TRUE)
  arguments <- merge_command_lines(given, typed)
  file <- tempfile("flow", fileext = ".rds")
  on.exit(unlink(file))
  saveRDS(saved_flow(flow, script), file)
  command <- c(file.path(R.home("bin"), "Rscript"), system.file("run.R", package = "metaflow"), arguments)
  variables <- paste0(c(.saved_variable, "R_LIBS"), "=", c(file, paste(.libPaths(), collapse = ":")))
  status <- native(wrap__rs_run_command, command, variables)
  if (status == 130) message("The run was interrupted; its tasks were stopped.")
  status
}

saved_flow <- function(flow, script) {
  functions <- lapply(flow$steps, function(step) step$r_function)
  defaults <- lapply(flow$parameters, function(parameter) parameter$default)
  list(
    flow = as.list.environment(flow, all.names = TRUE),
    globals = needed_globals(c(functions, defaults)),
    packages = setdiff(rev(.packages()), "metaflow"),
    directory = getwd(),
    source = if (is.null(script)) "<flow.R>" else script
  )
}

# Objects of the global environment that the functions use, directly or through one another.
needed_globals <- function(functions) {
  found <- list()
  pending <- unique(unlist(lapply(functions, names_in)))
  while (length(pending) > 0) {
    name <- pending[1]
    pending <- pending[-1]
    if (name %in% names(found) || !exists(name, envir = globalenv(), inherits = FALSE)) next
    value <- get(name, envir = globalenv())
    if (inherits(value, "metaflow_flow")) next
    found[name] <- list(value)
    if (is.function(value)) pending <- union(pending, names_in(value))
  }
  found
}

names_in <- function(f) {
  if (!is.function(f) || is.primitive(f)) {
    return(character())
  }
  unique(c(all.names(body(f)), unlist(lapply(formals(f), all.names))))
}

# In the new process.
run_saved <- function() {
  .state$saved_file <- Sys.getenv(.saved_variable)
  saved <- readRDS(.state$saved_file)
  Sys.unsetenv(.saved_variable)
  .state$saved <- TRUE
  .state$source <- saved$source
  .state$directory <- saved$directory
  for (package in saved$packages) {
    suppressPackageStartupMessages(suppressWarnings(require(package, character.only = TRUE, quietly = TRUE)))
  }
  list2env(saved$globals, envir = globalenv())
  flow <- list2env(saved$flow, parent = emptyenv())
  class(flow) <- "metaflow_flow"
  run(flow)
}
