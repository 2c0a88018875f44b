//! What survives a restart: a base, and the records since.
//!
//! Owns durability (D1) and fail-stop (D4). Knows the core's words, and nothing of clocks, networks or the writer loop.

use crate::core::{Base, Committed, Record, Revision};

/// What a store holds when it is opened.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The name of this history of revisions.
    pub epoch: String,
    /// The state that the tail builds on.
    pub base: Base,
    /// The records since the base, oldest first.
    pub tail: Vec<Committed>,
}

/// Keeps records durably. Owned by one writer; calls may block.
pub trait Store: Send + 'static {
    /// What is kept. Called once, before the first `append`.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Makes a group of records durable, all of them before it returns, and names their revisions: strictly growing,
    /// one a record. After an error the store is closed: nothing was acknowledged, nothing more is accepted (D4).
    fn append(&mut self, group: &[Record]) -> Result<Vec<Revision>, StoreError>;

    /// Whether `append` waits for a disk, so that the caller should not run it on a thread that others need.
    fn blocks(&self) -> bool;
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused. After this the store is closed.
    #[error("{0}")]
    Io(String),
}
