"""The API process: HTTP and gRPC, one intake behind both, the reads, and the command line."""
