"""Reports: figures (data apart from drawing), HTML, and the step player. `build.build_report` writes one."""
