# A hundred trivial tasks, each of which keeps one number.
library(metaflow)
metaflow("ManyR") %>%
  step(step = "start", r_function = function(self) self$items <- 1:100, next_step = "work", foreach = "items") %>%
  step(step = "work", r_function = function(self) self$y <- self$input * 2, next_step = "join") %>%
  step(
    step = "join", join = TRUE, next_step = "end",
    r_function = function(self, inputs) self$sum <- sum(unlist(gather_inputs(inputs, "y")))
  ) %>%
  step(step = "end", r_function = function(self) print(self$sum)) %>%
  run()
