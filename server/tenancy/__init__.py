"""Organization, project, key: the directory and its administration. May import `errors`, and the log."""
