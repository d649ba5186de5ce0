"""The `spendstream` protobuf packages."""
