//! Measures picks: ours, and those of other balancers, by the same loop in the same run.
//!
//! | module | what it owns |
//! |---|---|
//! | [`changing`] | both, while the instances change |
//! | [`fixture`] | the instances, the keys and a discovery that tells changes |
//! | [`subject`] | what is measured: a name, and how to time so many picks |
//! | [`ours`] | our policies: on a built picker, through a handle, through `get_picker` |
//! | [`peers`] | volo, tower and, with the feature `pingora`, pingora |
//! | [`measure`] | repeated runs, taken in turns |

pub mod changing;
pub mod fixture;
pub mod measure;
pub mod ours;
pub mod peers;
pub mod subject;
