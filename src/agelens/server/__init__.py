"""
The service: HTTP and WebSocket in front of a pool of inference processes.
"""
