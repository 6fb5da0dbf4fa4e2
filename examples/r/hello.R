# The smallest flow: two steps, one artifact and a parameter.
#
#   Rscript examples/r/hello.R run --name-to-greet you

library(metaflow)

start <- function(self) {
  self$greeting <- paste0("Hello, ", self$name_to_greet, "!")
}

end <- function(self) {
  print(self$greeting)
}

metaflow("HelloR") %>%
  parameter("name-to-greet", default = "world", help = "Whom to greet") %>%
  step(step = "start", r_function = start, next_step = "end") %>%
  step(step = "end", r_function = end) %>%
  run()
