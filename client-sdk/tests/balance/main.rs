//! The balancing half as its users see it. Most tests are named after a known fault that they guard against.

// A test program: nobody reads its documentation, and its helpers may panic.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod choice;
mod fake;
mod first_callers;
mod following;
mod keeping_up;
mod shaping;
