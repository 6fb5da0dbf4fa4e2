# bigsumflow.R of Metaflow's documents with a matrix of 4 GB, of which matrix() makes a copy: too dear
# for every run of the tests. By hand: `Rscript bigsum_4gb.R run`, and with `--with kubernetes` and
# `--with batch` where the variables are set (20, 16 and 76 s in `start` on 2 busy cores).
library(metaflow)

start <- function(self) {
  big_matrix <- matrix(rexp(22361 * 22361), 22361)
  self$sum <- sum(big_matrix)
}

end <- function(self) {
  message("sum is: ", self$sum)
}

metaflow("BigSumFlowR") %>%
  step(
    decorator("resources", memory = 8500, cpu = 1),
    step = "start",
    r_function = start,
    next_step = "end"
  ) %>%
  step(
    step = "end",
    r_function = end
  ) %>%
  run()
