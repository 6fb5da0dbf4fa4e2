# Versions, and names that exist for scripts written for the R package of Metaflow.

#' Versions
#'
#' `version_info()` tells which versions of this package and of R are in use, `container_image()` which
#' image a remote R task would use, `metaflow_location()` where the package is. `install_metaflow()` and
#' `remove_metaflow_env()` exist for scripts that call them: this package needs no Python.
#'
#' @param ... Accepted for compatibility.
#' @return A text; `version_info()` prints it.
#' @export
version_info <- function() {
  text <- sprintf("Metaflow for R %s (Ferroflow), R %s", native(wrap__rs_version), r_version())
  cat(text, "\n", sep = "")
  invisible(text)
}

#' @rdname version_info
#' @export
r_version <- function() paste(R.version$major, R.version$minor, sep = ".")

#' @rdname version_info
#' @export
container_image <- function() paste0("rocker/ml:", r_version())

#' @rdname version_info
#' @export
metaflow_location <- function() system.file(package = "metaflow")

#' @rdname version_info
#' @export
install_metaflow <- function(...) {
  message("Nothing to install: the engine came with the package, and no Python is needed.")
  invisible(TRUE)
}

#' @rdname version_info
#' @export
remove_metaflow_env <- function(...) {
  message("Nothing to remove: this package has no Python environment.")
  invisible(TRUE)
}
