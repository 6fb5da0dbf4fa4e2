# From the arguments of run() to a command line, and the one typed in the shell on top of it.

.commands <- c(
  "run", "resume", "check", "show", "output-dot", "output-raw", "help", "version", "dump", "logs", "tag",
  "package", "batch", "kubernetes", "step-functions", "argo-workflows", "airflow", "spin", "card"
)
.layers <- c("batch", "kubernetes")
.listings <- c(.layers, "step_functions")

# Arguments of run() that are options before the command, and those behind it.
.top_arguments <- c("datastore", "datastore_root", "metadata", "environment", "package_suffixes")
.option_arguments <- c(
  "with", "tag", "max_workers", "max_num_splits", "max_log_size", "origin_run_id", "run_id", "run_id_file", "user",
  "namespace"
)
.command_arguments <- c("resume", "batch", "kubernetes", "step_functions", "show", "help", "logs", "my_runs", "quiet", "other_args")

# list(top =, command =, options =) of what was given to run().
command_of <- function(flow, arguments) {
  given <- list(top = character(), command = character(), options = character())
  if (length(arguments) == 0) {
    return(given)
  }
  if (is.null(names(arguments)) || any(names(arguments) == "")) {
    stop_metaflow("all arguments of run() need a name, such as run(max_workers = 4)", "metaflow_usage_error")
  }
  given$command <- "run"
  arguments <- arguments[!vapply(arguments, is.null, NA)]
  lists <- any(vapply(arguments[names(arguments) %in% .listings], is.character, NA))
  for (name in names(arguments)) given <- with_argument(given, flow, name, arguments[[name]], lists)
  if ("--help" %in% given$top) given$command <- character()
  check_resumed(flow, given$command[1], names(arguments))
  given
}

plus <- function(given, part, ...) {
  given[[part]] <- c(given[[part]], ...)
  given
}

# A parameter of the flow goes before an argument of ours that has its name.
with_argument <- function(given, flow, name, value, lists) {
  parameter <- parameter_named(flow, name)
  if (!is.null(parameter) && !lists) {
    return(plus(given, "options", parameter_option(parameter, value)))
  }
  if (name %in% .command_arguments) {
    return(if (identical(value, FALSE)) given else with_command(given, name, value))
  }
  if (name %in% .top_arguments || (name == "with" && lists)) {
    if (name == "package_suffixes") value <- paste(value, collapse = ",")
    return(plus(given, "top", option_words(name, value)))
  }
  if (name %in% .option_arguments || lists) {
    return(plus(given, "options", option_words(name, value)))
  }
  known <- c(vapply(flow$parameters, function(each) each$attribute, ""), .command_arguments, .top_arguments, .option_arguments)
  stop_metaflow(sprintf("run() has no argument `%s`, and flow `%s` has no parameter of that name.%s",
    name, flow$name, near_match(name, known)), "metaflow_usage_error")
}

with_command <- function(given, name, value) {
  if (name %in% c("help", "quiet")) {
    return(plus(given, "top", paste0("--", name)))
  }
  if (name == "my_runs") {
    return(plus(given, "options", "--my-runs"))
  }
  if (name == "other_args") {
    return(plus(given, "options", as.character(value)))
  }
  if (name %in% .layers && isTRUE(value)) {
    return(plus(given, "options", "--with", name))
  }
  given$command <- c(gsub("_", "-", name), if (is.character(value)) value)
  given
}

option_words <- function(name, value) c(rbind(paste0("--", gsub("_", "-", name)), option_text(value)))

option_text <- function(value) {
  if (is.numeric(value) && !is.object(value)) vapply(value, number_words, "") else as.character(value)
}

# The shortest text that is the number again.
number_words <- function(number) {
  text <- format(number, digits = 15, scientific = FALSE, trim = TRUE)
  if (is.na(number) || as.numeric(text) == number) text else format(number, digits = 17, trim = TRUE)
}

parameter_named <- function(flow, name) {
  found <- Filter(function(each) each$attribute == gsub("-", "_", name), flow$parameters)
  if (length(found) > 0) found[[1]]
}

check_resumed <- function(flow, command, names) {
  parameters <- Filter(function(name) !is.null(parameter_named(flow, name)), names)
  if (identical(command, "resume") && length(parameters) > 0) {
    stop_metaflow(sprintf("a resumed run has the parameters of the run that it resumes: leave out %s",
      paste0("`", parameters, "`", collapse = ", ")), "metaflow_usage_error")
  }
}

# The words that give a parameter a value of R.
parameter_option <- function(parameter, value) {
  option <- paste0("--", parameter$name)
  if (parameter$is_flag && is.logical(value) && length(value) == 1) {
    return(if (isTRUE(value)) option)
  }
  if (parameter$kind == "json") {
    return(c(option, if (is_text(value)) value else to_json(value)))
  }
  texts <- option_text(unlist(lapply(value, function(each) if (is.object(each)) format(each) else each)))
  if (inherits(value, c("Date", "factor"))) texts <- as.character(value)
  separator <- parameter$separator
  if (is.null(separator) && length(texts) != 1) {
    stop_metaflow(sprintf(paste(
      "parameter `%s` takes one value, but run() was given %d: a parameter with a `separator`, or with a default of",
      "several values, takes several"
    ), parameter$name, length(texts)), "metaflow_usage_error")
  }
  if (length(texts) > 1 && any(grepl(separator, texts, fixed = TRUE))) {
    stop_metaflow(sprintf("a value of parameter `%s` contains `%s`, which separates its values",
      parameter$name, separator), "metaflow_usage_error")
  }
  c(option, paste(texts, collapse = separator))
}

# The command line that was typed wins: its command, and its options over those of run().
merge_command_lines <- function(given, typed) {
  position <- which(typed %in% .commands)[1]
  if (is.na(position)) {
    # A misspelt command: the engine says so.
    if (length(typed) > 0 && !startsWith(typed[1], "-")) {
      return(typed)
    }
    if (any(typed %in% c("--help", "--version"))) {
      return(typed)
    }
    if (length(typed) == 0 && length(given$command) == 0 && length(given$top) > 0) {
      return(given$top)
    }
    command <- if (length(given$command) > 0) given$command else "run"
    return(c(given$top, command, given$options, typed))
  }
  top <- typed[seq_len(position - 1)]
  rest <- typed[-seq_len(position)]
  same <- length(given$command) > 0 && given$command[1] == typed[position]
  runs <- length(given$command) > 0 && given$command[1] == "run" && typed[position] %in% c("run", "resume")
  options <- if (same || (runs && typed[position] == "run")) given$options else character()
  more <- if (same && length(rest[!grepl("^-", rest)]) == 0) given$command[-1] else character()
  c(given$top[given$top != "--help"], top, typed[position], more, options, rest)
}
