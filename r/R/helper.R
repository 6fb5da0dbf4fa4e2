# The helper: a fork of the server for requests that run user code (defaults of parameters, values of
# artifacts), so that what that code leaves behind never gets into a task.

serve_as_helper <- function(flow) {
  values <- list()
  repeat {
    request <- native(wrap__rs_helper_request)
    if (is.null(request)) {
      return(0L)
    }
    reply <- tryCatch(
      switch(request$type,
        convert = {
          converted <- convert_parameters(flow, request$given, request$user)
          values <- converted$values
          if (is.null(converted$error)) list(ok = NULL) else list(error = converted$error)
        },
        write_parameters = {
          write_parameters(flow, values, request)
          list(ok = NULL)
        },
        dump = list(ok = dump_artifacts(request))
      ),
      error = function(e) list(error = front_end_error(e))
    )
    native(wrap__rs_helper_reply, to_json(c(list(id = request$id), reply)))
  }
}

front_end_error <- function(error) {
  headline <- if (inherits(error, "metaflow_parameter_error")) "Parameter field failed" else "Internal error"
  list(usage = FALSE, headline = headline, message = conditionMessage(error))
}

convert_parameters <- function(flow, given, user) {
  values <- list()
  problems <- character()
  for (parameter in flow$parameters) {
    value <- tryCatch(parameter_value(parameter, given[[parameter$name]], flow$name, user),
      metaflow_usage_error = function(e) {
        problems <<- c(problems, conditionMessage(e))
        NULL
      }
    )
    values[parameter$attribute] <- list(value)
  }
  error <- if (length(problems) > 0) {
    list(usage = TRUE, headline = "Invalid parameter", message = paste(problems, collapse = "\n"))
  }
  list(values = values, error = error)
}

parameter_value <- function(parameter, texts, flow_name, user) {
  default <- parameter$default
  if (length(texts) > 0) {
    if (parameter$kind_of_value) parameter$kind <- kind_of_function(parameter, flow_name, user)
    return(one_value(parameter, texts[[length(texts)]]))
  }
  if (is.function(default)) {
    return(value_of_function(parameter, flow_name, user))
  }
  if (is.null(default)) {
    if (parameter$required) {
      stop_metaflow(sprintf("Missing option '--%s'.", parameter$name), "metaflow_usage_error")
    }
    return(if (parameter$is_flag) FALSE)
  }
  one_value(parameter, default)
}

# What is given is of the kind that the default would have been.
kind_of_function <- function(parameter, flow_name, user) {
  tryCatch(kind_of_default(value_of_function(parameter, flow_name, user)), metaflow_parameter_error = function(e) "str")
}

value_of_function <- function(parameter, flow_name, user) {
  context <- list(flow_name = flow_name, user_name = user, parameter_name = parameter$name)
  f <- parameter$default
  value <- tryCatch(if (length(formals(args(f))) > 0) f(context) else f(), error = function(e) {
    stop_metaflow(sprintf("the default of parameter `%s` is a function that failed: %s", parameter$name, conditionMessage(e)),
      "metaflow_parameter_error")
  })
  if (is.null(value) || parameter$kind_of_value) value else one_value(parameter, value)
}

one_value <- function(parameter, given) {
  bad <- function(kind) {
    stop_metaflow(sprintf("Invalid value for '--%s': '%s' is not a valid %s.", parameter$name, paste(given, collapse = " "), kind),
      "metaflow_usage_error")
  }
  if (!is.null(parameter$separator) && is_text(given) && parameter$kind != "json") given <- split_text(given, parameter$separator)
  switch(parameter$kind,
    date = date_value(given, bad),
    bool = bool_value(parameter, given, bad),
    int = integer_value(given, bad),
    float = float_value(given, bad),
    json = json_value(parameter, given),
    as.character(given)
  )
}

split_text <- function(text, separator) if (text == "") text else strsplit(text, separator, fixed = TRUE)[[1]]

date_value <- function(given, bad) {
  if (inherits(given, "Date")) {
    return(given)
  }
  tryCatch(as.Date(trimws(given), optional = FALSE), error = function(e) bad("date, such as 2020-12-31"))
}

bool_value <- function(parameter, given, bad) {
  if (is.logical(given)) {
    return(given)
  }
  words <- tolower(trimws(given))
  if (parameter$is_flag && identical(words, "")) {
    return(TRUE)
  }
  yes <- words %in% c("1", "true", "t", "yes", "y", "on")
  if (all(yes | words %in% c("0", "false", "f", "no", "n", "off"))) yes else bad("boolean")
}

# R's integers have 32 bits; larger ones are doubles.
integer_value <- function(given, bad) {
  if (is.numeric(given)) {
    number <- trunc(given)
  } else {
    text <- gsub("_", "", trimws(given))
    if (!all(grepl("^[+-]?[0-9]+$", text))) bad("integer")
    number <- as.numeric(text)
  }
  if (all(abs(number) <= .Machine$integer.max, na.rm = TRUE)) as.integer(number) else number
}

float_value <- function(given, bad) {
  if (is.numeric(given)) {
    return(as.numeric(given))
  }
  text <- trimws(given)
  number <- suppressWarnings(as.numeric(text))
  if (any(is.na(number) & !tolower(text) %in% c("nan", "+nan", "-nan"))) bad("float")
  ifelse(is.na(number), NaN, number)
}

json_value <- function(parameter, given) {
  if (!is.character(given)) {
    return(given)
  }
  tryCatch(from_json(given, simplify = TRUE), metaflow_error = function(e) {
    stop_metaflow(sprintf("Invalid value for '--%s': '%s' is %s", parameter$name, given, conditionMessage(e)),
      "metaflow_usage_error")
  })
}

write_parameters <- function(flow, values, request) {
  pack <- native(wrap__rs_new_pack, store_text(request$store), request$flow, request$run, "_parameters", 0, 0L)
  if (!"name" %in% names(values)) write_artifact(pack, "name", flow$name)
  for (name in names(values)) write_artifact(pack, name, values[[name]])
  outcome <- list(ok = TRUE, success = TRUE, transition = list(targets = list()))
  native(wrap__rs_commit, pack, to_json(outcome))
}

# --- dump -----------------------------------------------------------------------------------------------

dump_artifacts <- function(request) {
  lines <- errors <- list()
  values <- list()
  for (task in request$request$tasks) {
    dumped <- tryCatch(dump_task(store_text(request$store), task, request$request), error = function(e) {
      errors <<- c(errors, paste0(task$pathspec, ": ", conditionMessage(e)))
      NULL
    })
    lines <- c(lines, dumped$lines)
    errors <- c(errors, dumped$errors)
    values[[task$pathspec]] <- dumped$values
  }
  if (!is.null(request$request$file)) saveRDS(values, request$request$file)
  list(lines = lines, errors = errors)
}

dump_task <- function(root, task, request) {
  attempt <- task$attempt
  reference <- list(run = task$run, step = task$step, tasks = list(list(attempt$task, attempt$task, attempt$attempt)))
  pack <- native(wrap__rs_open_packs, root, task$flow, to_json(reference))[[1]]
  names <- sort(native(wrap__rs_pack_names, pack))
  if (length(request$include) > 0) names <- intersect(names, unlist(request$include))
  if (!request$private) names <- names[!startsWith(names, "_")]
  found <- list(lines = list(), errors = list(), values = list())
  for (name in names) {
    info <- native(wrap__rs_pack_info, pack, name)
    wanted <- !is.null(request$file) || (request$max_value_size > 0 && info$size <= request$max_value_size)
    text <- "< artifact too large >"
    if (wanted) {
      text <- tryCatch({
        value <- read_artifact(pack, name, new_input(pack, list(root = root, flow = task$flow), reference, 1L))
        if (!is.null(request$file)) found$values[name] <- list(value)
        value_text(value)
      }, error = function(e) {
        found$errors <<- c(found$errors, paste0(task$pathspec, ": ", conditionMessage(e)))
        "< cannot be read >"
      })
    }
    if (is.null(request$file)) {
      line <- sprintf("%s [size: %s type: %s] = %s", name, format(info$size, scientific = FALSE), info$type, text)
      found$lines <- c(found$lines, line)
    }
  }
  found
}

value_text <- function(value) {
  if (is.character(value) && length(value) == 1) {
    return(value)
  }
  if (is.atomic(value) || is.list(value) && !is.object(value)) {
    return(paste(deparse(value, width.cutoff = 500L), collapse = " "))
  }
  paste(c("", utils::capture.output(print(value))), collapse = "\n")
}
