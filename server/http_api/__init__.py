"""The HTTP API and the page: everything that knows aiohttp.web and paths. May import all of `server` below it."""
