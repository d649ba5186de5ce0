"""Several API processes on one machine: their numbers, and what they share. May import `tenancy`, and the log."""
