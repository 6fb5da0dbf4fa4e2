folder <- new_folder()
made <- run_flow('
metaflow("Past") %>%
  step(step = "start", r_function = function(self) { self$items <- c("a", "b"); self$x <- 5 }, next_step = "work", foreach = "items") %>%
  step(step = "work", r_function = function(self) { print(self$input); self$y <- self$input }, next_step = "join") %>%
  step(step = "join", join = TRUE, r_function = function(self, inputs) merge_artifacts(self, inputs, exclude = "y"), next_step = "end") %>%
  step(step = "end") %>%
  run(tag = "good")
', "run", folder = folder)

test_that("flows, runs, steps and tasks tell of the past", {
  expect_done(made)
  with_client(folder, {
    expect_equal(list_flows(), "Past")
    flow <- flow_client$new("Past")
    expect_equal(flow$latest_run, "1")
    expect_equal(flow$latest_successful_run, "1")
    expect_equal(flow$runs_with_tags("good"), "1")
    expect_equal(flow$runs_with_tags("bad"), character())
    run <- flow$run("1")
    expect_true(run$successful && run$finished)
    expect_equal(run$steps, c("end", "join", "work", "start"))
    expect_equal(run$artifact("x"), 5)
    expect_equal(run$end_task, "Past/1/end/5")
    step <- new_step(run, "work")
    expect_equal(step$tasks, c("2", "3"))
    task <- step$task(step$a_task)
    expect_equal(task$artifact("y"), "a")
    expect_equal(task$stdout, "[1] \"a\"\n")
    expect_equal(task$index, 0L)
    expect_equal(task$artifacts, c("items", "x", "y"))
    expect_equal(mf_client$new()$task("Past/1/work", "3")$artifact("y"), "b")
  })
})

test_that("clients print summaries", {
  with_client(folder, {
    shown <- capture.output(print(new_run("Past/1")))
    expect_equal(shown[c(1, 2, 5, 6)], c(
      "run            Past/1", "state          done", "tags           good", "steps          end, join, work, start"
    ))
    expect_equal(capture.output(flow_client), "<flow_client: make one with flow_client$new(...)>")
  })
})

test_that("what is not there, or not in the namespace, is an error of its class", {
  with_client(folder, {
    expect_error(new_flow("Pst"), "there is no flow `Pst`", class = "metaflow_not_found")
    expect_error(new_run("Past/9"), class = "metaflow_not_found")
    expect_error(new_run(NULL), "a run is found by its path, one text in quotes, not by NULL", class = "metaflow_usage_error")
    expect_error(new_run(c("Past/1", "Past/2")), "one text in quotes", class = "metaflow_usage_error")
    expect_error(new_step("Past/1/wrk"), "Did you mean `work`?", class = "metaflow_not_found")
    expect_error(new_run("Past/1")$artifact("z"), class = "metaflow_not_found")
    set_namespace("user:nobody")
    expect_error(new_run("Past/1"), class = "metaflow_namespace_mismatch")
    expect_equal(list_flows(), character())
    set_namespace("user:tester")
    expect_equal(list_flows(), "Past")
  })
})

test_that("tags can be changed", {
  with_client(folder, {
    run <- new_run("Past/1")
    run$add_tag("new")
    expect_setequal(run$user_tags, c("good", "new"))
    run$remove_tag("new")
    expect_equal(run$user_tags, "good")
  })
})

test_that("a task that was stopped tells why, and has no artifacts", {
  result <- run_flow('
work <- function(self) {
  if (self$input == "b") {
    while (!file.exists("asleep")) Sys.sleep(0.01)
    stop("bad item")
  }
  file.create("asleep")
  Sys.sleep(600)
}
metaflow("Stopped") %>%
  step(step = "start", r_function = function(self) self$items <- c("a", "b"), next_step = "work", foreach = "items") %>%
  step(step = "work", r_function = work, next_step = "join") %>%
  step(step = "join", join = TRUE, r_function = function(self, inputs) NULL, next_step = "end") %>%
  step(step = "end") %>%
  run()
', "run")
  expect_equal(result$status, 1)
  with_client(result$folder, {
    task <- new_task("Stopped/1/work/2")
    why <- "stopped because step work (task 3) failed"
    expect_equal(task$exception, list(type = "cancelled", message = why, traceback = NULL))
    expect_equal(task$artifacts, character())
    expect_error(task$artifact("x"),
      sprintf("task `Stopped/1/work/2` has no artifact `x`: it ended before it stored anything (%s)", why),
      fixed = TRUE, class = "metaflow_not_found")
    shown <- capture.output(print(task))
    expect_equal(shown[c(2, 3)], c("state          cancelled", paste("cause         ", why)))
    expect_equal(new_task("Stopped/1/work/3")$exception$message, "bad item")
  })
})
