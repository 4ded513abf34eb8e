"""One adapter per data set: from its folders and tables to scan records. `registry` finds the right one."""
