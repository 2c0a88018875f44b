//! How loaded an instance is, in its own words: Open Request Cost Aggregation, as gRPC reports it (gRFC A51).
//!
//! A report is the published message `xds.data.orca.v3.OrcaLoadReport`, in the trailer `endpoint-load-metrics-bin` of an answer: any
//! server and any client of gRPC understand each other by it. Owns the message, its way through the trailers, and the
//! server's side: a [`LoadReportLayer`] for any tonic server and the [`LoadRecorder`] that its application sets. Does not own what
//! callers make of it: that is [`ReportedLoad`](crate::balance::ReportedLoad), or any policy of one's own
//! ([`Report::loaded`](crate::balance::Report::loaded)).
//!
//! | file | what it owns |
//! |---|---|
//! | `report` | the message, byte for byte, and the trailer |
//! | `recorder` | what a server's application says, and what is counted |
//! | `layer` | the trailer on every answer |
//!
//! Reports by themselves on a stream of their own (`OpenRcaService`) are not sent, nor asked for.

mod layer;
mod recorder;
mod report;

pub use layer::{LoadReportLayer, LoadReporting, ReportingBody, ReportingFuture};
pub use recorder::{LoadError, LoadRecorder};
pub use report::{LoadReport, Malformed};
