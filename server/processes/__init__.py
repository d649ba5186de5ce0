"""Several API processes on one machine: who they are, what they share. May import `tenancy`, and the log."""
