//! An entry of the recent log: what one revision did to one service, encoded. Owns no order and no bounds: the log does.

use std::sync::Arc;

use super::encode::Entry;
use crate::core::{Cause, Revision};

/// What one revision did to one service, encoded.
#[derive(Debug)]
pub(super) struct Logged {
    pub(super) revision: Revision,
    pub(super) wall: u64,
    pub(super) cause: Cause,
    pub(super) actor: Arc<str>,
    items: Items,
    /// The service was registered for the first time, lost its last instance, or is empty no longer: every view is told,
    /// whatever it selects, so that nobody takes an empty selection for an empty service (W9).
    pub(super) turned: bool,
}

/// Nearly always one, which then needs no room of its own.
#[derive(Debug)]
enum Items {
    One([LoggedItem; 1]),
    Several(Box<[LoggedItem]>),
}

/// One instance, before and after.
#[derive(Debug)]
pub(super) struct LoggedItem {
    pub(super) before: Option<Arc<Entry>>,
    pub(super) after: Option<Arc<Entry>>,
}

impl Logged {
    pub(super) fn new(
        revision: Revision,
        wall: u64,
        cause: Cause,
        actor: Arc<str>,
        items: Vec<LoggedItem>,
        turned: bool,
    ) -> Self {
        let items = match <[LoggedItem; 1]>::try_from(items) {
            Ok(one) => Items::One(one),
            Err(several) => Items::Several(several.into()),
        };
        Self { revision, wall, cause, actor, items, turned }
    }

    /// The instances that changed, each once.
    pub(super) fn items(&self) -> &[LoggedItem] {
        match &self.items {
            Items::One(one) => one,
            Items::Several(several) => several,
        }
    }

    /// Of its encoded instances.
    pub(super) fn bytes(&self) -> usize {
        let entries = self.items().iter().flat_map(|item| item.before.iter().chain(&item.after));
        entries.map(|entry| entry.body.len()).sum()
    }
}
