//! The registry server.
//!
//! | room | what it owns | promises |
//! |---|---|---|
//! | [`core`] | the rules: commands, leases, incarnations, overrides, the blast-radius guard. Pure | D3, L1–L5 |
//! | [`store`] | what survives a restart | D1, D4 |
//! | [`registry`] | the one writer: takes commands, decides, commits, evolves, publishes, answers | D2, D3, L1, L2 |
//! | [`hub`] | what is published: views, the recent log, cursors, snapshots | W1–W6, W9, W10 |
//! | [`applied`] | who has applied what, and who waits for them | C4 |
//! | [`grpc`] | the wire: decode, validate, call, encode. The only home of `Status` | W7, bounds |
//! | [`server`] | wires and joins everything: `run(config, listener, runtime, shutdown)` | |
//! | [`runtime`] | clock, randomness and spawning, injected | |
//! | [`workers`] | the threads that all this runs on | |
//! | [`cli`] | the binary's body: flags, log, signals | |
//!
//! Dependencies point one way: `server → grpc → registry → {core, store, hub}` and `grpc → applied → hub`; `core` knows nobody.
//! `docs/architecture.md` walks one registration and one change through these rooms.

pub mod applied;
pub mod cli;
pub mod core;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod grpc;
pub mod hub;
pub mod registry;
pub mod runtime;
pub mod server;
pub mod store;
pub mod workers;
