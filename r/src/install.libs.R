# Puts the shared library and the engine where the installed package has them.
libraries <- file.path(R_PACKAGE_DIR, paste0("libs", R_ARCH))
dir.create(libraries, recursive = TRUE, showWarnings = FALSE)
file.copy(paste0("metaflow", SHLIB_EXT), libraries, overwrite = TRUE)
programs <- file.path(R_PACKAGE_DIR, "bin")
dir.create(programs, recursive = TRUE, showWarnings = FALSE)
unlink(file.path(programs, "metaflow"))
file.copy("metaflow-engine", file.path(programs, "metaflow"), overwrite = TRUE, copy.mode = TRUE)
