flow_of <- function(parameters, body) {
  c('metaflow("Given") %>%', paste0("  ", parameters, " %>%"),
    sprintf('  step(step = "start", r_function = function(self) { %s }, next_step = "end") %%>%%', body),
    '  step(step = "end") %>%')
}

kinds <- c(
  'parameter("words", default = c("a", "b"))', 'parameter("numbers", default = c(1, 2.5))', 'parameter("day", default = as.Date("2020-01-01"))',
  'parameter("settings", default = list(depth = 3, names = list("x")))', 'parameter("made", default = function() 3L)',
  'parameter("told", default = function(context) paste(context$flow_name, context$parameter_name))'
)
shows <- 'for (name in c("words", "numbers", "day", "settings", "made", "told")) cat(deparse(self[[name]]), sep = "\\n")'

test_that("a parameter is of the type of its default", {
  expect_equal(printed(expect_done(run_flow(c(flow_of(kinds, shows), "  run()"), "run"))), c(
    'c("a", "b")', "c(1, 2.5)", "structure(18262, class = \"Date\")", 'list(depth = 3, names = list("x"))', "3L", '"Given told"'
  ))
  given <- c("--words", "p,q,r", "--numbers", "7", "--day", "2021-02-03", "--settings", '{"depth": 4}', "--made", "9", "--told", "x")
  expect_equal(printed(expect_done(run_flow(c(flow_of(kinds, shows), "  run()"), "run", given))), c(
    'c("p", "q", "r")', "7", "structure(18661, class = \"Date\")", "list(depth = 4L)", "9L", '"x"'
  ))
  wrong <- run_flow(c(flow_of(kinds, shows), "  run()"), "run", "--numbers", "1,x", "--day", "soon", "--made", "y")
  expect_equal(wrong$status, 2)
  expect_equal(tail(wrong$err, 3), c(
    "Error: Invalid value for '--numbers': '1 x' is not a valid float.",
    "Invalid value for '--day': 'soon' is not a valid date, such as 2020-12-31.",
    "Invalid value for '--made': 'y' is not a valid integer."
  ))
})

test_that("values of R that are given to run() arrive as they are", {
  run <- '  run(words = c("u", "v"), numbers = c(0.1 + 0.2, 1e-300), day = as.Date("2022-01-01"), settings = list(a = c(1, 2)), made = 1e5)'
  result <- expect_done(run_flow(c(flow_of(kinds, paste(shows, "; print(self$numbers[1] == 0.1 + 0.2)")), run)))
  expect_equal(printed(result), c(
    'c("u", "v")', "c(0.3, 1e-300)", "structure(18993, class = \"Date\")", "list(a = c(1, 2))", "100000L", '"Given told"', "[1] TRUE"
  ))
})

test_that("arguments that run() cannot use are errors of R", {
  on.exit(rm("Given", envir = globalenv()))
  flow <- metaflow("Given") %>% parameter("alpha", default = 1) %>% parameter("words", default = c("a", "b"))
  refused <- function(message, ...) {
    expect_error(metaflow:::command_of(flow, list(...)), message, fixed = TRUE, class = "metaflow_usage_error")
  }
  refused("run() has no argument `alhpa`, and flow `Given` has no parameter of that name. Did you mean `alpha`?", alhpa = 2)
  refused("parameter `alpha` takes one value, but run() was given 2", alpha = c(1, 2))
  refused("a value of parameter `words` contains `,`, which separates its values", words = c("a,b", "c"))
  refused("a resumed run has the parameters of the run that it resumes: leave out `alpha`", resume = TRUE, alpha = 2)
})

test_that("arguments of run() are options where the command line has them", {
  on.exit(rm("Given", envir = globalenv()))
  flow <- metaflow("Given") %>% parameter("user", default = "me")
  words <- function(...) paste(unlist(metaflow:::command_of(flow, list(...))), collapse = " ")
  expect_equal(words(datastore = "s3", with = c("batch", "retry"), max_workers = 4), "--datastore s3 run --with batch --with retry --max-workers 4")
  expect_equal(words(user = "ann", batch = TRUE), "run --user ann --with batch")
  expect_equal(words(batch = "kill", user = "ann", my_runs = FALSE), "batch kill --user ann")
  expect_equal(words(kubernetes = "list", with = "kubernetes:namespace=a", run_id = 3), "--with kubernetes:namespace=a kubernetes list --run-id 3")
  expect_equal(words(resume = "start", origin_run_id = 3), "resume start --origin-run-id 3")
  expect_equal(words(step_functions = "create", only_json = TRUE), "step-functions create --only-json TRUE")
})
