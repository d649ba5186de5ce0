"""The log: its port, and what works on any log. May import the core, settings and the wall clock."""
