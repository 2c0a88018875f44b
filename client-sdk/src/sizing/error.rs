//! What is wrong with a setting, and the checks that say so: the sizing's own, and the builders' whose settings stand beside
//! them.

use std::time::Duration;

/// A setting that nothing can be sized by: what a builder refuses.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A share is none.
    #[error("{setting} is {value}; it is a share: give a number between 0 and 1")]
    NotAShare {
        /// The setting.
        setting: &'static str,
        /// What it was set to.
        value: f64,
    },
    /// A number is none, or too small.
    #[error("{setting} is {value}; give a number above {above}")]
    TooSmall {
        /// The setting.
        setting: &'static str,
        /// What it was set to.
        value: f64,
        /// What it must be above.
        above: f64,
    },
    /// Two settings contradict each other.
    #[error("{lower} is {low}, above {upper}, which is {high}; give them the other way round")]
    Order {
        /// The setting that must not be above the other.
        lower: &'static str,
        /// What it was set to.
        low: f64,
        /// The other.
        upper: &'static str,
        /// What that was set to.
        high: f64,
    },
    /// Nothing could be served.
    #[error("{setting} is 0, with which no request could be served; give at least 1")]
    Zero {
        /// The setting.
        setting: &'static str,
    },
    /// A time is none.
    #[error("{setting} takes no time at all; give more than 0")]
    NoTime {
        /// The setting.
        setting: &'static str,
    },
}

/// Refuses what is no share.
pub(crate) fn share(setting: &'static str, value: f64) -> Result<(), SettingsError> {
    // Not a number is in no range.
    if (0.0..=1.0).contains(&value) { Ok(()) } else { Err(SettingsError::NotAShare { setting, value }) }
}

/// Refuses zero.
pub(crate) fn at_least_one(setting: &'static str, value: usize) -> Result<(), SettingsError> {
    if value == 0 { Err(SettingsError::Zero { setting }) } else { Ok(()) }
}

/// Refuses two that are in the wrong order.
pub(crate) fn in_order(lower: (&'static str, f64), upper: (&'static str, f64)) -> Result<(), SettingsError> {
    if lower.1 <= upper.1 {
        return Ok(());
    }
    Err(SettingsError::Order { lower: lower.0, low: lower.1, upper: upper.0, high: upper.1 })
}

/// Refuses no time.
pub(crate) fn some_time(setting: &'static str, value: Duration) -> Result<(), SettingsError> {
    if value.is_zero() { Err(SettingsError::NoTime { setting }) } else { Ok(()) }
}
