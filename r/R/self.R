# `self` and the `inputs` of a join: artifacts that are read when they are looked at.

# Artifacts that say something of one task only: no other task inherits or merges them.
.own_of_task <- c(
  "_current_step", "_exception", "_foreach_stack", "_graph_info", "_iteration_stack", "_success",
  "_task_ok", "_transition"
)

# What a task has of the user's. Every task has an artifact `name`: the flow's, unless the user set it.
users_names <- function(pack, flow) {
  names <- setdiff(native(wrap__rs_pack_names, pack), .own_of_task)
  flows <- c(preview(flow), sprintf("'%s'", flow))
  is_flows <- "name" %in% names && native(wrap__rs_pack_info, pack, "name")$preview %in% flows
  if (is_flows) setdiff(names, "name") else names
}

open_packs <- function(spec, reference) {
  native(wrap__rs_open_packs, spec$root, spec$flow, to_json(reference))
}

# Reads an artifact as an R value; `reader` is what a `self` in it becomes.
read_artifact <- function(pack, name, reader) {
  answer <- native(wrap__rs_pack_read, pack, name)
  if ("value" %in% names(answer)) {
    return(answer$value)
  }
  if (!is.null(answer$serialized)) {
    return(unserialize_value(answer$serialized, reader))
  }
  info <- native(wrap__rs_pack_info, pack, name)
  stop_metaflow(
    sprintf(paste(
      "artifact `%s` is of type %s and was pickled by Python; of Python's values R reads text, numbers, booleans,",
      "bytes, and lists, tuples, sets and dictionaries (with text as keys) of these: store it as one of these"
    ), name, gsub("<class '|'>", "", info$type)),
    "metaflow_data_error"
  )
}

# Binds a name to an artifact that is read on first use.
bind_artifact <- function(into, name, pack, state) {
  delayedAssign(name, metaflow_artifact(pack, name, state, into), environment(), into)
}

metaflow_artifact <- function(pack, name, state, reader) {
  value <- read_artifact(pack, name, reader)
  state$read[[name]] <- TRUE
  value
}

# Whether a name still is the artifact it was bound to, not something that was assigned.
is_bound <- function(values, name) {
  found <- eval(call("substitute", as.name(name), values))
  is.call(found) && identical(found[[1]], quote(metaflow_artifact))
}

new_self <- function(flow, spec) {
  state <- new.env(parent = emptyenv())
  state$spec <- spec
  state$flow <- flow
  state$packs <- list()
  state$read <- list()
  state$read_only <- vapply(flow$parameters, function(each) each$attribute, "")
  # with(self, ...) finds functions, too.
  self <- new.env(parent = globalenv())
  attr(self, "state") <- state
  class(self) <- "metaflow_self"
  inherit(self, state)
  self
}

inherit <- function(self, state) {
  spec <- state$spec
  reference <- if (spec$join || length(spec$inputs) == 0) spec$parameters else spec$inputs[[1]]
  pack <- open_packs(spec, reference)[[1]]
  names <- users_names(pack, spec$flow)
  if (spec$join) names <- intersect(names, state$read_only)
  for (name in names) adopt(self, state, name, pack)
}

# Makes an artifact of another task one of this task's.
adopt <- function(self, state, name, pack) {
  state$packs[[name]] <- pack
  bind_artifact(self, name, pack, state)
}

state_of <- function(self) attr(self, "state", exact = TRUE)

self_get <- function(self, name) {
  if (name == "input") {
    return(foreach_input(self))
  }
  if (name == "index") {
    return(foreach_index(state_of(self)$spec$foreach_stack))
  }
  if (exists(name, envir = self, inherits = FALSE)) {
    return(get(name, envir = self, inherits = FALSE))
  }
  if (name == "name") {
    return(state_of(self)$spec$flow)
  }
  known <- ls(self)
  stop_metaflow(
    sprintf("flow `%s` has no artifact `%s` in step `%s`: set self$%s here or in a step before.%s",
      state_of(self)$spec$flow, name, state_of(self)$spec$step, name, near_match(name, known)),
    "metaflow_missing_artifact", call = NULL
  )
}

self_set <- function(self, name, value) {
  state <- state_of(self)
  if (name %in% state$read_only) {
    stop_metaflow(
      sprintf("parameters are not modifiable: `%s` is a parameter of `%s`; assign to an artifact of another name",
        name, state$spec$flow),
      "metaflow_usage_error"
    )
  }
  if (name %in% c("input", "index", .own_of_task)) {
    whose <- if (name %in% .own_of_task) "kept by Metaflow itself" else "the foreach's"
    stop_metaflow(sprintf("self$%s is %s; assign to an artifact of another name", name, whose), "metaflow_usage_error")
  }
  assign(name, value, envir = self)
  self
}

artifact_name <- function(name) {
  if (!is_text(name) || name == "") {
    stop_metaflow(sprintf("an artifact is found by its name, one text in quotes, not by %s: self[[\"x\"]]", one_line(name)),
      "metaflow_usage_error")
  }
  name
}

#' @export
`$.metaflow_self` <- function(x, name) self_get(x, name)

#' @export
`[[.metaflow_self` <- function(x, i, ...) self_get(x, artifact_name(i))

#' @export
`$<-.metaflow_self` <- function(x, name, value) self_set(x, name, value)

#' @export
`[[<-.metaflow_self` <- function(x, i, ..., value) self_set(x, artifact_name(i), value)

#' @export
names.metaflow_self <- function(x) ls(x)

#' @export
as.list.metaflow_self <- function(x, ...) mget(names(x), envir = x)

#' @export
print.metaflow_self <- function(x, ...) {
  cat(place_of(state_of(x)$spec), "\n", sep = "")
  cat("artifacts:", paste(ls(x), collapse = ", "), "\n")
  invisible(x)
}

foreach_index <- function(stack) {
  if (length(stack) == 0) {
    return(NULL)
  }
  as.integer(stack[[length(stack)]]$index)
}

foreach_input <- function(self) {
  state <- state_of(self)
  stack <- state$spec$foreach_stack
  if (length(stack) == 0) {
    return(NULL)
  }
  if (is.null(state$item)) {
    state$item <- list(read_item(state$spec, stack[[length(stack)]], self))
  }
  state$item[[1]]
}

# The item of one level of foreach, read from the task that split.
read_item <- function(spec, frame, reader) {
  pack <- open_packs(spec, frame$source)[[1]]
  own <- native(wrap__rs_pack_item, pack, frame$variable, as.numeric(frame$index))
  if (!is.null(own)) {
    return(unserialize_value(own, reader))
  }
  read_artifact(pack, frame$variable, reader)[[frame$index + 1]]
}

# Inputs of a join: by the name of the step for branches, in the order of the items for a foreach.
inputs_of <- function(flow, spec) {
  inputs <- list()
  # After a resume a foreach's tasks may come in several references.
  branches <- length(unique(vapply(spec$inputs, function(each) each$step, ""))) > 1
  for (reference in spec$inputs) {
    packs <- open_packs(spec, reference)
    opened <- lapply(seq_along(packs), function(i) new_input(packs[[i]], spec, reference, i))
    if (branches) names(opened) <- rep(reference$step, length(opened))
    inputs <- c(inputs, opened)
  }
  inputs
}

# The task at a position of a reference.
new_input <- function(pack, spec, reference, position) {
  input <- empty_input(spec, reference, position)
  state <- state_of(input)
  state$pack <- bind_input(input, pack)
  input
}

empty_input <- function(spec, reference, position) {
  state <- new.env(parent = emptyenv())
  state$spec <- spec
  state$step <- reference$step
  state$reference <- reference
  state$position <- position
  state$read <- list()
  input <- new.env(parent = globalenv())
  attr(input, "state") <- state
  class(input) <- "metaflow_input"
  input
}

bind_input <- function(input, pack) {
  state <- state_of(input)
  for (name in setdiff(native(wrap__rs_pack_names, pack), .own_of_task)) bind_artifact(input, name, pack, state)
  pack
}

input_get <- function(input, name) {
  state <- state_of(input)
  # An input that a stored function held is opened now.
  state$pack
  if (name %in% c("input", "index")) {
    stack <- if ("_foreach_stack" %in% native(wrap__rs_pack_names, state$pack)) {
      stack_of(state$pack)
    } else {
      list()
    }
    if (name == "index") {
      return(foreach_index(stack))
    }
    return(if (length(stack) > 0) read_item(state$spec, stack[[length(stack)]], input))
  }
  if (exists(name, envir = input, inherits = FALSE)) {
    return(get(name, envir = input, inherits = FALSE))
  }
  stop_metaflow(
    sprintf("step `%s` has no artifact `%s`: set self$%s there, or in a step before.%s",
      state$step, name, name, near_match(name, names(input))),
    "metaflow_missing_artifact"
  )
}

stack_of <- function(pack) from_json(to_json(read_artifact(pack, "_foreach_stack", NULL)))

#' @export
`$.metaflow_input` <- function(x, name) input_get(x, name)

#' @export
`[[.metaflow_input` <- function(x, i, ...) input_get(x, artifact_name(i))

#' @export
names.metaflow_input <- function(x) {
  state <- state_of(x)
  intersect(ls(x), users_names(state$pack, state$spec$flow))
}

#' @export
as.list.metaflow_input <- function(x, ...) mget(names(x), envir = x)

#' @export
print.metaflow_input <- function(x, ...) {
  cat(sprintf("<input of step %s: %s>\n", state_of(x)$step, paste(names(x), collapse = ", ")))
  invisible(x)
}

#' Gather an artifact of all inputs of a join
#'
#' @param inputs The second argument of a join's function.
#' @param input Name of the artifact, in quotes.
#' @return A list with the artifact of each input, in their order.
#' @export
gather_inputs <- function(inputs, input) {
  if (!is_text(input)) {
    stop_metaflow("gather_inputs() takes the name of an artifact in quotes: gather_inputs(inputs, \"x\")",
      "metaflow_usage_error")
  }
  lapply(inputs_in(inputs, "gather_inputs(inputs, \"x\")"), function(each) each[[input]])
}

# One input is as good as a list of one.
inputs_in <- function(inputs, usage) {
  if (inherits(inputs, "metaflow_input")) inputs <- list(inputs)
  if (!is.list(inputs) || !all(vapply(inputs, inherits, NA, what = "metaflow_input"))) {
    stop_metaflow(sprintf("%s takes the second argument of a join's function, or some of its elements", usage),
      "metaflow_usage_error")
  }
  inputs
}

#' Pass on what the inputs of a join agree on
#'
#' Every artifact of the inputs that `flow` does not have yet becomes one of its own. Artifacts of one
#' name that differ are an error: set them before, or exclude them.
#'
#' @param flow `self`, the first argument of the join's function.
#' @param inputs The second argument of the join's function, or some of them.
#' @param exclude Names of artifacts that are not passed on.
#' @return `flow`, invisibly.
#' @export
merge_artifacts <- function(flow, inputs, exclude = list()) {
  state <- state_of(flow)
  if (!inherits(flow, "metaflow_self") || !isTRUE(state$spec$join)) {
    stop_metaflow("merge_artifacts() is called in a join, a step with join = TRUE, as merge_artifacts(self, inputs)",
      "metaflow_merge_error")
  }
  skipped <- c(unlist(exclude), ls(flow, all.names = TRUE))
  found <- hashes <- list()
  conflicts <- character()
  for (input in inputs_in(inputs, "merge_artifacts(self, inputs)")) {
    pack <- state_of(input)$pack
    for (name in setdiff(users_names(pack, state$spec$flow), skipped)) {
      hash <- native(wrap__rs_pack_info, pack, name)$hash
      if (is.null(found[[name]])) {
        found[[name]] <- pack
        hashes[[name]] <- hash
      } else if (hashes[[name]] != hash) {
        conflicts <- union(conflicts, name)
      }
    }
  }
  if (length(conflicts) > 0) {
    stop_metaflow(
      sprintf("the inputs of step `%s` differ in %s: set them on self before merge_artifacts(), or name them in `exclude`",
        state$spec$step, paste0("`", sort(conflicts), "`", collapse = ", ")),
      "metaflow_merge_error"
    )
  }
  for (name in names(found)) adopt(flow, state, name, found[[name]])
  invisible(flow)
}
