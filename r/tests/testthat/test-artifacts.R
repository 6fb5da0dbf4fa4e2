round_trip <- function(value) {
  root <- new_folder()
  pack <- native(wrap__rs_new_pack, root, "F", "1", "s", 1, 0L)
  write_artifact(pack, "x", value)
  native(wrap__rs_commit, pack, "{}")
  reference <- list(run = "1", step = "s", tasks = list(list(1L, 1L, 0L)))
  opened <- native(wrap__rs_open_packs, root, "F", to_json(reference))[[1]]
  list(value = read_artifact(opened, "x"), info = native(wrap__rs_pack_info, opened, "x"))
}

native <- metaflow:::native
write_artifact <- metaflow:::write_artifact
read_artifact <- metaflow:::read_artifact
to_json <- metaflow:::to_json
for (name in c("wrap__rs_new_pack", "wrap__rs_commit", "wrap__rs_open_packs", "wrap__rs_pack_info")) {
  assign(name, get(name, asNamespace("metaflow")))
}

test_that("plain values come back exactly, and other languages can read them", {
  values <- list(
    NULL, TRUE, NA, 5L, NA_integer_, 5, 0.1 + 0.2, NA_real_, -0, 1e300, "text", "grüße \U1F600", NA_character_, "",
    c(TRUE, NA, FALSE), 1:10, c(1.5, NA), c(a = 1, b = 2), c(x = "y"), character(), integer(), numeric(), list(),
    list(1, "a", NULL, TRUE), list(a = 1, b = list(c = 1:3, d = list())), list(1L, 2L, 3L), setNames(list(), character())
  )
  for (value in values) {
    back <- round_trip(value)
    expect_identical(back$value, value)
    expect_equal(back$info$encoding, "json")
  }
})

test_that("vectors, matrices and data frames are stored in columns", {
  frame <- data.frame(
    d = c(1.5, NA, NaN), i = c(1L, NA, 3L), l = c(TRUE, NA, FALSE), c = c("x", NA, "ü"), f = factor(c("u", NA, "v")),
    o = factor(c("lo", "hi", "lo"), levels = c("lo", "hi"), ordered = TRUE), day = as.Date("2020-01-01") + 0:2,
    at = as.POSIXct(c(0, 1, NA), origin = "1970-01-01", tz = "UTC")
  )
  named <- data.frame(x = 1:2, row.names = c("first", "second"))
  values <- list(frame, named, frame[0, ], frame[c(1, 3), ], factor(c("u", NA)), as.Date("2020-01-01"), frame$at, frame$o, as.numeric(1:20000), rep(c("a", NA), 20000), c(1, Inf), matrix(1:6, 2),
    array(runif(24), 2:4))
  for (value in values) {
    back <- round_trip(value)
    expect_identical(back$value, value)
    expect_equal(back$info$encoding, "pickle-5")
  }
})

test_that("everything else is serialized", {
  fit <- lm(dist ~ speed, cars)
  expect_equal(coef(round_trip(fit)$value), coef(fit))
  values <- list(1i, factor(c(one = "a")), as.POSIXlt("2020-01-01", tz = "UTC"), c(a = 1, a = 2), quote(x + y), list(structure(1, class = "k")))
  for (value in values) expect_identical(round_trip(value)$value, value)
  expect_identical(round_trip(as.raw(1:3))$value, as.raw(1:3))
  expect_equal(round_trip(as.raw(1:3))$info$encoding, "raw")
})

test_that("text that is not UTF-8 comes back byte for byte", {
  latin <- "caf\xe9"
  Encoding(latin) <- "latin1"
  back <- round_trip(latin)
  expect_identical(back$value, "caf\u00e9")
  expect_equal(back$info$encoding, "json")
  invalid <- "a\xff\xfeb"
  bytes <- invalid
  Encoding(bytes) <- "bytes"
  for (value in list(invalid, c("x", invalid), bytes, c(a = bytes), list(invalid), c(rep("x", 20000), invalid))) {
    back <- round_trip(value)$value
    expect_equal(names(back), names(value))
    expect_identical(lapply(unlist(back), charToRaw), lapply(unlist(value), charToRaw))
  }
  frame <- data.frame(x = c(invalid, latin))
  expect_identical(lapply(round_trip(frame)$value$x, charToRaw), lapply(frame$x, charToRaw))
  expect_identical(round_trip(data.frame(x = latin))$value$x, "caf\u00e9")
})

test_that("a damaged artifact is an error that names it", {
  root <- new_folder()
  pack <- native(wrap__rs_new_pack, root, "F", "1", "s", 1, 0L)
  write_artifact(pack, "x", runif(20000))
  native(wrap__rs_commit, pack, "{}")
  blob <- list.files(file.path(root, "data"), recursive = TRUE, full.names = TRUE)[1]
  connection <- file(blob, "r+b")
  seek(connection, 5000, rw = "write")
  writeBin(as.raw(c(1, 2, 3, 4)), connection)
  close(connection)
  reference <- list(run = "1", step = "s", tasks = list(list(1L, 1L, 0L)))
  opened <- native(wrap__rs_open_packs, root, "F", to_json(reference))[[1]]
  expect_error(read_artifact(opened, "x"), "artifact `x` of task `F/1/s/1` (attempt 0) is damaged", fixed = TRUE,
    class = "metaflow_data_error")
})
