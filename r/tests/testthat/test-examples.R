examples <- file.path(Sys.getenv("FERROFLOW_EXAMPLES"), "r")

run_example <- function(name, ...) {
  folder <- new_folder()
  file.copy(file.path(examples, name), folder)
  printed(expect_done(run_flow(name, ..., folder = folder, name = name)))
}

test_that("every example runs and prints what it is there for", {
  skip_if(!dir.exists(examples), "the examples are not beside the package")
  shown <- list(
    hello.R = '[1] "Hello, you!"',
    models.R = c(
      "  cylinders cars miles_per_ton", "1         4   11         -5.65", "2         6    7         -2.78",
      "3         8   14         -2.19"
    ),
    branches.R = "42 - this branch does not work out "
  )
  expect_setequal(list.files(examples, pattern = "[.]R$"), names(shown))
  expect_equal(run_example("hello.R", "run", "--name-to-greet", "you"), shown$hello.R)
  for (name in c("models.R", "branches.R")) expect_equal(run_example(name, "run"), shown[[name]])
})
