# The first code in a remote R task's container: fetches the flow's code and hands over to the package
# in it. Base R alone, and below 10,000 bytes, which is what R takes on its command line.
options(warn = -1, timeout = 60)
get <- function(name, otherwise = "") Sys.getenv(name, otherwise)
image <- get("FERROFLOW_IMAGE", "of this task")

end <- function(text, kind = "image", again = FALSE) {
  code <- if (again) 122L else 121L
  quoted <- encodeString(enc2utf8(gsub("[[:cntrl:]]+", " ", text)), quote = "\"")
  message <- paste0(
    "{\"outcome\":null,\"exit\":{\"code\":", code, "},\"usage\":{\"cpu_seconds\":0.0,\"peak_memory\":0},",
    "\"cause\":{\"kind\":\"", kind, "\",\"text\":", quoted, "},\"sign_again\":", if (again) "true" else "false", "}"
  )
  cat(text, ".\n", sep = "", file = stderr())
  # Only Kubernetes reads this file; elsewhere the exit code says it.
  try(cat(message, file = get("FERROFLOW_TERMINATION_LOG", "/dev/termination-log")), silent = TRUE)
  quit("no", code)
}

# Bytes of an address, tried for half a minute; `check` says what is wrong with them, or NULL.
fetch <- function(what, url, check = function(data) NULL) {
  host <- strsplit(url, "[/?]")[[1]][3]
  for (wait in c(0.5, 1, 2, 4, 8, 15, 0)) {
    file <- tempfile()
    said <- NULL
    options(warn = 0)
    tryCatch(
      withCallingHandlers(
        utils::download.file(url, file, "libcurl", quiet = TRUE, mode = "wb"),
        warning = function(w) {
          said <<- c(said, conditionMessage(w))
          invokeRestart("muffleWarning")
        }
      ),
      error = function(e) said <<- c(said, conditionMessage(e))
    )
    options(warn = -1)
    if (is.null(said)) {
      data <- readBin(file, "raw", file.size(file))
      unlink(file)
      problem <- check(data)
      if (is.null(problem)) return(data)
    } else {
      # The address has a signature in it, which is a secret.
      told <- gsub(url, host, said, fixed = TRUE)
      problem <- sub("^.*status was '(.*)'.*$", "\\1", c(grep("status was", told, value = TRUE), told)[1])
      status <- if (grepl("^[0-9]{3} ", problem)) as.integer(substr(problem, 1, 3)) else 0L
      if (status > 0) problem <- paste("HTTP", problem)
      if (status %in% c(401L, 403L)) {
        end(sprintf("%s may not be fetched from %s any more (%s)", what, host, problem), "layer_error", TRUE)
      }
      if (status >= 400 && status < 500 && !status %in% c(408L, 429L)) break
    }
    Sys.sleep(wait)
  }
  end(sprintf("%s could not be fetched from %s: %s", what, host, problem), "layer_error")
}

fetch_code <- function(url) {
  archive <- NULL
  size <- as.numeric(get("FERROFLOW_CODE_SIZE"))
  fetch("the code package", url, function(data) {
    # R hangs on a gzip file that was cut off; its last bytes are the size of what is inside.
    last <- as.integer(utils::tail(data, 4))
    whole <- length(data) > 18 && sum(last * 256^(0:3)) == size %% 2^32
    archive <<- if (whole) tryCatch(memDecompress(data, "gzip"), error = function(e) NULL)
    if (is.null(archive)) sprintf("%d bytes came that are not what was stored", length(data))
  })
  archive
}

# A tar archive into a folder. R's own `untar` says nothing when the disk is full.
write_files <- function(archive, folder) {
  text <- function(bytes) rawToChar(bytes[cumsum(bytes == 0) == 0])
  from <- rawConnection(archive)
  long <- NULL
  repeat {
    head <- readBin(from, "raw", 512)
    if (length(head) < 512 || all(head == 0)) break
    size <- strtoi(text(head[125:135]), 8L)
    data <- readBin(from, "raw", size)
    readBin(from, "raw", -size %% 512)
    if (head[157] == charToRaw("L")) {
      long <- text(data)
      next
    }
    path <- file.path(folder, if (is.null(long)) text(head[1:100]) else long)
    long <- NULL
    if (head[157] != charToRaw("0")) next
    dir.create(dirname(path), FALSE, TRUE)
    writeBin(data, path)
    if (!isTRUE(file.size(path) == size)) stop("No space left on device")
    Sys.chmod(path, text(head[102:107]))
  }
  close(from)
}

unpack <- function(archive) {
  folder <- paste0(sub("/$", "", getwd()), "/metaflow")
  dir.create(folder, showWarnings = FALSE)
  if (file.access(folder, 2) != 0) dir.create(folder <- tempfile("metaflow-", "/tmp"))
  tryCatch(write_files(archive, folder), error = function(e) {
    end(sprintf("the code could not be unpacked into `%s`: %s", folder, conditionMessage(e)), "layer_error")
  })
  folder
}

# The package in the code has a library in it that was built for one R, processor and C library.
check_image <- function(package) {
  built <- strsplit(read.dcf(file.path(package, "DESCRIPTION"), "Built")[1], "; *")[[1]]
  made <- sub("^R ", "", built[1])
  here <- paste(R.version$major, R.version$minor, sep = ".")
  processor <- function(platform) sub("-.*$", "", platform)
  if (processor(built[2]) != processor(R.version$platform)) {
    end(sprintf(
      "the image `%s` runs on %s, and the package `metaflow` of this run was built for %s: choose nodes and an image for %s",
      image, processor(R.version$platform), processor(built[2]), processor(built[2])
    ))
  }
  if (grepl("musl", R.version$platform) != grepl("musl", built[2])) {
    end(sprintf("the image `%s` has another C library (%s) than the machine the run was started on (%s): choose an image for that, such as rocker/r-ver:%s",
      image, R.version$platform, built[2], made))
  }
  minor <- function(version) package_version(sub("^([0-9]+[.][0-9]+).*$", "\\1", version))
  if (minor(here) < minor(made) || R.version$major != sub("[.].*$", "", made)) {
    end(sprintf("the image `%s` has R %s, and the run was started with R %s: choose an image with R %s, such as rocker/r-ver:%s",
      image, here, made, made, made))
  }
  paste0("R ", here, ", where the run was started with R ", made)
}

begin <- function() {
  url <- get("FERROFLOW_CODE_URL")
  children <- NULL
  # One job for many tasks: what is this one's own is in a list, the code's address perhaps, too.
  if (nzchar(get("FERROFLOW_CHILDREN_URL"))) {
    children <- rawToChar(fetch("the list of tasks", get("FERROFLOW_CHILDREN_URL")))
    if (!nzchar(url)) url <- sub("^.*?\"FERROFLOW_CODE_URL\":\"([^\"]*)\".*$", "\\1", children, perl = TRUE)
  }
  setwd(unpack(fetch_code(url)))
  library <- file.path(getwd(), ".mf_code")
  versions <- check_image(file.path(library, "metaflow"))
  package <- tryCatch(loadNamespace("metaflow", lib.loc = library), error = function(e) {
    end(sprintf("the image `%s` (%s) cannot load the package of the code: %s", image, versions, conditionMessage(e)))
  })
  package$run_remote(fetch, end, children)
}

begin()
