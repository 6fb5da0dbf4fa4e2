# run(): which role this process has, and handing the flow to the engine.

.task_variable <- "FERROFLOW_TASK_FD"
.spec_variable <- "FERROFLOW_TASK_SPEC_FD"
.zygote_variable <- "FERROFLOW_ZYGOTE_FD"
.pipe_variable <- "FERROFLOW_ZYGOTE_PIPE_FD"
.settings_variable <- "FERROFLOW_ZYGOTE_SETTINGS"
.twin_variable <- "FERROFLOW_TWIN_FILE"
.flow_variable <- "FERROFLOW_R_FLOW"
.saved_variable <- "FERROFLOW_R_SAVED"

#' Run a flow
#'
#' At the end of a script, `run()` makes the script a program: `Rscript flow.R run` runs the flow,
#' `Rscript flow.R --help` tells what else there is. What is given on the command line wins over the
#' arguments here. In an interactive session the flow is saved and run by a new R process, whose output
#' is shown; interrupting it cancels the run's tasks.
#'
#' Under Rscript nothing after the last `run()` of a script is executed: the process becomes the run's
#' engine, whose exit code is the run's.
#'
#' @param flow The flow, usually piped in.
#' @param ... Values of the flow's parameters, and any of: `resume` (TRUE or the name of a step),
#'   `origin_run_id`, `batch` or `kubernetes` (TRUE, `"list"` or `"kill"`, with `my_runs`, `run_id` and
#'   `user`), `with`, `tag`, `max_workers`, `max_num_splits`, `max_log_size`, `package_suffixes`, `datastore`,
#'   `datastore_root`, `logs` (`"run/step"`), `show`, `help`, `quiet`, and `other_args` (further arguments as one
#'   would type them). Several values are a vector.
#' @return In a session, the exit code, invisibly.
#' @export
run <- function(flow = NULL, ...) {
  check_flow(flow, "run")
  if (!is_this_flow(flow)) {
    return(invisible(0L))
  }
  given <- command_of(flow, list(...))
  role <- role_of_process()
  if (role != "start") {
    become(flow, role)
  }
  script <- script_file()
  if (interactive() || is.null(script) || (!isTRUE(.state$saved) && goes_on(script))) {
    return(invisible(run_in_new_process(flow, given, script)))
  }
  start(flow, script, merge_command_lines(given, commandArgs(trailingOnly = TRUE)))
}

# A process that we started for one flow of a script with several passes by the others.
is_this_flow <- function(flow) {
  Sys.getenv(.flow_variable) %in% c("", flow$name)
}

role_of_process <- function() {
  for (role in c(task = .task_variable, twin = .twin_variable, zygote = .zygote_variable)) {
    if (nzchar(Sys.getenv(role))) {
      return(role)
    }
  }
  "start"
}

# The variable must not reach what the user's code starts.
take_variable <- function(name) {
  value <- Sys.getenv(name)
  Sys.unsetenv(name)
  if (nzchar(value)) value else NULL
}

become <- function(flow, role) {
  Sys.unsetenv(.flow_variable)
  if (role == .task_variable) {
    task <- native(wrap__rs_spawned_task, take_variable(.task_variable), take_variable(.spec_variable))
    watch_ends()
    status <- run_task(flow, task)
    quit(save = "no", status = status)
  }
  if (role == .twin_variable) {
    saveRDS(globalenv()$.Random.seed, take_variable(.twin_variable))
    quit(save = "no", status = 0)
  }
  task <- native(
    wrap__rs_fresh_zygote, take_variable(.zygote_variable), take_variable(.pipe_variable),
    take_variable(.settings_variable), origin(flow, script_file())
  )
  act(flow, task)
}

# The script that Rscript runs, as an absolute path; NULL in a session.
script_file <- function() {
  argument <- grep("^--file=", commandArgs(), value = TRUE)
  if (length(argument) == 0) {
    return(NULL)
  }
  file <- typed_script()
  if (!grepl("^/", file)) file <- file.path(.state$directory, file)
  if (file.exists(file)) file else NULL
}

# The file that the user wrote: a saved flow is run by a script of ours.
source_file <- function(script) if (isTRUE(.state$saved)) .state$source else script

# Whether a script does more after the expression that is being evaluated: then its process must not
# become the engine.
goes_on <- function(script, running = sys.calls()[[1]]) {
  expressions <- tryCatch(parse(script, keep.source = FALSE), error = function(e) expression())
  length(expressions) > 0 && !contains_call(expressions[[length(expressions)]], running)
}

contains_call <- function(expression, wanted) {
  identical(expression, wanted) ||
    (is.call(expression) && any(vapply(as.list(expression), contains_call, NA, wanted = wanted)))
}

start <- function(flow, script, arguments) {
  problem <- first_problem(flow, source_file(script))
  if (!is.null(problem)) {
    refuse("Validity checker found an issue", problem$message, source_file(script), problem$line)
  }
  hello <- hello_of(flow, script, arguments)
  seeds <- seeds_of(flow, script)
  if (seeds == "drop") rm(".Random.seed", envir = globalenv())
  if (any(c("run", "resume") %in% arguments)) rehearse()
  # A collection in a fork would copy the pages of what was read here.
  gc(full = FALSE)
  role <- native(wrap__rs_hand_over, engine_file(), to_json(hello), origin(flow, script))
  act(flow, role)
}

# What a fork of this process does; never returns to the script.
act <- function(flow, role) {
  if (role$role != "over") start_ticks()
  status <- switch(role$role,
    helper = serve_as_helper(flow),
    task = run_forked_task(flow, role),
    over = {
      unlink(tempdir(), recursive = TRUE)
      0L
    }
  )
  native(wrap__rs_leave, as.integer(status))
}

# An error of the flow's, in the shape all of them have.
refuse <- function(headline, message, file = NULL, line = 0L) {
  place <- if (is.null(file)) "" else paste0(" in file ", file)
  if (line > 0) place <- paste0(place, " on line ", line)
  lines <- c(paste0(headline, place, ":"), strsplit(message, "\n", fixed = TRUE)[[1]])
  cat(paste0("    ", lines, "\n"), "\n", sep = "", file = stderr())
  quit(save = "no", status = 1)
}

hello_of <- function(flow, script, arguments) {
  typed <- if (isTRUE(.state$saved)) basename(.state$source) else typed_script()
  list(
    protocol = 1L,
    language = "R",
    language_version = paste(R.version$major, R.version$minor, sep = "."),
    executable = file.path(R.home("bin"), "Rscript"),
    script = typed,
    arguments = as.list(arguments),
    pid = Sys.getpid(),
    module_folder = system.file(package = "metaflow"),
    saved_flow = if (isTRUE(.state$saved)) .state$saved_file,
    flow = describe_flow(flow, source_file(script))
  )
}

# Between Rscript and R a space in a file's name is written so.
.space <- "~+~"

typed_script <- function() {
  file <- sub("^--file=", "", grep("^--file=", commandArgs(), value = TRUE)[1])
  gsub(.space, " ", file, fixed = TRUE)
}

file_argument <- function(file) paste0("--file=", gsub(" ", .space, file, fixed = TRUE))

# How to start a process like this one (`server::Origin`).
origin <- function(flow, script) {
  stop_ticks()
  arguments <- commandArgs()
  own <- cumsum(arguments == "--args") == 0
  command <- arguments[own]
  command[1] <- file.path(R.home("bin"), "R")
  command[grepl("^--file=", command)] <- file_argument(script)
  to_json(list(
    command = as.list(command),
    directory = .state$directory,
    environment = as.list(c(.state$environment, paste0(.flow_variable, "=", flow$name))),
    spawn_reason = native(wrap__rs_fork_safety, .state$descriptors)
  ))
}

engine_file <- function() {
  chosen <- Sys.getenv("FERROFLOW_ENGINE")
  if (nzchar(chosen)) {
    if (file.access(chosen, 1) != 0) {
      refuse("Incorrect installation", sprintf("FERROFLOW_ENGINE names `%s`, which is not an executable file.", chosen))
    }
    return(chosen)
  }
  installed <- system.file("bin", "metaflow", package = "metaflow")
  if (!nzchar(installed)) {
    refuse("Incorrect installation",
      "the engine `metaflow` is not in the installed package: install the package again, or set FERROFLOW_ENGINE to its path.")
  }
  installed
}

# Random numbers that the script drew while it was read: "keep" if it had set a seed (a new process
# would come to the same state), "drop" if not (each task then has numbers of its own), "none".
seeds_of <- function(flow, script) {
  if (!exists(".Random.seed", envir = globalenv(), inherits = FALSE)) {
    return("none")
  }
  file <- tempfile("seed")
  variables <- paste0(c(.twin_variable, .flow_variable), "=", c(file, flow$name))
  arguments <- commandArgs()
  arguments <- arguments[cumsum(arguments == "--args") == 0][-1]
  arguments[grepl("^--file=", arguments)] <- file_argument(script)
  system2(file.path(R.home("bin"), "R"), shQuote(arguments), stdout = FALSE, stderr = FALSE, env = variables)
  other <- tryCatch(suppressWarnings(readRDS(file)), error = function(e) NULL)
  unlink(file)
  if (identical(other, globalenv()$.Random.seed)) "keep" else "drop"
}
