# Decorators: what a step needs or how it is run. Which there are, and what they mean, is the
# engine's registry.

#' Decorate a step
#'
#' A decorator says how a step is to be run. `decorator()` makes any decorator by its name; the others
#' are short for the most frequent ones. Give them to [step()], or to [metaflow()] for decorators of
#' the whole flow.
#'
#' @param name Name of the decorator, for example `"resources"`.
#' @param ... Its arguments, each with a name.
#' @param .convert_args Accepted for compatibility; values are passed on as they are.
#' @return A decorator for [step()] or [metaflow()].
#' @examples
#' decorator("resources", memory = 8000, cpu = 2)
#' @export
decorator <- function(name, ..., .convert_args = TRUE) {
  if (!is_text(name)) {
    stop_metaflow("the name of a decorator is a text, such as decorator(\"retry\")", "metaflow_usage_error")
  }
  arguments <- list(...)
  given <- names(arguments)
  if (length(arguments) > 0 && (is.null(given) || any(given == ""))) {
    stop_metaflow(
      sprintf("all arguments of decorator \"%s\" need a name, such as decorator(\"%s\", cpu = 1)", name, name),
      "metaflow_usage_error"
    )
  }
  if (anyDuplicated(given)) {
    stop_metaflow(
      sprintf("argument `%s` of decorator \"%s\" is given twice", given[anyDuplicated(given)], name),
      "metaflow_usage_error"
    )
  }
  structure(list(name = name, attributes = arguments), class = "metaflow_decorator")
}

# A decorator with the arguments that were given, so that the others keep the registry's defaults.
given_only <- function(name, arguments) {
  do.call(decorator, c(list(name = name), arguments[!vapply(arguments, is.null, NA)]))
}

#' @rdname decorator
#' @param cpu,gpu,memory,disk,shared_memory Processors, GPUs, memory in MB, disk in MB and shared memory in MiB.
#' @export
resources <- function(cpu = NULL, gpu = NULL, memory = NULL, shared_memory = NULL, disk = NULL) {
  given_only("resources", list(cpu = cpu, gpu = gpu, memory = memory, shared_memory = shared_memory, disk = disk))
}

#' @rdname decorator
#' @param image Container image.
#' @param queue,iam_role,execution_role,max_swap,swappiness See the documentation of AWS Batch.
#' @export
batch <- function(cpu = NULL, gpu = NULL, memory = NULL, image = NULL, queue = NULL, iam_role = NULL,
                  execution_role = NULL, shared_memory = NULL, max_swap = NULL, swappiness = NULL, ...) {
  given_only("batch", c(list(
    cpu = cpu, gpu = gpu, memory = memory, image = image, queue = queue, iam_role = iam_role,
    execution_role = execution_role, shared_memory = shared_memory, max_swap = max_swap, swappiness = swappiness
  ), list(...)))
}

#' @rdname decorator
#' @param namespace,service_account Kubernetes namespace and service account.
#' @export
kubernetes <- function(cpu = NULL, gpu = NULL, memory = NULL, disk = NULL, image = NULL, namespace = NULL,
                       service_account = NULL, ...) {
  given_only("kubernetes", c(list(
    cpu = cpu, gpu = gpu, memory = memory, disk = disk, image = image, namespace = namespace,
    service_account = service_account
  ), list(...)))
}

#' @rdname decorator
#' @param times Attempts beyond the first, at most 4.
#' @param minutes_between_retries Pause before a retry; remote tasks only.
#' @export
retry <- function(times = 3L, minutes_between_retries = 2L) {
  decorator("retry", times = times, minutes_between_retries = minutes_between_retries)
}

#' @rdname decorator
#' @param var Artifact that holds the error; NULL on success.
#' @param print_exception Print the error that was caught.
#' @export
catch <- function(var = NULL, print_exception = TRUE) {
  given_only("catch", list(var = var, print_exception = print_exception))
}

#' @rdname decorator
#' @export
environment_variables <- function(...) {
  variables <- lapply(list(...), as.character)
  if (length(variables) == 0 || is.null(names(variables)) || any(names(variables) == "")) {
    stop_metaflow(
      "environment variables need names, such as environment_variables(OMP_NUM_THREADS = 4)",
      "metaflow_usage_error"
    )
  }
  decorator("environment", vars = variables)
}

#' @export
print.metaflow_decorator <- function(x, ...) {
  shown <- vapply(x$attributes, function(value) paste(deparse(value), collapse = ""), "")
  cat(sprintf("<decorator %s(%s)>\n", x$name, paste(names(shown), shown, sep = " = ", collapse = ", ")))
  invisible(x)
}
