//! The project's tests, and what they share.

pub mod redis_server;
