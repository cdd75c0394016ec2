//! Black-box tests: harnesses for the example programs and for their stores, and the scenarios that every program has to pass.

pub mod certificates;
pub mod framework;
pub mod http;
pub mod http2;
pub mod in_process;
pub mod parity;
pub mod proxy;
pub mod redis_cluster;
pub mod redis_server;
pub mod scenarios;
pub mod shop;
pub mod tier;
pub mod transparency;
