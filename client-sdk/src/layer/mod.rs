//! Any tower service, balanced over whatever is registered right now.
//!
//! A [`LoadBalanceLayer`] turns what makes a service for one address (tower's `MakeService`) into one service for all of them. Owns
//! the services: making them, driving their readiness, making them anew. Which instances there are, who is chosen and
//! how a request waits is the business of [`crate::members`], as for the [channel](crate::channel).
//!
//! ```text
//!   call ---> search (crate::members) ---> slot: the instance's service is ready ---> Service::call ---> response
//!               ^                            |
//!               +--- not ready any more -----+
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `builder` | what a layer may be told, and the layer |
//! | `target` | what a service is made for |
//! | `actor` | the life of one instance's services |
//! | `slot` | one instance's service, and calls to it |
//! | `place` | the service itself, under its lock |
//! | `service` | one request |
//! | `error` | what a caller is told |
//!
//! Keeps its part of C2 (what is in flight to an instance that goes finishes; a choice is an instance with its own slot,
//! never an index), *at most once* (a request is given to one service, and to another only where retries are set), and
//! that everything advances while idle.

mod actor;
mod builder;
mod error;
mod place;
mod service;
mod slot;
mod target;

pub use builder::{LoadBalanceBuilder, LoadBalanceLayer};
pub use error::{LoadBalancedError, MakeError};
pub use service::LoadBalanced;
pub use target::Target;

pub use crate::members::{
    Aperture, ConnectionState, InstanceSnapshot, Overflow, RouteError, Snapshot, Standing,
};
