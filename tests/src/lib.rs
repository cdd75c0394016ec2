//! The project's black-box tests: harnesses for the example programs and for their stores, and the scenarios that
//! every program has to get through.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test harness fails by panicking and says why on stderr"
)]

pub mod http;
pub mod in_process;
pub mod parity;
pub mod redis_server;
pub mod scenarios;
pub mod shop;
