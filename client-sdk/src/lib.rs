//! Discovery, client-side load balancing and registration: the library that services link.
//!
//! | room | what it owns | promises |
//! |---|---|---|
//! | [`model`] | the nouns: [`Instance`], [`Address`], [`Endpoint`], [`Change`] | |
//! | [`discover`] | the [`Discover`] trait, and its implementations: over the registry, static, weighted static | C1 |
//! | [`balance`] | policies, pickers, the cache that turns them into [`LoadBalance`] and into handles; filters and shapers before them | C2 |
//! | [`channel`] | a tonic channel that balances over whatever is registered right now | C2, C3 |
//! | [`layer`] | any tower service, balanced in the same way | C2 |
//! | [`pool`] | services made as they are needed, or instances used, as many as the demand asks for | |
//! | [`sizing`] | how many members there are to be, by the demand over time: pure | |
//! | [`members`] | who is connected, who may be chosen, how a request finds one and waits for one | C1, C2 |
//! | [`retry`] | which requests are sent again, how often, and within what budget | C2 |
//! | [`orca`] | how loaded an instance is in its own words: the message, and a layer for servers that reports it | |
//! | [`outlier`] | which instances fail so much that requests had better go elsewhere for a while: pure | |
//! | [`bridge`] | our discovery as tower's and as volo's, and tower's as ours | C1, C2 |
//! | [`client`] | one connection to a set of registry endpoints, with failover | C3 |
//! | [`registration`] | register, keep alive, register again, update, drain, deregister | C3, C4 |
//! | [`watch`] | the stream of changes: one explicit reconnect state machine | W5, C3 |
//! | [`view`] | pure: a message in, a `Change` out, the digest checked | W2, W4, W8 |
//! | [`runtime`] | clock, randomness, spawning and connecting, injected | |
//!
//! A change flows one way: `client → watch → view → discover → members (balance) → channel, layer`.
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `tls` | yes | `ChannelBuilder::tls`: connections to instances over TLS (rustls, ring) |
//! | `volo` | no | `bridge::VoloDiscover`: any discovery of ours as a `volo::discovery::Discover` of volo 0.12 |
//!
//! The names that most programs need stand here at the root:
//!
//! ```no_run
//! use std::sync::Arc;
//! use client_sdk::{BalancedChannel, Endpoint, Registration, RegistryClient, RegistryDiscover};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = RegistryClient::builder().endpoint("127.0.0.1:7400".parse()?).build()?;
//!
//! // A service registers itself …
//! let registration =
//!     Registration::builder(client.clone()).service("greeter").address("10.0.0.7:8080".parse()?).register().await?;
//!
//! // … and a caller gives this channel to its generated tonic client.
//! let discover = Arc::new(RegistryDiscover::builder(client).build());
//! let channel = BalancedChannel::builder(discover, Endpoint::new("greeter")).build();
//! # registration.drain().await?;
//! # Ok(()) }
//! ```

mod backoff;
pub mod balance;
pub mod bridge;
pub mod channel;
pub mod client;
pub mod discover;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod layer;
pub mod members;
pub mod model;
pub mod orca;
pub mod outlier;
pub mod pool;
pub mod registration;
pub mod retry;
pub mod runtime;
pub mod sizing;
pub mod view;
pub mod watch;
mod windowed;
mod wire_duration;

pub use balance::{Balancer, LoadBalance, RoundRobin, WeightedRandom};
pub use channel::BalancedChannel;
pub use client::RegistryClient;
pub use discover::{Discover, RegistryDiscover, StaticDiscover, WeightedStaticDiscover};
pub use layer::{LoadBalanceLayer, LoadBalanced};
pub use model::{Address, Change, Endpoint, Instance};
pub use registration::Registration;
