# From the arguments of run() to a command line, and the one typed in the shell on top of it.

.commands <- c(
  "run", "resume", "check", "show", "output-dot", "output-raw", "help", "version", "dump", "logs", "tag",
  "package", "batch", "kubernetes", "step-functions", "argo-workflows", "airflow", "spin", "card"
)
.listings <- c("batch", "kubernetes")

# list(top =, command =, options =) of what was given to run().
command_of <- function(flow, arguments) {
  if (length(arguments) == 0) {
    return(list(top = character(), command = character(), options = character()))
  }
  if (is.null(names(arguments)) || any(names(arguments) == "")) {
    stop_metaflow("all arguments of run() need a name, such as run(max_workers = 4)", "metaflow_usage_error")
  }
  top <- options <- character()
  add <- function(name, value) options <<- c(options, rbind(paste0("--", name), as.character(value)))
  command <- "run"
  listing <- NULL
  for (name in names(arguments)) {
    value <- arguments[[name]]
    if (is.null(value) || (identical(value, FALSE) && name %in% c("resume", "show", "help", .listings))) next
    if (name == "resume") {
      command <- c("resume", if (is.character(value)) value)
    } else if (name %in% .listings) {
      if (isTRUE(value)) add("with", name) else listing <- c(name, value)
    } else if (name == "show") {
      command <- "show"
    } else if (name == "help") {
      top <- c(top, "--help")
    } else if (name == "logs") {
      command <- c("logs", value)
    } else if (name == "my_runs") {
      if (isTRUE(value)) options <- c(options, "--my-runs")
    } else if (name == "package_suffixes") {
      top <- c(top, "--package-suffixes", paste(value, collapse = ","))
    } else if (name == "other_args") {
      options <- c(options, as.character(value))
    } else if (name %in% c("with", "tag", "max_workers", "max_num_splits", "origin_run_id", "run_id", "user", "namespace")) {
      add(gsub("_", "-", name), value)
    } else {
      options <- c(options, parameter_option(flow, name, value))
    }
  }
  if (!is.null(listing)) command <- listing
  if ("--help" %in% top) command <- character()
  list(top = top, command = command, options = options)
}

parameter_option <- function(flow, name, value) {
  names <- vapply(flow$parameters, function(each) each$name, "")
  attributes <- vapply(flow$parameters, function(each) each$attribute, "")
  known <- names[attributes == gsub("-", "_", name)]
  option <- paste0("--", if (length(known) > 0) known[1] else gsub("_", "-", name))
  flags <- names[vapply(flow$parameters, function(each) each$is_flag, NA)]
  if (isTRUE(value) && (length(known) == 0 || known[1] %in% flags)) {
    return(option)
  }
  if (identical(value, FALSE) && length(known) > 0 && known[1] %in% flags) {
    return(character())
  }
  if (is.list(value)) value <- to_json(value)
  c(option, paste(format(value, digits = 15, trim = TRUE, scientific = FALSE), collapse = ","))
}

# The command line that was typed wins: its command, and its options over those of run().
merge_command_lines <- function(given, typed) {
  position <- which(typed %in% .commands)[1]
  if (is.na(position)) {
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
