"""Programs of applications that are instrumented, and what they need installed: none of it is imported by the tests.

They run in environments of their own (tools/otlp_clients.py), against the stand-in of `tests.support.model_api`.
"""
