# Building a flow: metaflow() %>% parameter() %>% step() %>% run(). What is wrong with a flow is
# collected and told when it is run, with the line of the call.

#' Begin a flow
#'
#' @param cls Name of the flow, in quotes. The flow is also assigned to a global variable of that name.
#' @param ... Decorators of the flow, made by [decorator()].
#' @return The flow, to be piped into [parameter()], [step()] and [run()].
#' @examples
#' metaflow("HelloFlow") %>%
#'   step(step = "start", r_function = function(self) print("Hi"), next_step = "end") %>%
#'   step(step = "end")
#' @export
metaflow <- function(cls, ...) {
  if (!is_text(cls) || !grepl("^[A-Za-z][A-Za-z0-9_]*$", cls)) {
    stop_metaflow("the name of a flow is a word of letters, digits and `_`, such as metaflow(\"HelloFlow\")",
      "metaflow_usage_error")
  }
  flow <- new.env(parent = emptyenv())
  flow$name <- cls
  flow$steps <- list()
  flow$parameters <- list()
  flow$problems <- list()
  flow$decorators <- decorators_in(list(...), "metaflow")
  class(flow) <- "metaflow_flow"
  assign(cls, flow, envir = globalenv())
  flow
}

decorators_in <- function(arguments, call) {
  is_decorator <- vapply(arguments, inherits, NA, what = "metaflow_decorator")
  if (any(!is_decorator)) {
    named <- names(arguments)[!is_decorator]
    first <- if (length(named) > 0 && nzchar(named[1])) named[1] else NULL
    known <- c("step", "r_function", "next_step", "foreach", "join", "parameter", "required", "help", "default", "type")
    message <- if (is.null(first) && call == "step" && is_text(arguments[!is_decorator][[1]])) {
      sprintf("step() takes the step's name as `step`: step(step = \"%s\", ...)", arguments[!is_decorator][[1]])
    } else if (is.null(first)) {
      sprintf("%s() got a %s where it takes decorators, such as resources(memory = 8000)",
        call, class(arguments[!is_decorator][[1]])[1])
    } else {
      sprintf("%s() has no argument `%s`.%s", call, first, near_match(first, known))
    }
    stop_metaflow(message, "metaflow_usage_error")
  }
  unname(arguments)
}

check_flow <- function(flow, call) {
  if (!inherits(flow, "metaflow_flow")) {
    stop_metaflow(sprintf("%s() is called on a flow: begin with metaflow(\"NameOfFlow\") %%>%% %s(...)", call, call),
      "metaflow_usage_error")
  }
}

#' Add a step to a flow
#'
#' @param flow The flow, usually piped in.
#' @param ... Decorators of the step, for example [resources()] or [retry()].
#' @param step Name of the step. Every flow has a step `start` and a step `end`.
#' @param r_function What the step does: a function of `self` or, with `join = TRUE`, of `self` and
#'   `inputs`. Without a function the step only passes on what it has.
#' @param foreach Name of an artifact, in quotes: the next step runs once for each of its items, which it
#'   finds in `self$input`.
#' @param join Whether the step joins branches or the tasks of a foreach.
#' @param next_step Name of the step that follows, or several names for branches; none for `end`.
#' @return The flow.
#' @export
step <- function(flow, ..., step, r_function = NULL, foreach = NULL, join = FALSE, next_step = NULL) {
  if (missing(flow)) flow <- NULL
  check_flow(flow, "step")
  decorators <- decorators_in(list(...), "step")
  if (missing(step) || !is_text(step) || !grepl("^[A-Za-z_][A-Za-z0-9_]*$", step)) {
    stop_metaflow("step() needs the step's name, a word of letters, digits and `_`: step(step = \"start\", ...)",
      "metaflow_usage_error")
  }
  new <- list(
    name = step, r_function = r_function, foreach = foreach, join = isTRUE(join),
    next_step = next_step, decorators = decorators
  )
  if (step %in% names(flow$steps)) {
    add_problem(flow, step, sprintf("Step `%s` is there twice; give one of them another name.", step), twice = TRUE)
    return(flow)
  }
  for (problem in problems_of_step(new)) add_problem(flow, step, problem)
  flow$steps[[step]] <- new
  flow
}

add_problem <- function(flow, step, message, twice = FALSE) {
  flow$problems[[length(flow$problems) + 1]] <- list(step = step, message = message, twice = twice)
}

problems_of_step <- function(step) {
  c(
    problem_of_function(step),
    if (!is.null(step$next_step) && (!is.character(step$next_step) || anyNA(step$next_step) || length(step$next_step) == 0)) {
      sprintf("The `next_step` of step `%s` is a %s; it is the name of a step, in quotes.",
        step$name, class(step$next_step)[1])
    },
    if (!is.null(step$foreach) && !is_text(step$foreach)) {
      sprintf("The `foreach` of step `%s` is a %s; it is the name of an artifact, in quotes.",
        step$name, class(step$foreach)[1])
    },
    if (!is.null(step$foreach) && length(step$next_step) != 1) {
      sprintf("The foreach of step `%s` needs exactly one `next_step`.", step$name)
    }
  )
}

problem_of_function <- function(step) {
  f <- step$r_function
  if (is.null(f)) {
    return(NULL)
  }
  if (!is.function(f)) {
    return(sprintf("The `r_function` of step `%s` is a %s, not a function; give the function itself, without quotes.",
      step$name, class(f)[1]))
  }
  arguments <- names(formals(args(f)))
  if ("..." %in% arguments) {
    return(NULL)
  }
  if (step$join && length(arguments) != 2) {
    return(sprintf("Step `%s` is a join, so its function takes `self` and `inputs`; it takes %s.",
      step$name, argument_words(arguments)))
  }
  if (!step$join && length(arguments) != 1) {
    return(sprintf("The function of step `%s` takes `self` alone; it takes %s.%s",
      step$name, argument_words(arguments),
      if (length(arguments) == 2) " For a join, say join = TRUE." else ""))
  }
  NULL
}

argument_words <- function(arguments) {
  if (length(arguments) == 0) "no argument" else paste0("`", arguments, "`", collapse = ", ")
}

#' Add a parameter to a flow
#'
#' The value is given on the command line as `--<name>`, or to [run()] as an argument, and is read in
#' every step as `self$<name>`.
#'
#' @param flow The flow, usually piped in.
#' @param parameter Name of the parameter.
#' @param required Whether a run must be given a value.
#' @param help Text for `--help`.
#' @param separator A text at which the value is split; a comma, if `default` has several values.
#' @param default Value of runs that give none: text, numbers, TRUE or FALSE, a `Date`, or a list, which is
#'   given as JSON. A function is called when a run starts.
#' @param type `"str"`, `"int"`, `"float"`, `"bool"` or `"json"`; by default that of `default`, or of
#'   what it returns.
#' @param is_flag Whether it is an option without a value.
#' @return The flow.
#' @export
parameter <- function(flow, parameter, required = FALSE, help = NULL, separator = NULL, default = NULL,
                      type = NULL, is_flag = FALSE) {
  check_flow(flow, "parameter")
  if (!is_text(parameter) || !grepl("^[A-Za-z_][A-Za-z0-9_-]*$", parameter)) {
    stop_metaflow("parameter() needs a name of letters, digits, `-` and `_`: parameter(\"alpha\", default = 0.5)",
      "metaflow_usage_error")
  }
  kinds <- c("str", "int", "float", "bool", "json")
  if (!is.null(type) && !(is_text(type) && tolower(type) %in% c(kinds, "jsontype"))) {
    stop_metaflow(sprintf("the type of parameter `%s` is one of \"%s\"", parameter, paste(kinds, collapse = "\", \"")),
      "metaflow_usage_error")
  }
  check_parameter_name(flow, parameter)
  check_default(parameter, default)
  kind <- if (is.null(type)) kind_of_default(default, is_flag) else sub("jsontype", "json", tolower(type))
  if (is.null(separator) && is.atomic(default) && length(default) > 1) separator <- ","
  flow$parameters[[length(flow$parameters) + 1]] <- list(
    name = parameter, attribute = gsub("-", "_", parameter), required = isTRUE(required), help = help,
    separator = separator, default = default, kind = kind, is_flag = isTRUE(is_flag),
    kind_of_value = is.null(type) && is.function(default)
  )
  flow
}

.reserved_parameters <- c(
  "params", "with", "tag", "namespace", "obj", "tags", "decospecs", "run_id_file", "max_num_splits", "max_workers",
  "max_log_size", "user_namespace", "run_id", "task_id", "runner_attribute_file", "help", "input", "index"
)

check_parameter_name <- function(flow, parameter) {
  attribute <- gsub("-", "_", parameter)
  if (attribute %in% c(.reserved_parameters, .own_of_task)) {
    stop_metaflow(sprintf("parameter name `%s` is a reserved word: give the parameter another name", parameter),
      "metaflow_usage_error")
  }
  if (!is.null(parameter_named(flow, parameter))) {
    stop_metaflow(sprintf("parameter `%s` is there twice; give one of them another name", parameter), "metaflow_usage_error")
  }
}

check_default <- function(parameter, default) {
  plain <- is.null(default) || is.logical(default) || is.numeric(default) || is.character(default) || is.list(default)
  known <- is.function(default) || inherits(default, c("Date", "factor")) || (plain && (!is.object(default) || is.character(default)))
  if (!known) {
    stop_metaflow(sprintf(
      "the default of parameter `%s` is a %s: it may be text, numbers, TRUE or FALSE, a Date, a list, or a function that returns one",
      parameter, class(default)[1]), "metaflow_usage_error")
  }
}

kind_of_default <- function(default, is_flag = FALSE) {
  if (inherits(default, "Date")) {
    return("date")
  }
  if (is.list(default)) {
    return("json")
  }
  if (is.factor(default)) {
    return("str")
  }
  if (isTRUE(is_flag) || is.logical(default)) {
    return("bool")
  }
  if (is.integer(default)) {
    return("int")
  }
  if (is.numeric(default)) "float" else "str"
}

#' @export
print.metaflow_flow <- function(x, ...) {
  cat(sprintf("<flow %s>\n", x$name))
  for (step in x$steps) {
    to <- if (length(step$next_step) > 0) paste0(" -> ", paste(step$next_step, collapse = ", ")) else ""
    each <- if (is.null(step$foreach)) "" else sprintf(" (foreach %s)", step$foreach)
    cat(sprintf("  %s%s%s%s\n", step$name, if (step$join) " (join)" else "", to, each))
  }
  invisible(x)
}
