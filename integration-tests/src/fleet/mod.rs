//! A fleet of real processes behind the SDK's channel, and callers that call it and count.
//!
//! | module | what it owns |
//! |---|---|
//! | [`instance`] | the body of such a process: serves, is registered, behaves as it is told |
//! | [`process`] | starting, ordering about, stopping and killing one |
//! | [`load`] | callers in a closed loop, and what became of their calls, phase by phase |
//!
//! The test and a process talk over the process's standard input and output, a line at a time; see [`instance`].

pub mod instance;
pub mod load;
pub mod process;

/// The service that the fleet's processes register.
pub const SERVICE: &str = "fleet";
/// The method that is called: that of gRPC's health service, as every client has it.
pub const METHOD: &str = "/grpc.health.v1.Health/Check";
/// In an answer: the name of the process.
const WHO: &str = "who";
/// In an answer: how many attempts of the same call had failed before, if any had.
const EARLIER: &str = "earlier-attempts";
/// Of gRPC (A6): by which a process learns of them.
const PREVIOUS_ATTEMPTS: &str = "grpc-previous-rpc-attempts";
