//! What can be set about the rules.

/// What can be set about the rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// L5: hold expired instances beyond `hold_share`. Off: everything that expires goes.
    pub guard: bool,
    /// L5: the share of a service, 0 to 1, that expiry may remove within a window.
    pub hold_share: f64,
    /// L5: services with fewer instances than this at the window's start are not guarded.
    pub hold_min_instances: usize,
    /// L5: milliseconds after which held instances go.
    pub hold_time: u64,
    /// Milliseconds by which the loop may wake late before it counts as a stall.
    pub stall_after: u64,
    /// Services without instances that are remembered, so that their watchers can resume.
    pub remembered_services: usize,
    /// Overrides kept at most.
    pub max_overrides: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            guard: true,
            hold_share: 0.5,
            hold_min_instances: 4,
            hold_time: 300_000,
            stall_after: 500,
            remembered_services: 10_000,
            max_overrides: 100_000,
        }
    }
}
