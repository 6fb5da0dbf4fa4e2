# What every task needs, done once before the forks: R reads functions from disk when they are first
# used, and each fork would do so anew. A rehearsed task finds all of them, those of base R included.

rehearse <- function() {
  as.list(asNamespace("metaflow"), all.names = TRUE)
  variables <- Sys.getenv(c("METAFLOW_RUN_ID", "METAFLOW_USER", "METAFLOW_RUNTIME_ENVIRONMENT"), unset = NA)
  warn <- getOption("warn")
  folder <- tempfile("rehearsal")
  on.exit({
    unlink(folder, recursive = TRUE)
    options(warn = warn)
    for (name in names(variables)) {
      if (is.na(variables[[name]])) Sys.unsetenv(name) else do.call(Sys.setenv, as.list(variables[name]))
    }
    rm(list = intersect(c("current", "task", "root", "namespace"), ls(.state)), envir = .state)
  })
  flow <- list(name = "Rehearsal", parameters = list(), steps = list(
    start = list(name = "start", r_function = function(self) self$items <- 1:2, foreach = "items", join = FALSE, next_step = "end"),
    end = list(name = "end", r_function = function(self, inputs) merge_artifacts(self, inputs), join = TRUE)
  ))
  store <- list(kind = "local", root = folder)
  write_parameters(flow, list(), list(store = store, flow = flow$name, run = "1"))
  before <- list(run = "1", step = "_parameters", tasks = list(list(0L, 0L, 0L)))
  spec <- list(
    flow = flow$name, run = "1", step = "start", task = 1L, attempt = 0L, max_user_code_retries = 0L, fallback = FALSE,
    join = FALSE, inputs = list(before), parameters = before, foreach_stack = list(), store = store, decorators = list(),
    user = "", identity = "", tags = list(), max_num_splits = 100L
  )
  run_task(flow, list(spec = spec))
  inputs <- list(run = "1", step = "start", tasks = list(list(1L, 1L, 0L)))
  joined <- utils::modifyList(spec, list(step = "end", task = 2L, join = TRUE))
  joined$inputs <- list(inputs)
  joined$foreach_stack <- list(list(step = "start", variable = "items", index = 0L, num_splits = 2L, source = inputs))
  run_task(flow, list(spec = joined))
  getAllConnections()
  invisible()
}
