//! The pools as their users see them. Time is paused: it moves only when nobody has anything to do.

// A test program: nobody reads its documentation, and its helpers may panic and spawn.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::disallowed_methods)]

mod cancellation;
mod classic;
mod classic_faults;
mod kit;
mod seen;
mod soak;
mod steady;
mod steady_faults;
