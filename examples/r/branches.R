# Branches that run side by side; one may fail without stopping the run.
#
#   Rscript examples/r/branches.R run

library(metaflow)

fast <- function(self) {
  self$answer <- 42
}

risky <- function(self) {
  stop("this branch does not work out")
}

choose <- function(self, inputs) {
  self$answer <- inputs$fast$answer
  self$problem <- inputs$risky$problem$message
}

metaflow("BranchesR") %>%
  step(step = "start", next_step = c("fast", "risky")) %>%
  step(step = "fast", r_function = fast, next_step = "choose") %>%
  step(step = "risky", r_function = risky, next_step = "choose", catch(var = "problem", print_exception = FALSE)) %>%
  step(step = "choose", join = TRUE, r_function = choose, next_step = "end") %>%
  step(step = "end", r_function = function(self) cat(self$answer, "-", self$problem, "\n")) %>%
  run()
