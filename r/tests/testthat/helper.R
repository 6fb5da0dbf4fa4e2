# Runs flows as a user does, each in a folder of its own, without Python on the PATH, and makes what
# they print comparable.

path_without_python <- function() {
  if (!is.null(getOption("metaflow.test.path"))) {
    return(getOption("metaflow.test.path"))
  }
  folder <- tempfile("bin")
  dir.create(folder)
  programs <- list.files(c(R.home("bin"), "/usr/bin", "/bin"), full.names = TRUE)
  programs <- programs[!grepl("python|pip", basename(programs)) & !duplicated(basename(programs))]
  suppressWarnings(file.symlink(programs, file.path(folder, basename(programs))))
  options(metaflow.test.path = folder)
  folder
}

new_folder <- function() {
  folder <- tempfile("flow")
  dir.create(folder)
  normalizePath(folder)
}

# Runs the lines of a script with Rscript; `limit` is a limit of kilobytes of memory.
run_flow <- function(script, ..., folder = new_folder(), env = character(), limit = NULL, name = "flow.R") {
  if (!identical(script, name)) writeLines(c("library(metaflow)", script), file.path(folder, name))
  run_command(file.path(R.home("bin"), "Rscript"), c(name, ...), folder, env, limit)
}

run_command <- function(program, arguments, folder, env = character(), limit = NULL, seconds = 120) {
  out <- tempfile()
  err <- tempfile()
  variables <- c(
    PATH = path_without_python(), HOME = folder, USER = "tester", LANG = "C.UTF-8", TZ = "UTC",
    R_LIBS = paste(.libPaths(), collapse = ":"), TMPDIR = dirname(tempdir()), env
  )
  command <- paste(c("exec", "timeout", seconds, shQuote(c(program, arguments))), collapse = " ")
  if (!is.null(limit)) command <- sprintf("ulimit -v %d; %s", limit, command)
  command <- sprintf("cd %s; exec </dev/null >%s 2>%s; %s", shQuote(folder), out, err, command)
  assignments <- shQuote(paste0(names(variables), "=", variables))
  status <- system2("env", c("-i", assignments, "sh", "-c", shQuote(command)))
  list(
    status = status, out = normal(readLines(out, warn = FALSE), folder),
    err = normal(readLines(err, warn = FALSE), folder), folder = folder
  )
}

normal <- function(lines, folder) {
  lines <- sub("^\\d{4}-\\d\\d-\\d\\d \\d\\d:\\d\\d:\\d\\d\\.\\d{3} ", "", lines, perl = TRUE)
  lines <- gsub("\\(pid \\d+\\)", "(pid N)", lines, perl = TRUE)
  lines <- gsub("Metaflow \\d[^ ]* executing", "Metaflow VERSION executing", lines, perl = TRUE)
  gsub(folder, "DIR", lines, fixed = TRUE)
}

# What tasks printed, without the prefix.
printed <- function(result) {
  lines <- grep("^\\[.*\\(pid N\\)\\] ", result$out, value = TRUE)
  lines <- sub("^\\[[^ ]* \\(pid N\\)\\] ", "", lines)
  lines[!grepl("^Task (is starting|finished)|^Foreach yields", lines)]
}

expect_done <- function(result) {
  expect_equal(result$status, 0, info = paste(c(result$out, result$err), collapse = "\n"))
  invisible(result)
}

# The client on a folder of a test.
with_client <- function(folder, code) {
  before <- getwd()
  setwd(folder)
  set_namespace(NULL)
  on.exit({
    setwd(before)
    set_default_namespace()
  })
  force(code)
}

wait_for <- function(condition, seconds = 30) {
  end <- Sys.time() + seconds
  while (!condition()) {
    if (Sys.time() > end) stop("what the test waits for did not come")
    Sys.sleep(0.02)
  }
}
