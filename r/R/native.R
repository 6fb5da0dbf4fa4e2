# Calls into the Rust part, and the errors of this package.

native <- function(symbol, ...) {
  answer <- .Call(symbol, ...)
  if (!inherits(answer, "extendr_result")) {
    return(answer)
  }
  if (!is.null(answer$err)) {
    stop_metaflow(answer$err, class = "metaflow_data_error", call = NULL)
  }
  answer$ok
}

# Every error of ours has class `metaflow_error`, and a class of its own.
stop_metaflow <- function(message, class = NULL, call = NULL, ...) {
  stop(structure(
    class = c(class, "metaflow_error", "error", "condition"),
    list(message = message, call = call, ...)
  ))
}

to_json <- function(value) native(wrap__rs_to_json, value)

from_json <- function(text, simplify = FALSE) native(wrap__rs_from_json, text, simplify)

# A list that is an object in JSON even when it is empty.
as_object <- function(values = list()) {
  values <- as.list(values)
  if (length(values) == 0) stats_free_names(values) else values
}

stats_free_names <- function(values) {
  names(values) <- character()
  values
}

# The nearest of some names, for `Did you mean`; "" when none is near.
near_match <- function(name, names) {
  if (length(names) == 0) {
    return("")
  }
  distance <- utils::adist(name, names)[1, ]
  best <- which.min(distance)
  if (distance[best] <= max(1, (nchar(name) + 1) %/% 3)) sprintf(" Did you mean `%s`?", names[best]) else ""
}

# One text, and valid UTF-8 whatever bytes it was made of.
plain_text <- function(value) {
  text <- paste(as.character(value), collapse = "\n")
  if (Encoding(text) == "latin1") text <- enc2utf8(text)
  if (Encoding(text) != "bytes" && validUTF8(text)) {
    return(enc2utf8(text))
  }
  iconv(text, "UTF-8", "UTF-8", sub = "byte")
}

is_text <- function(value) is.character(value) && length(value) == 1 && !is.na(value)
