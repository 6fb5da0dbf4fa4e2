# The pipe. Ours, so that an image needs no package but this one; where magrittr is installed it is
# magrittr's, with all that can do, and packages that bring it along mask nothing.

#' Pipe
#'
#' `x %>% f(y)` is `f(x, y)`, and `x %>% f(y, .)` is `f(y, x)`.
#'
#' @param lhs A value.
#' @param rhs A call of a function, or the name of one.
#' @return The value of the call.
#' @examples
#' c(1, 4, 9) %>% sqrt() %>% sum()
#' @export
`%>%` <- function(lhs, rhs) {
  rhs <- substitute(rhs)
  scene <- new.env(parent = parent.frame())
  scene$. <- lhs
  eval(piped_call(rhs), scene)
}

piped_call <- function(rhs) {
  of <- if (is.call(rhs) && is.name(rhs[[1]])) as.character(rhs[[1]]) else ""
  names_a_function <- is.name(rhs) || of %in% c("::", ":::", "(", "function", "$")
  if (names_a_function) {
    return(as.call(list(rhs, quote(.))))
  }
  if (!is.call(rhs)) {
    stop_metaflow("the right side of %>% is a call of a function, such as x %>% f()", "metaflow_usage_error")
  }
  has_place <- any(vapply(as.list(rhs)[-1], identical, NA, quote(.)))
  if (has_place || identical(rhs[[1]], quote(`{`))) rhs else as.call(append(as.list(rhs), quote(.), after = 1))
}

# While this package is loaded.
use_magrittr <- function(namespace) {
  if (requireNamespace("magrittr", quietly = TRUE)) {
    assign("%>%", getExportedValue("magrittr", "%>%"), envir = namespace)
  }
}
