hello <- '
start <- function(self) self$x <- 5
metaflow("Hello") %>%
  step(step = "start", r_function = start, next_step = "end") %>%
  step(step = "end", r_function = function(self) print(self$x)) %>%
  run()
'

test_that("a flow runs from the command line", {
  result <- expect_done(run_flow(hello, "run"))
  expect_equal(result$out, c(
    "Workflow starting (run-id 1):",
    "[1/start/1 (pid N)] Task is starting.",
    "[1/start/1 (pid N)] Task finished successfully.",
    "[1/end/2 (pid N)] Task is starting.",
    "[1/end/2 (pid N)] [1] 5",
    "[1/end/2 (pid N)] Task finished successfully.",
    "Done!"
  ))
  expect_equal(result$err, c(
    "Metaflow VERSION executing Hello for user:tester",
    "Validating your flow...",
    "    The graph looks good!",
    "Runs are kept in a new local datastore: DIR/.metaflow"
  ))
})

test_that("no argument means run, and run() in R takes what the command line takes", {
  expect_equal(printed(expect_done(run_flow(hello))), "[1] 5")
  shown <- expect_done(run_flow(hello, "show"))
  expect_true("Step start" %in% shown$out)
  from_r <- sub("run\\(\\)", "run(show = TRUE)", hello)
  expect_equal(expect_done(run_flow(from_r))$out, shown$out)
  expect_equal(printed(expect_done(run_flow(from_r, "run"))), "[1] 5")
})

foreach <- '
start <- function(self) {
  self$items <- list("a", "b", "c")
  self$kept <- c(one = 1, two = NA)
}
work <- function(self) {
  self$y <- paste0(self$input, self$index)
}
joined <- function(self, inputs) {
  self$ys <- unlist(gather_inputs(inputs, "y"))
  merge_artifacts(self, inputs, exclude = "y")
}
metaflow("Wide") %>%
  parameter("alpha", default = 0.5) %>%
  step(step = "start", r_function = start, next_step = "work", foreach = "items") %>%
  step(step = "work", r_function = work, next_step = "joined", retry(times = 1)) %>%
  step(step = "joined", join = TRUE, r_function = joined, next_step = "end") %>%
  step(step = "end", r_function = function(self) {
    print(self$ys)
    print(self[["kept"]])
    print(self$alpha)
    print(is.null(self$index))
    print(current("pathspec"))
  }) %>%
  run()
'

test_that("a foreach splits, joins in order and passes artifacts on", {
  expected <- c('[1] "a0" "b1" "c2"', "one two ", "  1  NA ", "[1] 3", "[1] TRUE", '[1] "Wide/1/end/6"')
  expect_equal(printed(expect_done(run_flow(foreach, "run", "--alpha", "3"))), expected)
})

test_that("tasks that are started anew do the same as forked ones", {
  forked <- expect_done(run_flow(foreach, "run"))
  spawned <- expect_done(run_flow(foreach, "run", env = c(FERROFLOW_START_METHOD = "spawn")))
  expect_equal(sort(spawned$out), sort(forked$out))
})

branches <- '
metaflow("Branches") %>%
  step(step = "start", next_step = c("a", "b")) %>%
  step(step = "a", r_function = function(self) { self$x <- 1; self$same <- "s" }, next_step = "join") %>%
  step(step = "b", r_function = function(self) { self$x <- 2; self$same <- "s" }, next_step = "join") %>%
  step(step = "join", join = TRUE, r_function = function(self, inputs) {
    print(names(inputs))
    print(inputs$a$x + inputs$b$x)
    print(tryCatch(merge_artifacts(self, inputs), error = conditionMessage))
    self$x <- 0
    merge_artifacts(self, inputs)
    print(self$same)
  }, next_step = "end") %>%
  step(step = "end") %>%
  run()
'

test_that("inputs of branches have names, and conflicts are told", {
  expect_equal(printed(expect_done(run_flow(branches, "run"))), c(
    '[1] "a" "b"', "[1] 3",
    '[1] "the inputs of step `join` differ in `x`: set them on self before merge_artifacts(), or name them in `exclude`"',
    '[1] "s"'
  ))
})

test_that("environment_variables() hold while the script is read, and only for their step", {
  script <- '
seen <- Sys.getenv("COLOUR")
show <- function(self) print(c(seen, Sys.getenv("COLOUR")))
metaflow("Coloured") %>%
  step(step = "start", r_function = show, next_step = "end", environment_variables(COLOUR = "red")) %>%
  step(step = "end", r_function = show) %>%
  run()
'
  for (method in c("fork", "spawn")) {
    result <- expect_done(run_flow(script, "run", env = c(FERROFLOW_START_METHOD = method)))
    shown <- printed(result)
    expect_equal(shown[2], '[1] "" ""')
    expect_equal(shown[1], if (method == "fork") '[1] "red" "red"' else '[1] "red" "red"')
  }
})

random <- '
%s
metaflow("Random") %%>%%
  step(step = "start", r_function = function(self) self$i <- 1:3, next_step = "draw", foreach = "i") %%>%%
  step(step = "draw", r_function = function(self) self$x <- runif(1), next_step = "join") %%>%%
  step(step = "join", join = TRUE, r_function = function(self, inputs) {
    print(length(unique(unlist(gather_inputs(inputs, "x")))))
  }, next_step = "end") %%>%%
  step(step = "end") %%>%%
  run()
'

test_that("tasks draw numbers of their own, unless the script sets a seed", {
  expect_equal(printed(expect_done(run_flow(sprintf(random, ""), "run"))), "[1] 3")
  expect_equal(printed(expect_done(run_flow(sprintf(random, "runif(1)"), "run"))), "[1] 3")
  expect_equal(printed(expect_done(run_flow(sprintf(random, "set.seed(1)"), "run"))), "[1] 1")
})

test_that("a task has a folder for temporary files of its own, and nothing is left", {
  script <- '
metaflow("Folders") %>%
  step(step = "start", r_function = function(self) { writeLines("x", tempfile()); self$folder <- tempdir() }, next_step = "end") %>%
  step(step = "end", r_function = function(self) print(c(tempdir() == self$folder, dir.exists(self$folder)))) %>%
  run()
'
  folder <- new_folder()
  result <- expect_done(run_flow(script, "run", folder = folder, env = c(TMPDIR = folder)))
  expect_equal(printed(result), "[1] FALSE FALSE")
  expect_equal(list.files(folder, pattern = "^Rtmp"), character())
})

test_that("a script that goes on after run() does so, with the exit code", {
  script <- paste0(sub("run\\(\\)", "run() -> status", hello), '
cat("status", status, new_flow("Hello")$latest_run, "\\n")
')
  result <- expect_done(run_flow(script))
  expect_equal(tail(result$out, 1), "status 0 1 ")
  failed <- expect_done(run_flow('
flow <- metaflow("Fails") %>%
  step(step = "start", r_function = function(self) stop("no"), next_step = "end") %>%
  step(step = "end")
status <- run(flow)
cat("status", status, "\\n")
'))
  expect_equal(tail(failed$out, 1), "status 1 ")
  expect_true("To finish this run without redoing what is done: Rscript flow.R resume --origin-run-id 1" %in% failed$err)
})

test_that("resume runs what failed and clones the rest", {
  script <- '
metaflow("Again") %>%
  step(step = "start", r_function = function(self) self$x <- 7, next_step = "end") %>%
  step(step = "end", r_function = function(self) if (file.exists("fixed")) print(self$x) else stop("not yet")) %>%
  run()
'
  folder <- new_folder()
  expect_equal(run_flow(script, "run", folder = folder)$status, 1)
  file.create(file.path(folder, "fixed"))
  result <- expect_done(run_flow("flow.R", "resume", folder = folder))
  expect_true("[2/start/1] Cloning previously run task 1/start/1" %in% result$out)
  expect_equal(printed(result), "[1] 7")
})

test_that("arguments of run() become options, and typed ones win", {
  script <- '
metaflow("Given") %>%
  parameter("alpha", default = 1L) %>%
  parameter("some-name", default = "x") %>%
  parameter("flag", is_flag = TRUE) %>%
  step(step = "start", r_function = function(self) print(list(self$alpha, self$some_name, self$flag)), next_step = "end") %>%
  step(step = "end") %>%
  run(alpha = 2, some_name = "given", flag = TRUE, tag = c("p", "q"), max_workers = 2)
'
  folder <- new_folder()
  result <- expect_done(run_flow(script, "run", "--some-name", "typed", folder = folder))
  expect_equal(grep("^\\[1\\]", printed(result), value = TRUE), c("[1] 2", '[1] "typed"', "[1] TRUE"))
  with_client(folder, expect_setequal(new_run("Given/1")$user_tags, c("p", "q")))
})

test_that("functions are artifacts, with what they close over", {
  result <- run_flow('
metaflow("Functions") %>%
  step(step = "start", r_function = function(self) {
    power <- 3
    self$cube <- function(x) x^power
    self$total <- sum
    self$both <- list(double = function(x) 2 * x)
  }, next_step = "use") %>%
  step(step = "use", next_step = "end") %>%
  step(step = "end", r_function = function(self) cat(self$cube(2), self$total(1:4), self$both$double(4), "\\n")) %>%
  run()', "run")
  expect_equal(result$status, 0)
  expect_equal(printed(result), "8 10 8 ")
})

test_that("defaults that are NA are NA in the flow", {
  result <- run_flow('
metaflow("Missing") %>%
  parameter("count", default = NA_integer_) %>% parameter("share", default = NA_real_) %>%
  parameter("word", default = NA_character_) %>% parameter("flag", default = NA) %>%
  step(step = "start", r_function = function(self) cat(deparse(list(self$count, self$share, self$word, self$flag)), "\\n"),
    next_step = "end") %>%
  step(step = "end") %>%
  run()', "run")
  expect_equal(result$status, 0)
  expect_equal(printed(result), "list(NA_integer_, NA_real_, NA_character_, NA) ")
})

test_that("what is no input of a join is refused by a sentence, and one input is taken as it is", {
  result <- run_flow('
metaflow("Inputs") %>%
  step(step = "start", next_step = c("a", "b")) %>%
  step(step = "a", r_function = function(self) self$x <- 1, next_step = "join") %>%
  step(step = "b", r_function = function(self) self$x <- 2, next_step = "join") %>%
  step(step = "join", join = TRUE, r_function = function(self, inputs) {
    for (wrong in list(5, self, list(1))) {
      cat(tryCatch(merge_artifacts(self, wrong), metaflow_usage_error = conditionMessage), "\\n")
      cat(tryCatch(gather_inputs(wrong, "x"), metaflow_usage_error = conditionMessage), "\\n")
    }
    merge_artifacts(self, inputs$b)
    cat(self$x, unlist(gather_inputs(inputs$a, "x")))
  }, next_step = "end") %>%
  step(step = "end") %>%
  run()', "run")
  expect_equal(result$status, 0)
  said <- "takes the second argument of a join's function, or some of its elements "
  expect_equal(printed(result), c(
    rep(paste(c("merge_artifacts(self, inputs)", "gather_inputs(inputs, \"x\")"), said), 3), "2 1"
  ))
})

test_that("a foreach's join gets the same inputs in a resumed run, without names", {
  script <- '
metaflow("Resumed") %>%
  step(step = "start", r_function = function(self) self$items <- 1:3, foreach = "items", next_step = "work") %>%
  step(step = "work", r_function = function(self) {
    if (self$index == 1 && !file.exists("fixed")) stop("not yet")
    self$x <- self$input
  }, next_step = "join") %>%
  step(step = "join", join = TRUE, r_function = function(self, inputs) cat(deparse(gather_inputs(inputs, "x"))),
    next_step = "end") %>%
  step(step = "end") %>%
  run()'
  failed <- run_flow(script, "run")
  expect_equal(failed$status, 1)
  file.create(file.path(failed$folder, "fixed"))
  result <- run_flow(script, "resume", folder = failed$folder)
  expect_equal(result$status, 0)
  expect_true("list(1L, 2L, 3L)" %in% printed(result))
})

test_that("a script may have spaces and letters of all languages in its name", {
  result <- run_flow('
metaflow("Spaced") %>%
  step(step = "start", r_function = function(self) { print(basename(getwd())); runif(1) }, next_step = "end") %>%
  step(step = "end", environment_variables(OWN = 1), r_function = function(self) { print(Sys.getenv("OWN")); stop("ö") }) %>%
  run()
', "run", name = "my flow é.R")
  expect_equal(result$status, 1)
  expect_equal(printed(result)[1:2], c(sprintf("[1] \"%s\"", basename(result$folder)), "[1] \"1\""))
  expect_equal(tail(result$err, 1), "To finish this run without redoing what is done: Rscript 'my flow é.R' resume --origin-run-id 1")
})

test_that("tasks of a script that loads package cli are forked, and have its thread", {
  skip_if_not_installed("cli")
  result <- expect_done(run_flow('
library(cli)
pid <- Sys.getpid()
start <- function(self) {
  cat("forked:", pid != Sys.getpid(), "threads:", length(list.files("/proc/self/task")), "\\n")
}
metaflow("Ticks") %>%
  step(step = "start", r_function = start, next_step = "end") %>%
  step(step = "end") %>%
  run()
', "run"))
  expect_false(any(grepl("starts a new interpreter", result$err)))
  expect_equal(printed(result), "forked: TRUE threads: 2 ")
})
