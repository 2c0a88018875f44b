//! A pool of services that a `MakeService` makes as they are needed, as a tower service.
//!
//! Owns how many services there are, and which of them gets a request. Does not own what a service is (any tower service
//! that tells its [`Load`](tower::load::Load)), nor instances that others registered: those are the business of
//! [`crate::members`], and a pool of them is a [`registry_pool`].
//!
//! | | [`SteadyPool`] | [`Pool`], classic |
//! |---|---|---|
//! | goes by | demand over time: requests in flight and waiting, in services' worth | how often a poll found it not ready |
//! | driven by | a task of its own | whoever polls it |
//! | shared by | clones; requests wait in one queue, first come, first served | `&mut self`, as tower's `Balance` |
//! | a maker's error | is retried with backoff; no request fails while a service lives | fails a caller if no service lives |
//! | a service that is not needed | finishes what it has | is dropped; calls that it began go on by themselves |
//!
//! Take [`SteadyPool`], unless something relies on the behaviour of the pool that tower had until 0.4.
//!
//! ```text
//!                      usage, time                     grow, shrink
//!            +----------------------> sizing (pure) ------------------+
//!            |                                                        v
//!   call -> queue -> worker: a free service, the less loaded of two <- make, drain
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `steady` | the steady pool: its worker, its queue, what it shows |
//! | `classic` | the classic pool |
//! | `registry` | the pool whose members are registered instances: [`registry_pool`] |
//! | `error` | what a caller is told |
//!
//! How many services there are to be is decided by [`crate::sizing`], which is pure.
//!
//! Keeps *at most once* (a request is given to one service, and never again), *drained, not cut*, and that a caller who goes
//! away leaves nothing behind, wherever it was waiting.

mod classic;
mod error;
mod registry;
mod steady;

pub use crate::sizing::{self, SettingsError, SizeChange};
pub use classic::{Builder, Pool, ResponseFuture};
pub use error::PoolError;
pub use registry::{RegistryPool, registry_pool};
pub use steady::{ServiceSnapshot, ServiceState, SteadyBuilder, SteadyPool, SteadySnapshot};
