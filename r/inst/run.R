# Runs a flow that a session saved (see R/session.R).
library(metaflow)
metaflow:::run_saved()
