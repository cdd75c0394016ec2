//! A differential test: a cache is transparent.
//!
//! A [`Case`] is a generated application and a list of requests. `run::run` sends the same requests to the application with
//! Larder's layers and to the same application without them, each with its own state, and compares status, body and fields.
//! [`accept`] lists all differences that are allowed. A case that fails is made smaller by [`shrink::shrink`] and printed as the
//! program text of its application and its requests.

pub mod accept;
mod apps;
mod browser;
mod generate;
mod handler;
mod late;
mod print;
mod request;
pub mod run;
mod shrink;
mod wire;
mod world;

pub use generate::case;
pub use request::{Ask, Content, Op};
pub use run::{Difference, Stores};
pub use shrink::shrink;
pub use world::{Framework, Store, World};

/// A generated application and the requests to it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The application.
    pub world: World,
    /// The requests, in order.
    pub ops: Vec<Op>,
}
