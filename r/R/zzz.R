# What has to be known from the moment the package is loaded: how this process was started.

.state <- new.env(parent = emptyenv())

.onLoad <- function(libname, pkgname) {
  .state$directory <- getwd()
  variables <- Sys.getenv()
  .state$environment <- paste0(names(variables), "=", unclass(variables))
  use_magrittr(parent.env(environment()))
  .state$descriptors <- native(wrap__rs_open_descriptors)
}

# library(metaflow) says nothing of `step` being in package stats too.
.onAttach <- function(libname, pkgname) {
  assign(".conflicts.OK", TRUE, envir = as.environment(paste0("package:", pkgname)))
}

#' @useDynLib metaflow, .registration = TRUE
NULL
