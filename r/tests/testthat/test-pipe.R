# Where magrittr is installed the pipe is magrittr's, so ours is tried in an R that has only this package.
test_that("the pipe puts its left side first, or where the dot is", {
  code <- c(
    "library(metaflow)",
    "stopifnot(!isNamespaceLoaded('magrittr'))",
    "cat(4 %>% sqrt, 4 %>% sqrt(), 2 %>% seq(1, .), 9 %>% base::sqrt(), c(3, 1) %>% sort() %>% rev(), '\\n')",
    "twice <- function(x) { y <- 2; x %>% (function(v) v * y) }",
    "cat(twice(5), 5 %>% { . + 1 }, 3 %>% max(nchar('long'), .), '\\n')",
    "cat(conditionMessage(tryCatch(1 %>% 2, metaflow_usage_error = identity)), '\\n')"
  )
  result <- run_command(file.path(R.home("bin"), "Rscript"), c("-e", paste(code, collapse = "\n")), new_folder(),
    env = c(R_LIBS = dirname(system.file(package = "metaflow")), R_LIBS_SITE = "/none"))
  expect_equal(result$err, character())
  expect_equal(result$out, c(
    "2 2 1 2 3 3 1 ", "10 6 4 ", "the right side of %>% is a call of a function, such as x %>% f() "
  ))
})

test_that("the pipe is magrittr's where that is installed, so that packages which bring it mask nothing", {
  skip_if_not_installed("magrittr")
  result <- run_command(file.path(R.home("bin"), "Rscript"), c("-e", "library(metaflow); library(magrittr); cat(4 %>% { . + 1 })"), new_folder())
  expect_equal(result$out, "5")
  expect_false(any(grepl("%>%", result$err, fixed = TRUE)))
})
