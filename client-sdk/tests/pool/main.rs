//! The pools as their users see them. Time is paused: it moves only when nobody has anything to do.

// A test program: nobody reads its documentation, and its helpers may panic and spawn.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::disallowed_methods)]

mod cancellation;
mod classic;
mod classic_cancellation;
mod classic_estimate;
mod classic_faults;
#[allow(dead_code)] // some of it is for the layer's tests only
#[path = "../layer/kit.rs"]
mod hosts;
mod kit;
#[path = "../../examples/pool_simulation/plot.rs"]
mod plot;
mod seen;
mod simulated;
#[allow(dead_code)] // the table is the command's
#[path = "../../examples/pool_simulation/simulation.rs"]
mod simulation;
mod soak;
mod steady;
mod steady_faults;
