//! How much the hub keeps: what W10 bounds, in numbers. Owns no bound.

/// What is kept at some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Watchers of views.
    pub watchers: usize,
    /// Views.
    pub views: usize,
    /// Entries of the recent log.
    pub log_entries: usize,
    /// Bytes of the encoded instances in them.
    pub log_bytes: usize,
    /// The most entries of it that are indexed for one view.
    pub indexed: usize,
    /// The most snapshots that are kept of one view.
    pub snapshots: usize,
    /// The most deltas that are kept of one view.
    pub deltas: usize,
}
