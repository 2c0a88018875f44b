//! How much of an average is left after some time: e^(−time ÷ decay).
//!
//! Twice: exactly, for what is learnt, and quickly, for a pick, which compares two and needs no more than their order. The
//! quick one is in integers: the time in halvings, whose fraction is looked up and whose whole part goes off the exponent
//! of the number that was found.

use std::time::Duration;

/// Fixed point: 2^30 is one halving. Times are below 2^32 and a halving takes 0.69 ms at least, so nothing overflows.
const POINT: u32 = 30;
/// Fractions of a halving that are told apart.
const STEPS: usize = 256;
const STEP: u32 = POINT - STEPS.ilog2();
/// 2^(−1/256).
const ONE_STEP: f64 = 0.997_296_056_085_470_1;
static FRACTIONS: [f32; STEPS] = fractions();

#[derive(Clone, Copy, Debug)]
pub(super) struct Fading {
    decay_millis: f64,
    halvings_per_milli: u64,
}

impl Fading {
    /// With this time constant; 1 ms at least.
    pub(super) fn new(decay: Duration) -> Self {
        let decay_millis = (decay.as_secs_f64() * 1_000.0).max(1.0);
        let halvings = std::f64::consts::LOG2_E / decay_millis * f64::from(1_u32 << POINT);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 1.45 · 2^30
        let halvings_per_milli = halvings.round() as u64;
        Self { decay_millis, halvings_per_milli }
    }

    /// What is left after so many milliseconds.
    pub(super) fn exactly(&self, millis: u32) -> f64 {
        (-f64::from(millis) / self.decay_millis).exp()
    }

    /// The same within 0.15%, and within as many more 2^30ths as milliseconds have passed; 0 after 125 halvings.
    #[inline]
    pub(super) fn quickly(&self, millis: u32) -> f32 {
        let halvings = u64::from(millis) * self.halvings_per_milli + (1 << (STEP - 1));
        let whole = halvings >> POINT;
        if whole >= 125 {
            return 0.0;
        }
        #[allow(clippy::cast_possible_truncation)] // below 125, and below STEPS
        let (whole, fraction) = (whole as u32, (halvings >> STEP) as usize % STEPS);
        f32::from_bits(FRACTIONS[fraction].to_bits() - (whole << (f32::MANTISSA_DIGITS - 1)))
    }
}

const fn fractions() -> [f32; STEPS] {
    let (mut fractions, mut left, mut step) = ([1.0; STEPS], 1.0, 1);
    while step < STEPS {
        left *= ONE_STEP;
        #[allow(clippy::cast_possible_truncation)] // rounded, on purpose
        let rounded = left as f32;
        fractions[step] = rounded;
        step += 1;
    }
    fractions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quickly_is_as_near_to_exactly_as_it_says() {
        for decay in [1, 7, 100, 10_000, 3_600_000, 86_400_000] {
            let fading = Fading::new(Duration::from_millis(decay));
            // Up to twenty time constants, and beyond the table's end.
            for step in 0..=4_000_u64 {
                let Ok(millis) = u32::try_from(decay * step / 200) else { continue };
                let (exactly, quickly) = (fading.exactly(millis), f64::from(fading.quickly(millis)));
                // The rounding of the rate counts once in each time constant.
                let allowed = 0.0015 + f64::from(millis) / f64::from(1_u32 << POINT);
                assert!(
                    (quickly / exactly - 1.0).abs() <= allowed,
                    "{decay}: {millis}: {quickly} for {exactly}"
                );
            }
        }
    }

    #[test]
    fn nothing_is_left_after_very_long_and_all_of_it_at_once() {
        for decay in [Duration::ZERO, Duration::from_secs(10), Duration::MAX] {
            let fading = Fading::new(decay);
            assert!((fading.quickly(0) - 1.0).abs() < f32::EPSILON);
            assert!(fading.quickly(u32::MAX) >= 0.0);
        }
        assert!(Fading::new(Duration::from_secs(10)).quickly(u32::MAX) <= f32::EPSILON);
    }
}
