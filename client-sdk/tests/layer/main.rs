//! Any tower service, balanced: over services that a test makes busy, breaks, and makes panic.
#![allow(clippy::disallowed_methods)] // a test may spawn

mod kit;

mod aperture;
mod lifecycle;
mod limits;
mod outliers;
mod policies;
mod retries;
mod shaping;
mod towers_cases;
mod waiting;
