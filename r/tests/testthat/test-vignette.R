vignette_file <- file.path(dirname(Sys.getenv("FERROFLOW_EXAMPLES")), "r", "vignettes", "metaflow.Rmd")

test_that("the vignette's code runs", {
  skip_if(!file.exists(vignette_file), "the vignette is not beside the package")
  lines <- readLines(vignette_file)
  fences <- grep("^```", lines)
  starts <- fences[grepl("^```\\{r", lines[fences])]
  code <- unlist(lapply(starts, function(start) lines[seq(start + 1, fences[fences > start][1] - 1)]))
  # Interactive shows what top-level expressions come to; so does this.
  result <- expect_done(run_command(file.path(R.home("bin"), "Rscript"), c("-e", paste(code, collapse = "\n")), new_folder()))
  expect_true("[1] 0" %in% result$out)
  expect_true("[1] -5.65 -2.78 -2.19" %in% result$out)
  expect_true("steps          end, compare, fit, start" %in% result$out)
})
