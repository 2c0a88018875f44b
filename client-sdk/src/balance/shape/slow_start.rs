//! Few requests at first for an instance that is new: it has caches to fill, code to compile, connections to open.
//!
//! After Envoy's slow start mode (*Slow start mode* in its load balancing documentation): an instance of age `a` has its
//! weight times
//!
//! ```text
//!   max(first share, (a ÷ window) ^ (1 ÷ aggression))
//! ```
//!
//! Here the age goes on in steps of a twentieth of the window, and the steps of all instances come at the same times: however
//! many start, and whenever, pickers are built anew for it at most twenty times within a window. An age is counted from the
//! next step, so it lags by up to two steps.

use std::time::Duration;

use super::{Shaper, ShapingError, Share};

/// Steps in a window.
const STEPS: u32 = 20;
const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_hours(24);

/// Lets the shares of instances that came, or came back, rise within a window.
///
/// Those that were there when this caller started are taken for warm. With hash policies keys move to a new instance
/// step by step.
///
/// ```
/// use std::time::Duration;
/// use client_sdk::balance::shape::SlowStart;
/// let slow = SlowStart::new(Duration::from_secs(30))?.aggression(1.5)?.first_share(0.05)?;
/// # Ok::<(), client_sdk::balance::shape::ShapingError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SlowStart {
    window: Duration,
    aggression: f64,
    first_share: f64,
}

impl SlowStart {
    /// Rises within a window of 200 ms to 24 h, evenly (aggression 1), from 10 % of the weight.
    pub fn new(window: Duration) -> Result<Self, ShapingError> {
        if !(SHORTEST..=LONGEST).contains(&window) {
            return Err(ShapingError::Window { window });
        }
        Ok(Self { window, aggression: 1.0, first_share: 0.1 })
    }

    /// How it rises: above 1 fast at first, below 1 fast at last. A number above 0; default 1, evenly.
    pub fn aggression(mut self, aggression: f64) -> Result<Self, ShapingError> {
        if !aggression.is_finite() || aggression <= 0.0 {
            return Err(ShapingError::Aggression { aggression });
        }
        self.aggression = aggression;
        Ok(self)
    }

    /// The least share of its weight that an instance gets. Above 0, and 1 at most; default 0.1.
    pub fn first_share(mut self, share: f64) -> Result<Self, ShapingError> {
        if !(share > 0.0 && share <= 1.0) {
            return Err(ShapingError::FirstShare { share });
        }
        self.first_share = share;
        Ok(self)
    }

    fn factor(&self, steps: u32) -> f64 {
        (f64::from(steps) / f64::from(STEPS)).powf(1.0 / self.aggression).max(self.first_share)
    }
}

impl Shaper for SlowStart {
    fn shape(&self, shares: &mut [Share<'_>], now: Duration) -> Option<Duration> {
        let step = self.window.as_nanos() / u128::from(STEPS);
        let at = now.as_nanos() / step;
        let mut rising = false;
        for share in shares {
            let Some(since) = share.since else { continue };
            let age = at.saturating_sub(since.as_nanos().div_ceil(step));
            if let Ok(steps) = u32::try_from(age)
                && steps < STEPS
            {
                share.weight *= self.factor(steps);
                rising = true;
            }
        }
        let next = || u64::try_from((at + 1) * step - now.as_nanos()).unwrap_or(u64::MAX);
        rising.then(|| Duration::from_nanos(next()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::Instance;

    const SECOND: Duration = Duration::from_secs(1);

    /// The weight of an instance of weight 10 that is there since 100 s, and when it is to be asked again.
    fn at(slow: SlowStart, now: Duration) -> (f64, Option<Duration>) {
        let instance = Arc::new(Instance::builder("a:1".parse().expect("valid")).build());
        let mut shares = [Some(100 * SECOND), None].map(|since| Share {
            instance: &instance,
            weight: 10.0,
            usable: true,
            since,
        });
        let again = slow.shape(&mut shares, now);
        assert!((shares[1].weight - 10.0).abs() < 1e-9, "what was there from the start is warm");
        (shares[0].weight, again)
    }

    #[test]
    fn the_share_rises_by_envoys_formula() {
        let slow = SlowStart::new(20 * SECOND).expect("in range");
        for (age, weight) in [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.5), (10, 5.0), (19, 9.5)] {
            let (got, again) = at(slow, (100 + age) * SECOND);
            assert!((got - weight).abs() < 1e-9, "after {age} s it is {got}");
            assert_eq!(again, Some(SECOND), "one step later");
        }
        assert_eq!(at(slow, 120 * SECOND), (10.0, None), "then nobody is asked any more");
        let fast = slow.aggression(2.0).and_then(|slow| slow.first_share(0.25)).expect("in range");
        for (age, weight) in [(0, 2.5), (1, 2.5), (5, 5.0), (19, 9.746_794)] {
            let (got, _) = at(fast, (100 + age) * SECOND);
            assert!((got - weight).abs() < 1e-6, "after {age} s it is {got}");
        }
    }

    #[test]
    fn between_two_steps_nothing_changes() {
        let slow = SlowStart::new(20 * SECOND).expect("in range");
        let (weight, again) = at(slow, 105 * SECOND + SECOND / 4);
        assert!((weight - 2.5).abs() < 1e-9);
        assert_eq!(again, Some(SECOND * 3 / 4));
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        assert!(SlowStart::new(Duration::ZERO).is_err() && SlowStart::new(LONGEST + SECOND).is_err());
        let slow = SlowStart::new(SECOND).expect("in range");
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(slow.aggression(wrong).is_err() && slow.first_share(wrong).is_err());
        }
        assert!(slow.first_share(1.1).is_err());
    }
}
