"""Export of events from the log, and import back into it. May import the log and the core."""
