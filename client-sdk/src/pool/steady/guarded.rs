//! Calls of the users' own code, which may panic: that ends a service, and never the pool.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What is told of a panic.
#[derive(Debug, thiserror::Error)]
#[error("the service, or what makes it, panicked")]
pub(in crate::pool) struct Panicked;

/// What comes of it; `None` if it panics.
pub(in crate::pool) fn guarded<T>(act: impl FnOnce() -> T) -> Option<T> {
    // What a panic leaves half done is dropped by whoever is told of it.
    catch_unwind(AssertUnwindSafe(act)).ok()
}

/// Drops it, whatever its `Drop` does.
pub(in crate::pool) fn discard<T>(value: T) {
    let _ = guarded(|| drop(value));
}
