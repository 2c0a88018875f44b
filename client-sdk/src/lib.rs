//! Discovery, client-side load balancing and registration: the library that services link.
//!
//! | room | what it owns | promises |
//! |---|---|---|
//! | [`model`] | the nouns: [`Instance`](model::Instance), [`Address`](model::Address), [`Endpoint`](model::Endpoint), [`Change`](model::Change) | |
//! | [`discover`] | the [`Discover`](discover::Discover) trait, and its implementations: over the registry, static, weighted static | C1 |
//! | [`balance`] | policies, pickers, the cache that turns them into [`LoadBalance`](balance::LoadBalance) and into handles | C2 |
//! | [`channel`] | a tonic channel that balances over whatever is registered right now | C2 |
//! | [`client`] | one connection to a set of registry endpoints, with failover | C3 |
//! | [`registration`] | register, keep alive, register again, update, drain, deregister | C3, C4 |
//! | [`watch`] | the stream of changes: one explicit reconnect state machine | W5, C3 |
//! | [`view`] | pure: a message in, a `Change` out, the digest checked | W2, W4, W8 |
//! | [`runtime`] | clock, randomness, spawning and connecting, injected | |
//!
//! A change flows one way: `client → watch → view → discover → balance → channel`.

pub mod balance;
pub mod channel;
pub mod client;
pub mod discover;
pub mod model;
pub mod registration;
pub mod runtime;
pub mod view;
pub mod watch;
