//! HTTP/1.1 and WebSocket bytes to values and back. Pure: no I/O, no clock, no logging.
