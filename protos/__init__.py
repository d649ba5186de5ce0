"""The wire format: protobuf sources and their generated modules. Imports nothing of ours."""
