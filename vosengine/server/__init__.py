"""`vosengine serve`: live streams over HTTP and WebSocket, on one engine."""
