"""How the requests of OTLP are read."""
