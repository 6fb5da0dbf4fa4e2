# What a stored value holds of a task: functions and formulas keep the environment that they were made in,
# and with it `self` or `inputs`. These are stored as references, not as what they were in that
# process: `self` becomes that of whoever reads the value, an input the stored task that it was.

serialize_value <- function(value) serialize(value, NULL, xdr = FALSE, refhook = reference_to)

# `reader` is the `self` or input that a value is read for; looked at only if the value refers to it.
unserialize_value <- function(bytes, reader) {
  unserialize(bytes, refhook = function(text) {
    if (identical(text, "self")) reader else restored_input(from_json(text), state_of(reader)$spec)
  })
}

reference_to <- function(object) {
  if (inherits(object, "metaflow_self")) {
    return("self")
  }
  if (inherits(object, "metaflow_input")) to_json(place_of_input(state_of(object)))
}

# Run, step, task and attempt of an input. A reference names ranges of tasks.
place_of_input <- function(state) {
  left <- state$position
  for (range in state$reference$tasks) {
    count <- range[[2]] - range[[1]] + 1L
    if (left <= count) {
      task <- range[[1]] + left - 1L
      return(list(run = state$reference$run, step = state$reference$step, tasks = list(list(task, task, range[[3]]))))
    }
    left <- left - count
  }
}

restored_input <- function(reference, spec) {
  input <- empty_input(spec, reference, 1L)
  delayedAssign("pack", opened_input(input, spec, reference), environment(), state_of(input))
  input
}

opened_input <- function(input, spec, reference) {
  packs <- open_packs(spec, reference)
  bind_input(input, packs[[1]])
}
