"""The HTTP API, and what it needs to serve many clients at once."""
