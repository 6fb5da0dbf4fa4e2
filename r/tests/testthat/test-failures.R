failing <- '
helper <- function(x) {
  if (x > 2) stop("boom ", x)
  x
}
start <- function(self) {
  self$a <- 1
  helper(3)
}
metaflow("Failing") %%>%%
  step(step = "start", r_function = start, next_step = "end"%s) %%>%%
  step(step = "end", r_function = function(self) print(self$err$message)) %%>%%
  run()
'

test_that("an error shows R's message, its call and the user's own calls", {
  result <- run_flow(sprintf(failing, ""), "run")
  expect_equal(result$status, 1)
  expect_equal(result$out, c(
    "Workflow starting (run-id 1):",
    "[1/start/1 (pid N)] Task is starting.",
    "[1/start/1 (pid N)]     <flow Failing step start> failed:",
    "[1/start/1 (pid N)]     Error in helper(3) : boom 3",
    "[1/start/1 (pid N)]     Calls, the outermost first:",
    "[1/start/1 (pid N)]       1. start(self)",
    "[1/start/1 (pid N)]       2. helper(3)  (flow.R:9)",
    "[1/start/1 (pid N)] Task failed.",
    "Workflow failed.",
    "Flushing logs..."
  ))
  expect_equal(tail(result$err, 4), c(
    "    Step failure:", "    Step start (task-id 1) failed.", "",
    "To finish this run without redoing what is done: Rscript flow.R resume --origin-run-id 1"
  ))
  with_client(result$folder, {
    task <- new_task("Failing/1/start/1")
    expect_false(task$successful)
    expect_equal(task$exception$message, "boom 3")
    expect_equal(task$artifact("a"), 1)
  })
})

test_that("retry() tries again and catch() goes on", {
  retried <- run_flow(sprintf(failing, ", retry(times = 1)"), "run")
  expect_equal(sum(grepl("Error in helper(3) : boom 3", retried$out, fixed = TRUE)), 2)
  caught <- expect_done(run_flow(sprintf(failing, ', catch(var = "err")'), "run"))
  expect_equal(tail(printed(caught), 1), '[1] "boom 3"')
})

test_that("a misspelt artifact is told with a near one", {
  script <- '
metaflow("Misspelt") %>%
  step(step = "start", r_function = function(self) self$result <- 1, next_step = "end") %>%
  step(step = "end", r_function = function(self) print(self$reslt)) %>%
  run()
'
  expect_match(paste(run_flow(script, "run")$out, collapse = "\n"), paste(
    "Error: flow `Misspelt` has no artifact `reslt` in step `end`: set self$reslt here or in a step before.",
    "Did you mean `result`?"
  ), fixed = TRUE)
})

test_that("R's own allocation error ends the run with exit code 1", {
  script <- '
start <- function(self) {
  big_matrix <- matrix(rexp(80000*80000), 80000)
  self$sum <- sum(big_matrix)
}
metaflow("BigSumFlowR") %>%
  step(decorator("resources", memory=60000, cpu=1), step = "start", r_function = start, next_step = "end") %>%
  step(step = "end") %>%
  run()
'
  result <- run_flow(script, "run", limit = 8000000L)
  expect_equal(result$status, 1)
  expect_true("[1/start/1 (pid N)]     Error: cannot allocate vector of size 47.7 Gb" %in% result$out)
  expect_true("[1/start/1 (pid N)]       1. start(self)" %in% result$out)
})

test_that("quit() in a step is a failure, forked or not", {
  script <- '
metaflow("Quits") %>%
  step(step = "start", r_function = function(self) quit(status = 0), next_step = "end") %>%
  step(step = "end") %>%
  run()
'
  for (method in c("fork", "spawn")) {
    result <- run_flow(script, "run", env = c(FERROFLOW_START_METHOD = method))
    expect_equal(result$status, 1)
    expect_match(result$out, "step `start` ended by quit() instead of reaching its end", fixed = TRUE, all = FALSE)
  }
})

test_that("what a task leaves open is written out", {
  script <- '
metaflow("Open") %>%
  step(step = "start", r_function = function(self) { con <- file("out.txt", "w"); writeLines("kept", con); self$con <- NULL }, next_step = "end") %>%
  step(step = "end", r_function = function(self) print(readLines("out.txt"))) %>%
  run()
'
  expect_equal(printed(expect_done(run_flow(script, "run"))), '[1] "kept"')
})

test_that("warnings are shown when they happen", {
  script <- '
metaflow("Warns") %>%
  step(step = "start", r_function = function(self) { warning("careful"); message("then") }, next_step = "end") %>%
  step(step = "end") %>%
  run()
'
  expect_equal(printed(expect_done(run_flow(script, "run"))), c("Warning in start(self) : careful", "then"))
})

test_that("a foreach over nothing fails, and is not tried again", {
  script <- '
metaflow("Nothing") %>%
  step(step = "start", r_function = function(self) self$items <- list(), next_step = "a", foreach = "items", retry(times = 2)) %>%
  step(step = "a", next_step = "j") %>%
  step(step = "j", join = TRUE, next_step = "end") %>%
  step(step = "end") %>%
  run()
'
  result <- run_flow(script, "run")
  expect_equal(result$status, 1)
  told <- grep("Error: the foreach of step `start` over `items` has zero items", result$out, fixed = TRUE)
  expect_length(told, 1)
})

test_that("timeouts, a killed task and a killed engine leave nothing behind", {
  slow <- '
metaflow("Slow") %>%
  step(step = "start", r_function = function(self) { cat(Sys.getpid(), "\\n", file = "pid"); Sys.sleep(60) }, next_step = "end"%s) %>%
  step(step = "end") %>%
  run()
'
  limited <- run_flow(sub("%s", ', decorator("timeout", seconds = 1)', slow, fixed = TRUE), "run")
  expect_equal(limited$status, 1)
  expect_match(limited$out, "Error: step `start` ran for more than 1 second, its time limit", fixed = TRUE, all = FALSE)

  for (victim in c("task", "engine")) {
    folder <- new_folder()
    pid_file <- file.path(folder, "pid")
    writeLines(c("library(metaflow)", sub("%s", "", slow, fixed = TRUE)), file.path(folder, "flow.R"))
    command <- sprintf("cd %s; R_LIBS=%s Rscript flow.R run >out 2>&1 & echo $! > engine", shQuote(folder),
      paste(.libPaths(), collapse = ":"))
    system2("sh", c("-c", shQuote(command)), wait = FALSE)
    wait_for(function() file.exists(pid_file) && length(readLines(pid_file)) > 0)
    task <- as.integer(trimws(readLines(pid_file)))
    engine <- as.integer(readLines(file.path(folder, "engine")))
    tools::pskill(if (victim == "task") task else engine, 9)
    wait_for(function() !dir.exists(file.path("/proc", task)) && !dir.exists(file.path("/proc", engine)))
    wait_for(function() !folder %in% Sys.readlink(Sys.glob("/proc/[0-9]*/cwd")))
    if (victim == "task") {
      expect_match(readLines(file.path(folder, "out")), "Task failed|killed|SIGKILL", all = FALSE)
    } else {
      with_client(folder, expect_false(new_run("Slow/1")$successful))
    }
  }
})

test_that("conditions with strange messages are told, and caught, as any error", {
  result <- run_flow('
odd <- function(message) stop(structure(class = c("odd", "error", "condition"), list(message = message, call = NULL)))
metaflow("Strange") %>%
  step(step = "start", r_function = function(self) odd(NULL), next_step = "two", catch(var = "one")) %>%
  step(step = "two", r_function = function(self) odd(42), next_step = "three", catch(var = "two")) %>%
  step(step = "three", r_function = function(self) odd(c("x", "y")), next_step = "four", catch(var = "three")) %>%
  step(step = "four", r_function = function(self) stop("bad \\xff bytes"), next_step = "end", catch(var = "four")) %>%
  step(step = "end", r_function = function(self) {
    for (name in c("one", "two", "three", "four")) print(self[[name]]$message)
    self$never <- 1
    stop("last \\xe9 one")
  }) %>%
  run()', "run")
  expect_equal(result$status, 1)
  printed <- printed(result)
  expect_equal(grep("^\\[1\\]", printed, value = TRUE), c("[1] \"\"", "[1] \"42\"", "[1] \"x\\ny\"", "[1] \"bad <ff> bytes\""))
  expect_equal(grep("Error in start|last", printed, value = TRUE), "    Error in end(self) : last <e9> one")
})

test_that("an artifact's name that is none is told in a sentence", {
  for (wrong in c("self[[1]]", "self[[c(\"a\", \"b\")]]", "self[[\"\"]] <- 1", "self[[2]] <- 1")) {
    result <- run_flow(sprintf('
metaflow("Names") %%>%%
  step(step = "start", r_function = function(self) %s, next_step = "end") %%>%%
  step(step = "end") %%>%% run()', paste0("{ ", wrong, " }")), "run")
    expect_equal(result$status, 1)
    expect_match(printed(result), "an artifact is found by its name, one text in quotes, not by", fixed = TRUE, all = FALSE)
    expect_false(any(grepl("assign\\(|exists\\(|artifact_name", printed(result))))
  }
})

test_that("a crash shows the user's calls alone, and leaves other tasks their temporary files", {
  result <- expect_done(run_flow('
broken <- function() tools::pskill(Sys.getpid(), 11)
work <- function(self) {
  file <- tempfile()
  if (self$input == "good") {
    saveRDS(1, file)
    file.create("written")
    while (!file.exists("crashed")) Sys.sleep(0.01)
    stopifnot(readRDS(file) == 1)
  } else if (current("retry_count") == 0) {
    while (!file.exists("written")) Sys.sleep(0.01)
    broken()
  } else {
    saveRDS(1, file)
    file.create("crashed")
  }
}
metaflow("Crash") %>%
  step(step = "start", r_function = function(self) self$items <- c("good", "bad"), next_step = "work", foreach = "items") %>%
  step(step = "work", r_function = work, next_step = "join", retry(times = 1, minutes_between_retries = 0)) %>%
  step(step = "join", join = TRUE, r_function = function(self, inputs) NULL, next_step = "end") %>%
  step(step = "end") %>%
  run()
', "run"))
  of_crash <- sub("^\\[1/work/3 \\(pid N\\)\\] ?", "", grep("^\\[1/work/3 ", result$out, value = TRUE))
  expect_equal(of_crash[-c(1, length(of_crash) - 1, length(of_crash))], c(
    "", " *** caught segfault ***", "sent as a signal", "", "Traceback:", " 1: tools::pskill(Sys.getpid(), 11)",
    " 2: broken()", " 3: work(self)", "Task failed with a segmentation fault."
  ))
})

test_that("a fault in native code tells its address, and a full stack is R's error", {
  skip_if(Sys.which("gcc") == "", "a compiler makes the fault")
  folder <- new_folder()
  writeLines(c(
    "void fault(int *n) { *(volatile int *)16 = *n; }",
    "int deeper(volatile char *p, int n) { volatile char b[4096]; b[0] = p[0]; return n ? deeper(b, n + 1) + b[0] : 0; }",
    "void deep(int *n) { volatile char c[1] = {1}; *n = deeper(c, 1); }"
  ), file.path(folder, "faults.c"))
  result <- run_flow('
stopifnot(system2(file.path(R.home("bin"), "R"), c("CMD", "SHLIB", "faults.c"), stdout = FALSE, stderr = FALSE) == 0)
dyn.load("faults.so")
metaflow("Faults") %>%
  step(step = "start", catch(var = "problem"), r_function = function(self) .C("deep", 1L), next_step = "middle") %>%
  step(step = "middle", r_function = function(self) .C("fault", 1L), next_step = "end") %>%
  step(step = "end") %>%
  run()
', "run", folder = folder)
  expect_equal(result$status, 1)
  expect_true("[1/middle/2 (pid N)] address 0x10, cause 'memory not mapped'" %in% result$out)
  expect_true("[1/middle/2 (pid N)]  1: middle(self)" %in% result$out)
})
