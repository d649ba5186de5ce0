"""Several API processes on one machine: which one this is, and what they share. May import the standard library."""
