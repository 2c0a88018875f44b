//! The bridges to tower, both ways, against the public API and against tower's own `Balance`.

// A test program: nobody reads its documentation, and its helpers may panic.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "../balance/fake.rs"]
#[allow(dead_code)] // shared with the balancers' tests, which use more of it
mod fake;
mod from_tower;
mod round_trip;
mod to_tower;
