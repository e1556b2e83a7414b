//! Action Cable and RPC JSON to values and back. Pure: no I/O, no clock, no logging.
