# Package cli, which most of the tidyverse loads, keeps a thread that does nothing but tell progress bars
# when time has passed. A fork would be without it, and a process with threads must not be forked: it
# is stopped before the forks and started again in each task.

stop_ticks <- function() ticks("clic_stop_thread")

start_ticks <- function() {
  cli <- cli_namespace()
  ticks("clic_start_thread", cli, cli$clienv$tick_time, cli$clienv$speed_time)
}

cli_namespace <- function() if (isNamespaceLoaded("cli")) asNamespace("cli")

# A version of cli that has no such routine keeps its thread, and tasks are started afresh.
ticks <- function(routine, ...) {
  routine <- cli_namespace()[[routine]]
  if (inherits(routine, "NativeSymbolInfo")) try(do.call(".Call", list(routine, ...)), silent = TRUE)
  invisible()
}
