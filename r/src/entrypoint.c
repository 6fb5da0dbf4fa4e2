/* R calls R_init_<package>; the Rust part has its own name for it. */
void R_init_metaflow_extendr(void *dll);

void R_init_metaflow(void *dll) { R_init_metaflow_extendr(dll); }
