//! The balancing half as its users see it. Most tests are named after a known fault that they guard against.

#![allow(missing_docs, unreachable_pub)]

mod choice;
mod fake;
mod first_callers;
mod following;
mod keeping_up;
