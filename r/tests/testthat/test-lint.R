lint <- function(steps) {
  run_flow(c('metaflow("Lint") %>%', steps, "  run()"), "run")
}

expect_refused <- function(result, line, sentence) {
  expect_equal(result$status, 1)
  expect_equal(tail(result$err, 3), c(
    sprintf("    Validity checker found an issue in file DIR/flow.R on line %d:", line), paste0("    ", sentence), ""
  ))
}

test_that("an unknown step is told with the line of its step() call", {
  expect_refused(lint(c(
    '  step(step = "start", next_step = "train") %>%',
    '  step(',
    '    step = "train", next_step = "en"',
    '  ) %>%',
    '  step(step = "end") %>%'
  )), 4, "Step `train` leads to `en`, which is not a step. Did you mean `end`?")
})

test_that("circles, missing ends and missing successors are told", {
  expect_refused(lint(c(
    '  step(step = "start", next_step = "a") %>%',
    '  step(step = "a", next_step = "b") %>%',
    '  step(step = "b", next_step = "a") %>%',
    '  step(step = "end") %>%'
  )), 4, "The flow runs in a circle: a->b->a. It goes from `start` to `end`, each step once.")
  expect_refused(lint(c(
    '  step(step = "start", next_step = "end") %>%',
    '  step(step = "lonely", next_step = "end") %>%',
    '  step(step = "end") %>%'
  )), 4, "Step `lonely` is not reached from the step `start`: name it in the `next_step` of another step, or remove it.")
  expect_refused(lint(c(
    '  step(step = "start", next_step = end) %>%',
    '  step(step = "end") %>%'
  )), 3, "The `next_step` of step `start` is a function; it is the name of a step, in quotes.")
  expect_refused(lint(c(
    '  step(step = "start") %>%',
    '  step(step = "end") %>%'
  )), 3, "Step `start` does not say what follows: give it next_step = \"...\".")
})

test_that("a join without inputs and a non-function are told", {
  expect_refused(lint(c(
    '  step(step = "start", next_step = c("a", "b")) %>%',
    '  step(step = "a", next_step = "j") %>%',
    '  step(step = "b", next_step = "j") %>%',
    '  step(step = "j", next_step = "end") %>%',
    '  step(step = "end") %>%'
  )), 6, "Steps `a` and `b` lead to `j`, which is not a join: say join = TRUE, and let its function take `self` and `inputs`.")
  expect_refused(lint(c(
    '  step(step = "start", next_step = c("a", "b")) %>%',
    '  step(step = "a", next_step = "j") %>%',
    '  step(step = "b", next_step = "j") %>%',
    '  step(step = "j", join = TRUE, r_function = function(self) 1, next_step = "end") %>%',
    '  step(step = "end") %>%'
  )), 6, "Step `j` is a join, so its function takes `self` and `inputs`; it takes `self`.")
  expect_refused(lint(c(
    '  step(step = "start", r_function = "start", next_step = "end") %>%',
    '  step(step = "end") %>%'
  )), 3, "The `r_function` of step `start` is a character, not a function; give the function itself, without quotes.")
})

test_that("mistakes in calls are errors of class metaflow_error", {
  on.exit(rm("Called", envir = globalenv()))
  expect_error(metaflow("Called") %>% step(step = "start", nextstep = "end"),
    "step() has no argument `nextstep`. Did you mean `next_step`?", fixed = TRUE, class = "metaflow_usage_error")
  expect_error(step(1, step = "a"), "step() is called on a flow: begin with metaflow(\"NameOfFlow\") %>% step(...)",
    fixed = TRUE, class = "metaflow_error")
  expect_error(metaflow("Called") %>% step(step = "not a name"), "step() needs the step's name", fixed = TRUE)
  expect_error(metaflow("Called") %>% step("start", next_step = "end"),
    "step() takes the step's name as `step`: step(step = \"start\", ...)", fixed = TRUE, class = "metaflow_usage_error")
  expect_error(step(step = "start"), "step() is called on a flow", fixed = TRUE, class = "metaflow_usage_error")
  expect_error(decorator("resources", 4), "all arguments of decorator \"resources\" need a name", fixed = TRUE)
  expect_error(decorator("retry", times = 1, times = 2), "argument `times` of decorator \"retry\" is given twice", fixed = TRUE)
})

test_that("values that are no value are usage errors", {
  script <- '
metaflow("Typed") %>%
  parameter("alpha", default = 1.5) %>%
  parameter("count", type = "int", required = TRUE) %>%
  step(step = "start", next_step = "end") %>%
  step(step = "end") %>%
  run()
'
  result <- run_flow(script, "run", "--alpha", "abc")
  expect_equal(result$status, 2)
  expect_equal(tail(result$err, 2), c(
    "Error: Invalid value for '--alpha': 'abc' is not a valid float.", "Missing option '--count'."
  ))
})

test_that("a remote layer without a store that it reaches is refused in a sentence", {
  script <- '
metaflow("Remote") %>%
  step(step = "start", next_step = "end", kubernetes(memory = 1000)) %>%
  step(step = "end") %>%
  run()
'
  result <- run_flow(script, "run")
  expect_equal(result$status, 1)
  expect_match(result$err, "step `start` runs on Kubernetes, which requires --datastore=s3, azure or gs", all = FALSE)
})

test_that("parameters that cannot be are told where they are made", {
  on.exit(rm("Called", envir = globalenv()))
  refused <- function(flow, message) expect_error(flow, message, fixed = TRUE, class = "metaflow_usage_error")
  for (name in c("tag", "max-workers", "input", "help")) {
    refused(metaflow("Called") %>% parameter(name), sprintf("parameter name `%s` is a reserved word", name))
  }
  refused(metaflow("Called") %>% parameter("a-b") %>% parameter("a_b"), "parameter `a_b` is there twice")
  refused(metaflow("Called") %>% parameter("at", default = Sys.time()), "the default of parameter `at` is a POSIXct")
})

test_that("many branches in a row are checked in no time", {
  one <- function(number) {
    split <- if (number == 1) "start" else paste0("split", number)
    after <- if (number == 30) "end" else paste0("split", number + 1)
    sides <- paste0(c("left", "right"), number)
    c(
      sprintf('  step(step = "%s", next_step = c("%s", "%s")) %%>%%', split, sides[1], sides[2]),
      sprintf('  step(step = "%s", next_step = "join%d") %%>%%', sides, number),
      sprintf('  step(step = "join%d", join = TRUE, next_step = "%s") %%>%%', number, after)
    )
  }
  steps <- c('metaflow("Long") %>%', unlist(lapply(1:30, one)), '  step(step = "end") %>%', "  run()")
  result <- run_flow(steps, "show")
  expect_equal(result$status, 0)
})
