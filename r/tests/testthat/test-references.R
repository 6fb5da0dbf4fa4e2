flow <- '
start <- function(self) {
  self$weight <- 5
  self$unread <- "of start"
  self$name <- "mine"
}
keep <- function(self) {
  weight <- self$weight
  self$plus <- function(n) weight + n
  self$later <- function() self$unread
  self$listed <- list(f = function() self$name)
  speeds <- cars
  self$model <- lm(dist ~ speed, speeds)
  self$branches <- c("a", "b")
}
work <- function(self) {
  self$mine <- self$input
  self$get <- function() self$mine
}
join <- function(self, inputs) {
  self$gets <- lapply(inputs, function(input) input$get)
  first <- 1
  self$of_inputs <- function() inputs[[2]]$mine
  merge_artifacts(self, inputs, exclude = c("mine", "get"))
}
end <- function(self) {
  print(self$plus(1))
  print(self$later())
  print(self$listed$f())
  print(round(predict(self$model, data.frame(speed = 10)), 1))
  for (get in self$gets) print(get())
  print(self$of_inputs())
}
metaflow("Kept") %>%
  step(step = "start", r_function = start, next_step = "keep") %>%
  step(step = "keep", r_function = keep, foreach = "branches", next_step = "work") %>%
  step(step = "work", r_function = work, next_step = "join") %>%
  step(step = "join", r_function = join, join = TRUE, next_step = "end") %>%
  step(step = "end", r_function = end) %>%
  run()
'
of_end <- c("[1] 6", "[1] \"of start\"", "[1] \"mine\"", "   1 ", "21.7 ", "[1] \"a\"", "[1] \"b\"", "[1] \"b\"")

test_that("functions that hold self or inputs are artifacts, for later steps, resumed runs and the client", {
  folder <- new_folder()
  expect_equal(printed(expect_done(run_flow(flow, "run", folder = folder))), of_end)
  resumed <- expect_done(run_flow(flow, "resume", "end", folder = folder))
  expect_equal(tail(printed(resumed), 8), of_end)
  spawned <- expect_done(run_flow(flow, "run", folder = folder, env = c(FERROFLOW_START_METHOD = "spawn")))
  expect_equal(printed(spawned), of_end)
  with_client(folder, {
    task <- new_task("Kept/1/end/6")
    expect_equal(task$artifact("later")(), "of start")
    expect_equal(task$artifact("of_inputs")(), "b")
    expect_equal(vapply(task$artifact("gets"), function(get) get(), ""), c("a", "b"))
    expect_equal(new_task("Kept/1/work/4")$artifact("get")(), "b")
  })
})

test_that("what a function holds of its task is not stored with it", {
  result <- expect_done(run_flow('
start <- function(self) {
  self$large <- runif(1e6)
  total <- sum(self$large)
  self$f <- function() total
}
metaflow("Small") %>%
  step(step = "start", r_function = start, next_step = "end") %>%
  step(step = "end", r_function = function(self) self$f()) %>%
  run()
', "run"))
  with_client(result$folder, {
    path <- file.path(result$folder, ".metaflow", "Small", "runs", "1")
    expect_lt(max(file.size(list.files(path, recursive = TRUE, full.names = TRUE))), 100000)
  })
})

test_that("an artifact may be called name, and names that are kept for us are refused", {
  result <- expect_done(run_flow('
refused <- function(code) cat(tryCatch({ code; "taken" }, metaflow_error = conditionMessage), "\\n")
start <- function(self) {
  print(self$name)
  self$name <- "mine"
  self$`__own` <- 1
  refused(self$index <- 1)
  refused(self$input <- 1)
  refused(self$`_task_ok` <- 1)
}
end <- function(self) {
  print(names(self))
  print(self$name)
}
metaflow("Named") %>%
  step(step = "start", r_function = start, next_step = c("a", "b")) %>%
  step(step = "a", r_function = function(self) self$name <- "of a", next_step = "join") %>%
  step(step = "b", next_step = "join") %>%
  step(step = "join", join = TRUE, next_step = "end", r_function = function(self, inputs) {
    print(names(inputs$a))
    refused(merge_artifacts(self, inputs))
    merge_artifacts(self, inputs, exclude = "name")
    self$name <- inputs$b$name
  }) %>%
  step(step = "end", r_function = end) %>%
  run()
', "run"))
  expect_equal(printed(result), c(
    "[1] \"Named\"", "self$index is the foreach's; assign to an artifact of another name ",
    "self$input is the foreach's; assign to an artifact of another name ",
    "self$_task_ok is kept by Metaflow itself; assign to an artifact of another name ",
    "[1] \"__own\" \"name\" ",
    "the inputs of step `join` differ in `name`: set them on self before merge_artifacts(), or name them in `exclude` ",
    "[1] \"__own\" \"name\" ", "[1] \"mine\""
  ))
  with_client(result$folder, {
    expect_equal(new_run("Named/1")$artifact("name"), "mine")
    expect_equal(new_run("Named/1")$artifacts, "name")
  })
})

test_that("self and inputs can be used with with() and as.list()", {
  result <- expect_done(run_flow('
metaflow("With") %>%
  step(step = "start", r_function = function(self) { self$x <- 1; self$y <- 2; print(with(self, sum(x, y))) }, next_step = c("a", "b")) %>%
  step(step = "a", next_step = "join") %>%
  step(step = "b", next_step = "join") %>%
  step(step = "join", join = TRUE, next_step = "end", r_function = function(self, inputs) {
    print(with(inputs$a, x + y))
    print(unlist(as.list(inputs$b)))
    merge_artifacts(self, inputs)
    print(unlist(as.list(self)))
  }) %>%
  step(step = "end") %>%
  run()
', "run"))
  expect_equal(printed(result), c("[1] 3", "[1] 3", "x y ", "1 2 ", "x y ", "1 2 "))
})
