//! HTTP calls to the app: pool, limiter, breaker.
