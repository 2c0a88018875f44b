//! Whole systems on simulated time, network and disks: registry servers, instances, callers and watchers, each on a host
//! of its own (turmoil), all from one seed.
//!
//! ```text
//!   Script ──faults, at their times──► Simulation ──steps──► hosts: server::run_on | Registration | RegistryDiscover | BalancedChannel
//!                                          │                   │ over net (turmoil's TCP), disk (in memory), tokio's paused time
//!                                          └──────► Trace ◄────┘ what everyone saw, and when
//! ```
//!
//! | module | what it owns |
//! |---|---|
//! | [`net`] | connector and accept stream over the simulated network |
//! | [`world`] | clocks, randomness and spawning of each side |
//! | [`disk`] | a disk in memory that loses power |
//! | [`hosts`] | what runs on a host |
//! | [`script`] | faults, written down or drawn from a seed |
//! | [`simulation`] | the hosts together, stepped through a script |
//! | [`trace`] | what everyone saw |
//! | [`promises`] | promises, checked on a trace |
//!
//! The same seed gives the same trace, to the millisecond. What is beyond the seed: the order in which hyper and tonic
//! poll their own futures, which shows in no trace as long as only one of them is ready.

pub mod disk;
pub mod hosts;
pub mod net;
pub mod promises;
pub mod script;
pub mod simulation;
pub mod trace;
pub mod world;

pub use disk::SimulatedDisk;
pub use script::{Fault, Script};
pub use simulation::{Settings, Simulation, Storage};
pub use trace::{Event, Trace};
