//! The SDK from end to end, on real sockets: the registry is a process, and can be killed; a greeter has a runtime of its
//! own, and can be killed like a process: nothing of it is told to anybody, its connections break.
//!
//! | module | what it shows |
//! |---|---|
//! | `lifecycle` | register, be called, change, drain, leave; killed instances (C2, C4) |
//! | `leaving` | callers that stop: in good order, dropped, killed (C4) |
//! | `outages` | the registry killed, restarted, missing (C1, C3) |
//! | `authority` | who may change what: operators, generations, old leases (L3, L4) |
//! | `foreign` | a `Discover` and a `LoadBalance` by somebody else |
//! | `partition` | a network cut to a part of a fleet (L5) |
//! | `large` | 50,000 instances (W8) |
#![allow(missing_docs, clippy::disallowed_methods)] // tests begin what runs beside them

mod authority;
mod foreign;
mod handover;
mod kit;
mod large;
mod leaving;
mod lifecycle;
mod outages;
mod partition;
