# `Rscript r/tests/run_tests.R`: the tests of the R package; the last line counts them. Started by
# `make test` with R_LIBS naming the installed package.
suppressPackageStartupMessages(library(testthat))
arguments <- commandArgs(trailingOnly = TRUE)
here <- dirname(sub("^--file=", "", grep("^--file=", commandArgs(), value = TRUE)[1]))
library(metaflow)
Sys.setenv(FERROFLOW_EXAMPLES = normalizePath(file.path(here, "..", "..", "examples")))
results <- as.data.frame(test_dir(
  file.path(here, "testthat"), package = "metaflow", reporter = "check", stop_on_failure = FALSE,
  filter = if (length(arguments) > 0) arguments[1], load_package = "installed"
))
failed <- sum(results$failed > 0 | results$error)
cat(sprintf("R tests: %d passed, %d failed\n", nrow(results) - failed, failed))
quit(status = if (failed > 0) 1 else 0)
