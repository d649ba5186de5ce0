"""The gRPC API: everything that knows grpc.aio. May import all of `server` below it."""
