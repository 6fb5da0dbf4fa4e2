# Each thing an R flow may do, for the tests of remote layers.
library(metaflow)
source("helpers/names.R")

start <- function(self) {
  cat("python:", nzchar(Sys.which("python3")), "\n")
  self$frame <- data.frame(n = 1:3, name = names_of(3))
  self$items <- c("a", "b", "c")
  self$mark <- "!"
  self$shout <- function(text) paste0(toupper(text), self$mark)
}
work <- function(self) {
  message("to stderr: ", self$input)
  if (self$input == "b" && current("retry_count") == 0) stop("only once")
  self$out <- paste0(toupper(self$input), self$frame$name[self$index + 1])
}
join <- function(self, inputs) {
  merge_artifacts(self, inputs, exclude = c("items", "out"))
  self$all <- unlist(gather_inputs(inputs, "out"))
  self$second <- function() inputs[[2]]$out
}
compiled <- function(self) {
  # A folder of a library of C, and one file that R itself compiles.
  stopifnot(system2(file.path(R.home("bin"), "R"), c("CMD", "SHLIB", "fast/sum.c"), stdout = FALSE) == 0)
  dyn.load("fast/sum.so")
  Rcpp::sourceCpp("fast/twice.cpp")
  self$sums <- c(.C("sum_up", as.double(1:10), 10L, total = 0)$total, twice(21))
  self$settings <- Sys.getenv(c("OWN_SETTING", "R_CONFIG_ACTIVE", "METAFLOW_RUNTIME_ENVIRONMENT"))
}
fails <- function(self) {
  deeper <- function(x) x + "text"
  deeper(1)
}
after <- function(self, inputs) {
  self$problem <- inputs$fails$problem
  merge_artifacts(self, list(inputs$compiled))
}
end <- function(self) {
  print(self$all)
  print(self$sums)
  cat(self$settings, "\n")
  cat(self$problem$message, "\n")
  print(self$frame)
  cat(self$shout("done"), self$second(), "\n")
}

metaflow("RemoteR") %>%
  parameter("alpha", default = 0.5) %>%
  step(step = "start", r_function = start, next_step = "work", foreach = "items") %>%
  step(step = "work", r_function = work, next_step = "join", retry(times = 1, minutes_between_retries = 0)) %>%
  step(step = "join", r_function = join, join = TRUE, next_step = "split") %>%
  step(step = "split", next_step = c("compiled", "fails")) %>%
  step(step = "compiled", r_function = compiled, next_step = "after", environment_variables(OWN_SETTING = "set")) %>%
  step(step = "fails", r_function = fails, next_step = "after", catch(var = "problem")) %>%
  step(step = "after", r_function = after, join = TRUE, next_step = "end") %>%
  step(step = "end", r_function = end) %>%
  run()
