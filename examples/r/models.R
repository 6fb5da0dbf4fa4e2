# A foreach: one linear model per group of a data frame, each in a task of its own; the join compares
# them. Data frames and vectors can be read from Python, too; the models are R's own.
#
#   Rscript examples/r/models.R run --max-workers 2

library(metaflow)

start <- function(self) {
  self$cars <- mtcars
  self$cylinders <- sort(unique(mtcars$cyl))
}

fit <- function(self) {
  group <- self$cars[self$cars$cyl == self$input, ]
  self$count <- nrow(group)
  self$model <- lm(mpg ~ wt, group)
}

compare <- function(self, inputs) {
  slopes <- vapply(inputs, function(input) coef(input$model)[["wt"]], 0)
  self$table <- data.frame(
    cylinders = vapply(inputs, function(input) input$input, 0),
    cars = unlist(gather_inputs(inputs, "count")),
    miles_per_ton = round(slopes, 2)
  )
}

end <- function(self) {
  print(self$table)
}

metaflow("ModelsR") %>%
  step(step = "start", r_function = start, next_step = "fit", foreach = "cylinders") %>%
  step(step = "fit", r_function = fit, next_step = "compare", retry(times = 1)) %>%
  step(step = "compare", join = TRUE, r_function = compare, next_step = "end") %>%
  step(step = "end", r_function = end) %>%
  run()
