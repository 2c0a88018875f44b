//! The rules of the registry, pure and deterministic: no clock, no I/O, no randomness, no runtime, no wire types.
//!
//! ```text
//!               decide(&state, now, command) ──► Proposal { events, touches } │ Rejection
//!                                                    │
//!                              store.append(record) ─┴─► the store names the revision
//!                                                    │
//!   evolve(now, Committed { revision, record }) ◄────┘   the only way state changes:
//!          │                                             own writes and replay after a restart alike
//!          └──► Vec<ServiceChange>   what the hub publishes
//! ```
//!
//! Lease deadlines and the guard's windows are volatile and stand beside the durable [`State`].

mod types;

pub use types::*;
