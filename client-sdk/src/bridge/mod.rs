//! This crate's discovery in the words of other libraries, and theirs in ours.
//!
//! | type | from | to |
//! |---|---|---|
//! | [`ServiceChanges`] | any of our [`Discover`](crate::Discover)s | a `tower::discover::Discover`, for tower's own `Balance` |
//! | [`TowerDiscover`] | any `tower::discover::Discover` | one of ours |
//! | `VoloDiscover` (feature `volo`) | any of ours | a `volo::discovery::Discover`, for volo's own balancers |
//!
//! None of them balances: that is up to whoever takes what they give. All keep C1 (what fails never empties a view), and
//! none names an instance that takes no requests to a balancer that knows of no status (C2).

mod from_tower;
mod to_tower;
#[cfg(feature = "volo")]
mod volo;

pub use from_tower::{TowerDiscover, TowerDiscoverError};
pub use to_tower::{LiveInstance, ServiceChanges};
#[cfg(feature = "volo")]
pub use volo::{VoloDiscover, VoloDiscoverBuilder, VoloDiscoverError, VoloKey, VoloNamespace};
