//! The registry of decorators: one explicit list that validation, `--with`, help and docs read.
