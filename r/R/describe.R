# A flow as the engine wants it (`core::ir::Flow`), with the lines of the script's calls.

describe_flow <- function(flow, script) {
  lines <- script_lines(script)
  list(
    name = flow$name,
    file = script,
    line = lines$flow,
    steps = unname(lapply(flow$steps, describe_step, script = script, lines = lines)),
    parameters = lapply(flow$parameters, describe_parameter, lines = lines),
    constants = list(),
    decorators = lapply(flow$decorators, describe_decorator, line = lines$flow, script = script)
  )
}

describe_step <- function(step, script, lines) {
  line <- line_of(lines$steps, step$name)
  list(
    name = step$name,
    file = script,
    line = line,
    arguments = if (step$join) 2L else 1L,
    transition = describe_transition(step, line),
    tail_line = line,
    decorators = lapply(step$decorators, describe_decorator, line = line, script = script)
  )
}

describe_transition <- function(step, line) {
  if (is.null(step$next_step)) {
    return(NULL)
  }
  if (!is.null(step$foreach)) {
    return(list(kind = "foreach", target = step$next_step[1], variable = step$foreach, line = line))
  }
  if (length(step$next_step) == 1) {
    return(list(kind = "linear", target = step$next_step, line = line))
  }
  list(kind = "split", targets = as.list(step$next_step), line = line)
}

describe_decorator <- function(decorator, line, script) {
  list(
    name = decorator$name, attributes = as_object(lapply(decorator$attributes, plain_attribute)),
    file = script, line = line, in_source = TRUE
  )
}

# R's numbers are doubles: 4 is meant as the integer it is.
plain_attribute <- function(value) {
  if (is.list(value)) {
    return(if (is.null(names(value))) lapply(value, plain_attribute) else as_object(lapply(value, plain_attribute)))
  }
  if (is.double(value) && all(!is.na(value) & value == trunc(value) & abs(value) < .Machine$integer.max)) {
    value <- as.integer(value)
  }
  if (is.atomic(value)) as.vector(value) else paste(deparse(value), collapse = " ")
}

describe_parameter <- function(parameter, lines) {
  list(
    name = parameter$name, attribute = parameter$attribute, type = if (parameter$kind == "date") "str" else parameter$kind, help = parameter$help,
    required = parameter$required && is.null(parameter$default), default_text = default_text(parameter),
    show_default = TRUE, separator = if (parameter$kind == "str") parameter$separator, multiple = FALSE, is_flag = parameter$is_flag,
    line = line_of(lines$parameters, parameter$name)
  )
}

default_text <- function(parameter) {
  default <- parameter$default
  if (is.null(default)) {
    return(NULL)
  }
  if (is.function(default)) {
    return("value of a function")
  }
  if (is.list(default)) {
    return(to_json(default))
  }
  text <- if (inherits(default, c("Date", "factor"))) as.character(default) else option_text(default)
  paste(text, collapse = parameter$separator)
}

line_of <- function(lines, name) {
  line <- lines[name]
  if (length(line) == 0 || is.na(line)) 0L else as.integer(line)
}

# Lines of the script's calls of metaflow(), step() and parameter(), by the name each is given. R
# keeps no lines of a script that Rscript runs, so it is parsed again.
script_lines <- function(script) {
  none <- list(flow = 0L, steps = integer(), parameters = integer())
  if (!file.exists(script)) {
    return(none)
  }
  parsed <- tryCatch(utils::getParseData(parse(script, keep.source = TRUE)), error = function(e) NULL)
  if (is.null(parsed)) {
    return(none)
  }
  calls <- parsed[parsed$token == "SYMBOL_FUNCTION_CALL" & parsed$text %in% c("metaflow", "step", "parameter"), ]
  texts <- parsed[parsed$token == "STR_CONST", ]
  parent_of <- parsed$parent
  names(parent_of) <- parsed$id
  call_of <- parent_of[as.character(parent_of[as.character(calls$id)])]
  found <- none
  for (i in seq_len(nrow(calls))) {
    name <- first_name(parsed, texts, call_of[i], calls$text[i])
    line <- calls$line1[i]
    if (calls$text[i] == "metaflow") found$flow <- line
    if (is.na(name)) next
    if (calls$text[i] == "step") found$steps[name] <- line
    if (calls$text[i] == "parameter") found$parameters[name] <- line
  }
  found
}

# The text given as the argument `step` of a step() call, or the first text of another.
first_name <- function(parsed, texts, call, kind) {
  parts <- parsed[parsed$parent == call, ]
  from <- 0
  if (kind == "step") {
    named <- parts[parts$token == "SYMBOL_SUB" & parts$text == "step", ]
    if (nrow(named) == 0) {
      return(NA_character_)
    }
    from <- named$id[1]
  }
  values <- parts$id[parts$token == "expr" & parts$id > from]
  inside <- texts[texts$parent %in% values & texts$id > from, ]
  if (nrow(inside) == 0) NA_character_ else eval(parse(text = inside$text[1], keep.source = FALSE))
}

# What is wrong with a flow before the engine looks at the graph: list(message, line), or NULL.
first_problem <- function(flow, script) {
  problems <- c(flow$problems, graph_problems(flow))
  if (length(problems) == 0) {
    return(NULL)
  }
  problem <- problems[[1]]
  list(message = problem$message, line = line_of(script_lines(script)$steps, problem$step))
}

# A `next_step` that is no text was told of before.
targets_of <- function(step) if (is.character(step$next_step)) step$next_step

graph_problems <- function(flow) {
  names <- names(flow$steps)
  problems <- list()
  note <- function(step, message) problems[[length(problems) + 1]] <<- list(step = step, message = message)
  for (role in c("start", "end")) {
    if (!role %in% names) {
      note("", sprintf("Flow `%s` has no %s step. Name a step `%s`.%s", flow$name, role, role, near_match(role, names)))
    }
  }
  for (step in flow$steps) {
    if (is.null(step$next_step) && step$name != "end") {
      note(step$name, sprintf("Step `%s` does not say what follows: give it next_step = \"...\".", step$name))
    }
    if (step$name == "end" && !is.null(step$next_step)) {
      note("end", "The end step `end` has a `next_step`; the flow is over there. Remove it.")
    }
    for (target in setdiff(as.character(targets_of(step)), names)) {
      note(step$name, sprintf("Step `%s` leads to `%s`, which is not a step.%s", step$name, target, near_match(target, names)))
    }
  }
  c(problems, join_problems(flow))
}

# What the engine would tell in Python's words.
join_problems <- function(flow) {
  parents_of <- function(name) names(Filter(function(step) name %in% targets_of(step), flow$steps))
  problems <- list()
  for (step in flow$steps) {
    parents <- parents_of(step$name)
    circle <- circle_of(flow, step$name)
    message <- if (length(parents) == 0 && step$name != "start") {
      sprintf("Step `%s` is not reached from the step `start`: name it in the `next_step` of another step, or remove it.", step$name)
    } else if (!is.null(circle)) {
      sprintf("The flow runs in a circle: %s. It goes from `start` to `end`, each step once.", paste(circle, collapse = "->"))
    } else if (length(parents) > 1 && !step$join) {
      sprintf("Steps %s lead to `%s`, which is not a join: say join = TRUE, and let its function take `self` and `inputs`.",
        paste0("`", parents, "`", collapse = " and "), step$name)
    }
    if (!is.null(message)) problems[[length(problems) + 1]] <- list(step = step$name, message = message)
  }
  problems
}

# The steps by which a step is reached from itself; NULL if it is not.
circle_of <- function(flow, name) {
  came_from <- list()
  left <- name
  while (length(left) > 0) {
    step <- left[1]
    left <- left[-1]
    for (target in targets_of(flow$steps[[step]])) {
      if (target == name) {
        path <- step
        while (path[1] != name) path <- c(came_from[[path[1]]], path)
        return(c(path, name))
      }
      if (!target %in% names(came_from) && target %in% names(flow$steps)) {
        came_from[[target]] <- step
        left <- c(left, target)
      }
    }
  }
}
