//! What the recent log can say of one instance's past. Owns the words only; the log is the feeds'.

use std::sync::Arc;

use crate::core::{Cause, Instance, Revision};

/// One thing that happened to an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// The revision.
    pub revision: Revision,
    /// Wall time.
    pub wall: u64,
    /// Why.
    pub cause: Cause,
    /// Who.
    pub actor: Arc<str>,
    /// The instance before; `None` if it was not there.
    pub before: Option<Arc<Instance>>,
    /// The instance after; `None` if it left.
    pub after: Option<Arc<Instance>>,
}

/// What is known of an instance, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// Newest first.
    pub events: Vec<Happened>,
    /// All that happened after this revision is known, and nothing of what happened at it or before.
    pub known_since: Revision,
    /// Wall time of the oldest change of the service that is known.
    pub known_since_wall: Option<u64>,
}

impl Past {
    pub(super) fn nothing_since(known_since: Revision) -> Self {
        Self { events: Vec::new(), known_since, known_since_wall: None }
    }
}
