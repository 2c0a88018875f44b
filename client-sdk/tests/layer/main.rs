//! Any tower service, balanced: over services that a test makes busy, breaks, and makes panic.
#![allow(clippy::disallowed_methods)] // a test may spawn

mod kit;

mod lifecycle;
mod policies;
mod retries;
mod towers_cases;
mod waiting;
