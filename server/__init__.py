"""The OpenAI-compatible HTTP server.

Way of a call: route -> `schema.parse` -> `requests` -> `EngineClient.generate` -> `stream` or `whole` -> `responses`.
The engine has a process of its own: `client` and `worker` are the two ends of the socket to it, `messages` what it carries.
"""
