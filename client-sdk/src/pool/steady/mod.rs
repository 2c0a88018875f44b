//! The steady pool: a handle that many share, over a worker that owns the services.
//!
//! | file | what it owns |
//! |---|---|
//! | `builder` | what a pool may be told |
//! | `handle` | the pool as a tower service, and one request |
//! | `queue` | requests that wait for a service, in the order in which they came |
//! | `worker` | the services: making, giving them requests, draining |
//! | `making` | services in the making, and when the next one may be |
//! | `member` | one service, and its requests in flight |
//! | `guarded` | calls of the users' own code, which may panic |
//! | `snapshot`, `meters` | what it shows |
//!
//! ```text
//!   wished -> in the making -> warming -> ready <-> busy -> draining -> dropped
//!     ^          |  failed       | never ready |  failed      |
//!     '--backoff-+---------------+             +-> dropped    +-- wished again --> ready
//! ```

mod builder;
mod guarded;
mod handle;
mod making;
mod member;
mod meters;
mod queue;
mod snapshot;
mod worker;

pub use builder::SteadyBuilder;
pub(super) use guarded::{Panicked, discard, guarded};
pub use handle::SteadyPool;
pub use snapshot::{ServiceSnapshot, ServiceState, SteadySnapshot};

/// Two different ones of at least two, in any order: for the choice of the less loaded of two (M. Mitzenmacher, *The Power of
/// Two Choices in Randomized Load Balancing*, IEEE TPDS 2001).
pub(super) fn two_of(rng: &mut fastrand::Rng, count: usize) -> (usize, usize) {
    let one = rng.usize(..count);
    let other = rng.usize(..count - 1);
    (one, if other < one { other } else { other + 1 })
}
