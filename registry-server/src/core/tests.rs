//! The core as a whole: what the promises say, one by one, and over random histories.

mod properties;
mod regressions;
mod rules;
mod support;
