session <- '
helper <- function(x) 2 * x
work <- function(self) self$y <- helper(self$alpha)
flow <- metaflow("Typed") %>%
  parameter("alpha", default = 1) %>%
  step(step = "start", r_function = work, next_step = "end") %>%
  step(step = "end", r_function = function(self) if (self$y > 100) stop("too much") else print(self$y))
'

# Expressions as one types them: `Rscript -e` has no script, like a session.
in_session <- function(code, folder = new_folder()) {
  lines <- c("library(metaflow)", session, code)
  run_command(file.path(R.home("bin"), "Rscript"), c("-e", paste(lines, collapse = "\n")), folder)
}

test_that("functions typed in the global environment run in a new process", {
  result <- expect_done(in_session(c("status <- run(flow, alpha = 4)", "cat('status', status, Sys.getpid() > 0)")))
  expect_equal(printed(result), "[1] 8")
  expect_equal(tail(result$out, 1), "status 0 TRUE")
})

test_that("a failed run gives its exit code, can be resumed and looked at", {
  result <- expect_done(in_session(c(
    "cat('status', run(flow, alpha = 200), '\\n')",
    "cat('status', run(flow, resume = TRUE), '\\n')",
    "cat('status', run(flow, logs = '1/end'), '\\n')",
    "cat('status', run(flow, show = TRUE), '\\n')",
    "cat('status', run(flow, with = 'retry:times=1', tag = c('p', 'q'), max_num_splits = 5), '\\n')",
    "print(new_flow('Typed')$latest_run)"
  )))
  expect_equal(grep("^status", result$out, value = TRUE), paste("status", c(1, 1, 0, 0, 0), ""))
  expect_true("[2/start/1] Cloning previously run task 1/start/1" %in% result$out)
  hint <- "To finish this run without redoing what is done: run(Typed, resume = TRUE, origin_run_id = \"1\")"
  expect_true(hint %in% result$err)
  expect_true("[1] \"3\"" %in% result$out)
})

test_that("an interactive session in a terminal runs a flow, and Ctrl-C stops its tasks", {
  skip_if(Sys.which("script") == "", "the program `script` makes the terminal")
  folder <- new_folder()
  keys <- file.path(folder, "keys")
  system2("mkfifo", shQuote(keys))
  typescript <- file.path(folder, "typescript")
  command <- sprintf("cd %s; R_LIBS=%s exec script -qfec 'R --no-save --no-restore -q' %s < %s > /dev/null",
    shQuote(folder), paste(.libPaths(), collapse = ":"), shQuote(typescript), shQuote(keys))
  system2("sh", c("-c", shQuote(command)), wait = FALSE)
  terminal <- file(keys, "wb")
  on.exit(close(terminal))
  type <- function(text) {
    writeBin(charToRaw(text), terminal)
    flush(terminal)
  }
  seen <- function(text) {
    wait_for(function() file.exists(typescript) && any(grepl(text, readLines(typescript, warn = FALSE), fixed = TRUE)))
  }
  type("library(metaflow); nap <- function(self) { cat('slee', 'ping\\n', sep = ''); Sys.sleep(60) }\n")
  type("f <- metaflow('Naps') %>% step(step = 'start', r_function = nap, next_step = 'end') %>% step(step = 'end')\n")
  type("code <- run(f)\n")
  seen("sleeping")
  type("\003")
  seen("The run was interrupted; its tasks were stopped.")
  type("cat('code', code + 1, '\\n'); quit('no')\n")
  seen("code 131")
  with_client(folder, expect_false(new_run("Naps/1")$successful))
})
