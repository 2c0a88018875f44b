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
//! | [`world`] | clocks, right and wrong, randomness and spawning of each side |
//! | [`disk`] | a disk in memory that loses power |
//! | [`hosts`] | what runs on a host: registries, watchers, callers |
//! | [`instance`] | an instance, which serves, is registered, and drains |
//! | [`raw`] | hosts that speak the protocol by hand |
//! | `operator` | one of them: who overrules an instance |
//! | [`notebook`] | what those wrote down |
//! | [`script`] | faults, written down or drawn from a seed |
//! | [`settings`] | how many of everything there is |
//! | `repeat` | how to repeat what failed |
//! | [`simulation`] | the hosts together, stepped through a script |
//! | [`trace`] | what everyone saw |
//!
//! Promises are judged by [`crate::validate`]: on the trace what callers see, and on what raw hosts wrote down the rest.
//!
//! The same seed gives the same trace, to the millisecond. What is beyond the seed: the order in which hyper and tonic
//! poll their own futures, which shows in no trace as long as only one of them is ready; and whom of several a tokio `watch`
//! wakes first, which shows where a registry stops in good order and its streams and connections hear of it. Built with
//! `--cfg tokio_unstable`, turmoil seeds that too.

pub mod disk;
pub mod hosts;
pub mod instance;
pub mod net;
pub mod notebook;
mod operator;
pub mod raw;
mod repeat;
pub mod script;
pub mod settings;
pub mod simulation;
pub mod trace;
pub mod world;

pub use disk::SimulatedDisk;
pub use raw::Stage;
pub use script::{Fault, Script};
pub use settings::{Settings, Storage};
pub use simulation::{Recorded, Simulation};
pub use trace::{Event, Trace};
