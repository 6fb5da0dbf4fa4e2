# An error of the user's as text: what is printed, sent to the engine and kept as an artifact.

.most_calls <- 40L
.accessors <- c(
  "self_get", "self_set", "input_get", "artifact_name", "metaflow_artifact", "read_artifact", "opened_input", "open_packs",
  paste0(c("$", "[[", "$<-", "[[<-"), ".metaflow_self"), paste0(c("$", "[["), ".metaflow_input")
)

# How R, and rlang, come from an error (or a warning that is one) to its handlers.
.signalling <- c(
  ".handleSimpleError", "h", "stop", "stop_metaflow", "native", "signalCondition", "signal_abort", "doWithOneRestart",
  "withOneRestart", "withRestarts", ".signalSimpleWarning", "warning"
)

# Evaluates code; a failure with the calls that led to it, or NULL.
with_failure <- function(code) {
  calls <- NULL
  tryCatch(
    withCallingHandlers(code, error = function(e) calls <<- sys.calls()),
    error = function(e) failure_of(e, calls),
    interrupt = function(i) {
      failure <- own_failure("the task was interrupted", code = 130L)
      failure$can_be_caught <- FALSE
      failure
    }
  )
}

failure_of <- function(error, calls) {
  ours <- inherits(error, "metaflow_error")
  message <- plain_text(conditionMessage(error))
  calls <- users_calls(calls)
  call <- conditionCall(error)
  head <- if (ours || is.null(call)) paste0("Error: ", message) else paste0("Error in ", one_line(call), " : ", message)
  text <- head
  if (length(calls) > 0 && !inherits(error, c("metaflow_foreach_error", "metaflow_fallback"))) {
    text <- paste0(head, "\nCalls, the outermost first:\n", paste0(traceback_lines(calls), collapse = "\n"))
  }
  list(
    exception = list(type = class(error)[1], message = message, traceback = text),
    text = text, code = 0L,
    can_be_caught = !inherits(error, "metaflow_foreach_error")
  )
}

own_failure <- function(text, code = 0L) {
  list(exception = list(type = "metaflow_error", message = text, traceback = paste0("Error: ", text)),
    text = paste0("Error: ", text), code = code, can_be_caught = TRUE)
}

# Between our call of the step's function and R's own signalling of the error.
users_calls <- function(calls) {
  first <- which(vapply(calls, function(call) identical(call[[1]], quote(call_step)), NA))
  if (length(first) == 0) {
    return(list())
  }
  calls <- calls[-seq_len(first[1])]
  # eval(call, scene), twice: the function and its internal.
  while (length(calls) > 0 && identical(calls[[1]][[1]], quote(eval))) calls <- calls[-1]
  is_signal <- vapply(calls, function(call) {
    name <- if (is.name(call[[1]])) as.character(call[[1]]) else ""
    name %in% .signalling || is.function(call[[1]])
  }, NA)
  last <- length(calls)
  while (last > 0 && is_signal[last]) last <- last - 1
  calls <- calls[seq_len(last)]
  drop <- vapply(calls, is_access, NA)
  calls[!drop]
}

# Ours, or what R makes of `self$x <- value`.
is_access <- function(call) {
  name <- if (is.name(call[[1]])) as.character(call[[1]]) else ""
  name %in% .accessors || (name %in% c("$<-", "[[<-") && identical(call[[2]], quote(`*tmp*`)))
}

one_line <- function(call) {
  lines <- deparse(call, width.cutoff = 80L, nlines = 2L)
  text <- lines[1]
  if (length(lines) > 1) text <- paste0(text, " ...")
  text
}

traceback_lines <- function(calls) {
  shown <- vapply(calls, one_line, "")
  numbers <- seq_along(shown)
  if (length(shown) > .most_calls) {
    half <- .most_calls %/% 2L
    left_out <- length(shown) - 2L * half
    kept <- c(seq_len(half), length(shown) - rev(seq_len(half)) + 1L)
    lines <- sprintf("%3d. %s", numbers[kept], shown[kept])
    return(append(lines, sprintf("     ... %d calls left out ...", left_out), half))
  }
  places <- places_of(calls)
  sprintf("%3d. %s%s", numbers, shown, ifelse(places == "", "", paste0("  (", places, ")")))
}

# `file:line` of calls that stand in the script exactly once.
places_of <- function(calls) {
  script <- source_file(script_file())
  places <- rep("", length(calls))
  if (is.null(script) || !file.exists(script)) {
    return(places)
  }
  parsed <- tryCatch(utils::getParseData(parse(script, keep.source = TRUE), includeText = TRUE), error = function(e) NULL)
  if (is.null(parsed)) {
    return(places)
  }
  plain <- function(text) gsub("[[:space:]]+", "", text)
  expressions <- parsed[parsed$token == "expr", ]
  texts <- plain(expressions$text)
  for (i in seq_along(calls)) {
    at <- which(texts == plain(paste(deparse(calls[[i]]), collapse = "")))
    lines <- unique(expressions$line1[at])
    if (length(lines) == 1) places[i] <- sprintf("%s:%d", basename(script), lines)
  }
  places
}

# `<flow F step s[1,2] (input: X)>`
place_of <- function(spec, self = NULL) {
  stack <- spec$foreach_stack
  if (length(stack) == 0) {
    return(sprintf("<flow %s step %s>", spec$flow, spec$step))
  }
  indices <- paste(vapply(stack, function(frame) format(frame$index), ""), collapse = ",")
  input <- tryCatch(plain_text(paste(format(self$input), collapse = " ")), error = function(e) "")
  if (nchar(input) > 20) input <- paste0(substr(input, 1, 20), "...")
  sprintf("<flow %s step %s[%s]%s>", spec$flow, spec$step, indices,
    if (nzchar(input)) sprintf(" (input: %s)", input) else "")
}

failure_block <- function(failure, where) {
  lines <- c(paste0(where, " failed:"), strsplit(failure$text, "\n", fixed = TRUE)[[1]])
  paste0("    ", lines, "\n", collapse = "")
}

# As R tells of a crash, innermost call first.
tell_crash <- function(words) {
  calls <- sys.calls()
  own <- which(vapply(calls, function(call) is.function(call[[1]]) && identical(call[[2]], words), NA))
  shown <- rev(vapply(users_calls(calls[seq_len(own[length(own)] - 1L)]), one_line, ""))
  lines <- if (length(shown) > 0) c("", "Traceback:", sprintf("%2d: %s", seq_along(shown), shown))
  cat(words, paste0(lines, "\n"), sep = "", file = stderr())
}
