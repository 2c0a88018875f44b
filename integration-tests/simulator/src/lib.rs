//! Fleets with bad instances, on virtual time, called through the SDK's own layer.
//!
//! What balances is the code that users link: [`LoadBalanceLayer`](client_sdk::LoadBalanceLayer) with its policies, shapers,
//! outlier detection and retries. Only the servers are simulated, and the time: a minute takes as long as its events take.
//!
//! The same seed gives the same arrivals, the same faults and the same chances. Which of several requests that wake
//! in the same instant goes first is tokio's to say, so where many wait for one thing, two runs may differ by a few requests.
//!
//! ```text
//!   load (arrivals by chance) ---> the layer under test ---> servers (a queue, workers, a behaviour that changes)
//!        |                                                      |
//!        +---------------> record: latencies, failures <--------+ whom requests went to
//! ```
//!
//! | module | what it owns |
//! |---|---|
//! | [`server`] | one server: its queue, and how it behaves |
//! | [`fleet`] | all of them: who is registered, connecting to them |
//! | [`scenario`] | which fleets there are, and what happens to them when |
//! | [`contender`] | what balances: a policy, and what stands around it |
//! | [`run`] | one contender over one scenario |
//! | [`record`] | what came of it |
//! | [`report`], [`plot`] | tables, and pictures |

pub mod contender;
pub mod fleet;
pub mod plot;
pub mod record;
pub mod report;
pub mod run;
pub mod scenario;
pub mod server;
