"""The front end: both doors in (HTTP, gRPC), one intake behind them, and the reads."""
