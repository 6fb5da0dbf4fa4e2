# What the client asks of the store, and its settings: which datastore, which namespace.

datastore_root <- function() {
  if (!is.null(.state$root)) {
    return(.state$root)
  }
  configured <- Sys.getenv("METAFLOW_DATASTORE_SYSROOT_LOCAL")
  if (nzchar(configured)) {
    return(file.path(path.expand(configured), ".metaflow"))
  }
  folder <- normalizePath(getwd())
  repeat {
    if (dir.exists(file.path(folder, ".metaflow"))) {
      return(file.path(folder, ".metaflow"))
    }
    if (dirname(folder) == folder) {
      return(file.path(normalizePath(getwd()), ".metaflow"))
    }
    folder <- dirname(folder)
  }
}

all_flows <- function() as.character(unlist(native(wrap__rs_flows, datastore_root())))

all_runs <- function(flow) native(wrap__rs_runs, datastore_root(), flow)

find_run <- function(flow, run) native(wrap__rs_run, datastore_root(), flow, run)

all_tasks <- function(flow, run) native(wrap__rs_tasks, datastore_root(), flow, run)

latest_attempt <- function(flow, run, task) {
  attempts <- native(wrap__rs_attempts, datastore_root(), flow, run, task)
  if (length(attempts) > 0) attempts[[length(attempts)]]
}

location_of <- function(flow, run) {
  store <- find_run(flow, run)$store
  if (is.null(store)) datastore_root() else store_text(store)
}

# A clone's pack and logs are its origin's.
data_of <- function(run, row) if (is.null(row$data)) list(run = run, task = row$task, attempt = row$attempt) else row$data

# What an attempt stored, opened; NULL when it was stopped before it stored anything.
pack_of <- function(flow, run, row) {
  place <- stored_place(flow, run, row)
  open <- if (isTRUE(row$ok)) wrap__rs_open_packs else wrap__rs_find_packs
  opened <- native(open, place$spec$root, flow, to_json(place$reference))
  if (!is.null(opened)) new_input(opened[[1]], place$spec, place$reference, 1L)
}

stored_place <- function(flow, run, row) {
  data <- data_of(run, row)
  reference <- list(run = data$run, step = row$step, tasks = list(list(data$task, data$task, data$attempt)))
  list(spec = list(root = location_of(flow, run), flow = flow), reference = reference)
}

log_of <- function(flow, run, row, stderr) {
  data <- data_of(run, row)
  native(wrap__rs_log, location_of(flow, run), flow, data$run, row$step, as.numeric(data$task), as.integer(data$attempt), stderr)
}

time_of <- function(milliseconds) {
  if (is.null(milliseconds) || length(milliseconds) == 0 || !is.finite(milliseconds)) {
    return(NULL)
  }
  as.POSIXct(milliseconds / 1000, origin = "1970-01-01")
}

numbers <- function(rows, field) as.numeric(unlist(lapply(rows, function(row) row[[field]])))

number_text <- function(number) format(number, scientific = FALSE, trim = TRUE)

tags_of <- function(run) as.character(c(unlist(run$tags), unlist(run$system_tags)))

in_namespace <- function(run) {
  namespace <- get_namespace()
  is.null(namespace) || namespace %in% tags_of(run)
}

user_name <- function() {
  for (name in c("METAFLOW_USER", "SUDO_USER", "USERNAME", "USER")) {
    if (nzchar(Sys.getenv(name))) {
      return(Sys.getenv(name))
    }
  }
  Sys.info()[["effective_user"]]
}

#' Namespaces and metadata of the client
#'
#' The client sees runs of one namespace, by default those of the user. `set_namespace(NULL)` shows all.
#'
#' @param ns A namespace, such as `"user:ann"`, or NULL for all runs.
#' @return The namespace or metadata store that holds now.
#' @export
set_namespace <- function(ns = NULL) {
  if (!is.null(ns) && !is_text(ns)) {
    stop_metaflow("a namespace is a text, such as \"user:ann\", or NULL for all runs", "metaflow_usage_error")
  }
  .state$namespace <- list(ns)
  invisible(ns)
}

#' @rdname set_namespace
#' @export
get_namespace <- function() {
  if (is.null(.state$namespace)) set_default_namespace() else .state$namespace[[1]]
}

#' @rdname set_namespace
#' @export
set_default_namespace <- function() set_namespace(paste0("user:", user_name()))

#' @rdname set_namespace
#' @param ms A folder with runs, as a path or as `"local@path"`.
#' @export
set_metadata <- function(ms = NULL) {
  if (is.null(ms)) {
    return(reset_default_metadata())
  }
  if (!is_text(ms) || grepl("^(service|https?:)", ms)) {
    stop_metaflow("set_metadata() takes a folder, such as \"local@/home/ann/project\"", "metaflow_usage_error")
  }
  folder <- normalizePath(sub("^local@", "", ms), mustWork = FALSE)
  .state$root <- if (basename(folder) == ".metaflow") folder else file.path(folder, ".metaflow")
  get_metadata()
}

#' @rdname set_namespace
#' @export
get_metadata <- function() paste0("local@", dirname(datastore_root()))

#' @rdname set_namespace
#' @export
reset_default_metadata <- function() {
  .state$root <- NULL
  get_metadata()
}
