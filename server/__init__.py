"""The OpenAI-compatible HTTP server.

Way of a call: route -> `schema.parse` -> `requests` -> `Bridge.submit` -> `stream` or `collect` -> `responses`.
"""
